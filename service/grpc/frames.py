"""Where one HTTP/2 frame ends and the next begins (RFC 9113, 4.1), and the frame that sends clients away. Pure."""

HEADERS, PUSH_PROMISE, GOAWAY, CONTINUATION = 1, 5, 7, 9
_END_HEADERS = 0x4
_HEAD_BYTES = 9
_LAST_STREAM = 2**31 - 1

GO_ELSEWHERE = (
    (8).to_bytes(3, "big") + bytes([GOAWAY, 0]) + bytes(4) + _LAST_STREAM.to_bytes(4, "big") + bytes(4)
)  # fmt: skip
"""GOAWAY without an error that excludes no stream: no new calls on this connection, please; what comes is served."""


class Frames:
    """Follows what a server sends, in pieces of any size.

    Attributes:
        between: A frame of the server's own may be put in here: a first one was sent (it must be SETTINGS), none is
            half sent, and no header block is open, into which nothing may come.
    """

    __slots__ = ("_head", "_left", "between")

    def __init__(self) -> None:
        self.between = False
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> int | None:
        """Go on by `data`; the last place in it where something may be put in, as an offset; None = there is none."""
        at, end, place = 0, len(data), None
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
            else:
                piece = data[at : at + _HEAD_BYTES - len(self._head)]
                at += len(piece)
                self._head += piece
                if len(self._head) < _HEAD_BYTES:
                    break
                self._left = int.from_bytes(self._head[:3], "big")
            if not self._left:
                opened = self._head[3] in (HEADERS, PUSH_PROMISE, CONTINUATION) and not self._head[4] & _END_HEADERS
                self._head = b""
                self.between = not opened
                if self.between:
                    place = at
        if self._head:
            self.between = False
        return place
