"""The process in which tokenizers and chat templates of model folders run.

Both are programs that come with files: they may need any time and any memory, panic or crash. Here
each request runs under limits of the kernel, and what ends is this process alone. It answers one
msgpack message for each on standard output, ignores Ctrl-C, and ends when standard input does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import IO, Any

import msgpack

from .limits import set_limit

HEADER_BYTES = 4
# Paths that are no UTF-8, and what files say in errors, hold halves of characters.
SURROGATES = "surrogatepass"


def read_message(stream: IO[bytes]) -> Any:
    """The next message; raises EOFError when the other side has ended."""
    header = stream.read(HEADER_BYTES)
    size = int.from_bytes(header, "little")
    if len(header) < HEADER_BYTES or len(body := stream.read(size)) < size:
        raise EOFError
    return msgpack.unpackb(body, strict_map_key=False, unicode_errors=SURROGATES)


def write_message(stream: IO[bytes], message: Any) -> None:
    body: bytes = msgpack.packb(  # pyright: ignore[reportAssignmentType]
        message, unicode_errors=SURROGATES
    )
    stream.write(len(body).to_bytes(HEADER_BYTES, "little") + body)
    stream.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_limit(resource.RLIMIT_CORE, 0)
    requests = sys.stdin.buffer
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # No tokenizer needs torch, and importing it takes seconds. What is None cannot be imported.
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    from .hosted import answer

    while True:
        try:
            request = read_message(requests)
        except EOFError:
            return
        write_message(answers, answer(request))


if __name__ == "__main__":
    main()
