"""Messages on a stream of bytes: before each its size, in four bytes, little-endian."""

from __future__ import annotations

import socket
import struct

SIZE = struct.Struct("<I")
MOST_AT_ONCE = 1 << 16


class BrokenStream(Exception):
    """The other end has closed a stream, or sends what is too large."""


def framed(data: bytes) -> bytes:
    """A message with its size before it."""
    return SIZE.pack(len(data)) + data


class FrameReader:
    """Reads the messages that arrive on a stream, each of at most `most_bytes`.

    A size is checked before anything of its message is read, and memory is taken for what has
    come, not for what was announced.
    """

    def __init__(self, stream: socket.socket, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._stream = stream
        self._piece = memoryview(bytearray(MOST_AT_ONCE))
        self._arrived = bytearray()

    def read(self) -> None:
        """Take what has arrived, waiting where the stream waits; raises BrokenStream."""
        try:
            count = self._stream.recv_into(self._piece)
        except BlockingIOError:
            return
        except OSError as error:
            raise BrokenStream(str(error)) from error
        if not count:
            raise BrokenStream("closed by the other end")
        self._arrived += self._piece[:count]

    def take(self) -> bytes | None:
        """The next message, if it is complete; raises BrokenStream when it is too large."""
        if len(self._arrived) < SIZE.size:
            return None
        (size,) = SIZE.unpack_from(self._arrived)
        if size > self.most_bytes:
            raise BrokenStream(f"a message of {size} bytes, more than {self.most_bytes} allowed")
        end = SIZE.size + size
        if len(self._arrived) < end:
            return None
        data = bytes(memoryview(self._arrived)[SIZE.size : end])
        del self._arrived[:end]
        return data
