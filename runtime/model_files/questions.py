"""What the driver asks ranks about files before they load. Imports nothing: ranks start with it."""

LOOK = "look at files"
FETCH = "fetch files"
FETCH_FROM_HUB = "fetch files from hub"
QUESTIONS = {
    LOOK: "comparing the model's files",
    FETCH: "sending the model's files",
    FETCH_FROM_HUB: "downloading the model's files",
}
"""Each kind of message, and what goes on meanwhile."""
