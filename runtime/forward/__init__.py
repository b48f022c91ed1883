"""One rank's forward pass, recorded op by op."""
