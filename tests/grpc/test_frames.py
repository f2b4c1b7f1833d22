"""Where a frame of the server's own may be put into what it sends; read by hyperframe, which did not write it."""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hyperframe.frame import ContinuationFrame, Frame, GoAwayFrame, HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from service.grpc.frames import GO_ELSEWHERE, Frames


def frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 1) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


DATA, HEADERS, SETTINGS, PUSH_PROMISE, CONTINUATION = 0, 1, 4, 5, 9
END_HEADERS = 4
S, D = frame(SETTINGS, stream=0), frame(DATA, b"12345")  # 9 and 14 bytes

TABLE = [
    # pieces, the place in each, whether a frame may follow
    ([b""], [None], False),
    ([S], [9], True),
    ([S + D], [23], True),
    ([S, D[:4]], [9, None], False),
    ([S, D[:9]], [9, None], False),
    ([S, D[:9], D[9:]], [9, None, 5], True),
    ([S + D + D[:13], D[13:] + S[:1]], [23, 1], False),
    ([S[:8], S[8:]], [None, 1], True),
    ([S, frame(HEADERS, b"h", END_HEADERS)], [9, 10], True),
    ([S, frame(HEADERS, b"h"), frame(CONTINUATION, b"c"), frame(CONTINUATION, b"", END_HEADERS)],
     [9, None, None, 9], True),
    ([S + frame(HEADERS, b"h") + D[:3]], [9], False),
    ([S, frame(PUSH_PROMISE, b"p")], [9, None], False),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "places", "between"), TABLE)
def test_a_place_is_where_one_frame_has_ended_and_no_header_block_is_open(
    pieces: list[bytes], places: list[int | None], between: bool
) -> None:
    frames = Frames()
    assert frames.between is False, "the first frame must be the server's SETTINGS"
    assert [frames.feed(piece) for piece in pieces] == places
    assert frames.between is between


@cache
def said_by_a_server() -> bytes:
    """An answer whose header is so long that it continues in a second frame."""
    client, server = H2Connection(), H2Connection(H2Configuration(client_side=False))
    client.initiate_connection()
    client.send_headers(1, [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")], True)
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200"), ("x", "y" * 40_000)])
    server.send_data(1, b"z" * 50)
    server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    return server.data_to_send()


@given(cuts=st.lists(st.integers(0, 300) | st.integers(0, 50_000), max_size=8), at=st.integers(0, 8))
def test_however_it_is_cut_a_client_reads_all_of_it_and_that_it_is_to_go(cuts: list[int], at: int) -> None:
    """GOAWAY goes in at the first place after so many pieces."""
    said = said_by_a_server()
    edges = sorted({0, len(said), *(min(cut, len(said)) for cut in cuts)})
    frames, away, heard = Frames(), False, b""
    for number, (start, stop) in enumerate(pairwise(edges)):
        piece = said[start:stop]
        place = frames.feed(piece)
        if number >= at and not away and place is not None:
            away, piece = True, piece[:place] + GO_ELSEWHERE + piece[place:]
        heard += piece
    if not away:
        assert frames.between
        heard += GO_ELSEWHERE
    assert heard.replace(GO_ELSEWHERE, b"", 1) == said
    read = list(parsed(heard))
    (gone,) = [found for found in read if isinstance(found, GoAwayFrame)]
    assert (gone.error_code, gone.last_stream_id, gone.additional_data) == (0, 2**31 - 1, b"")
    before = read[read.index(gone) - 1]
    assert read.index(gone) > 0
    assert not isinstance(before, HeadersFrame | ContinuationFrame) or "END_HEADERS" in before.flags


def parsed(data: bytes) -> Iterator[Frame]:
    while data:
        found, length = Frame.parse_frame_header(memoryview(data[:9]))
        found.parse_body(memoryview(data[9 : 9 + length]))
        data = data[9 + length :]
        yield found
