"""What workers tell each other: all of it, in order, soon; kept as long as it matters, and no longer."""

import asyncio
import contextlib

import pytest
from driving import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot
from topologies import PLACES

from bench.redises import free_port, tell
from service.errors import StoreUnavailable
from service.limits import board as bounds
from service.limits.board import Board
from service.limits.engine import Engine
from service.limits.stores import MemoryStore, opener
from service.limits.stores.fake import FakeServerOpener

KEY = b"oq:board:test"


class Ticker:
    """Seconds that a test moves."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s


def stores(redis_server):
    """Openers of one board each: in this process, on fakeredis, on a real server."""
    memory = MemoryStore()
    return [lambda: memory, FakeServerOpener(), opener(redis_server.url, None, 5)]


def listening(open_store, ticker=None, keep_s=60):
    """A worker's board, and what it has heard."""
    heard = []
    engine = Engine(open_store, 5)
    board = Board(engine, KEY, keep_s, lambda message, now_us: heard.append(message), *([ticker] if ticker else []))
    return board, heard, engine


@pytest.mark.parametrize("which", range(3), ids=["memory", "fake", "redis"])
async def test_all_hear_everything_in_order_and_once(which, redis_server):
    """Who posts, who reads, and who comes later."""
    open_store = stores(redis_server)[which]
    one, one_heard, first = listening(open_store)
    other, other_heard, second = listening(open_store)
    late, late_heard, third = listening(open_store)
    posted = []
    for n in range(20):
        message = b"message %d \r\n\x00\xff" % n
        await (one if n % 3 else other).post(message)
        posted.append(message)
        if n % 7 == 0:
            await other.read()
    for board in (one, other, late):
        await board.read()
        await board.read()
    assert one_heard == other_heard == late_heard == posted
    for engine in (first, second, third):
        await engine.aclose()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 1500)), max_size=30))
@settings(max_examples=30, deadline=None)
def test_the_script_and_its_twin_answer_alike(steps):
    """Messages, reads and pauses in any order: the same texts, ids that only grow."""

    async def run():
        clock = Clock()
        memory, fake = MemoryStore(clock), FakeServerOpener()()
        after = {memory: [b"-"] * 3, fake: [b"-"] * 3}
        for reader, says, pause_ms in steps:
            message = b"m%d" % pause_ms if says else b""
            found = {}
            for store, places in after.items():
                _, entries = await store.board(KEY, places[reader], message, 10**9, 10)
                found[store] = [text for _, text in entries]
                ids = [tuple(map(int, id_.split(b"-"))) for id_, _ in entries]
                assert ids == sorted(set(ids))
                if entries:
                    places[reader] = b"(" + entries[-1][0]
            assert found[memory][:5] == found[fake][:5]  # MAXLEN is about
            clock.now_us += pause_ms * 1000
        await fake.aclose()

    asyncio.run(run())


async def test_a_board_is_gone_when_its_last_message_matters_no_more(redis_server):
    """On Redis by its expiry, in memory by the clock."""
    for keep_s in (60, 0):
        board, _, engine = listening(opener(redis_server.url, None, 5), keep_s=keep_s)
        await board.post(b"x")
        with redis_server.client() as client:
            assert keep_s * 1000 < client.pttl(KEY) <= keep_s * 1000 + 1000
        await engine.aclose()
    clock = Clock()
    memory = MemoryStore(clock)
    await memory.board(KEY, b"-", b"x", 5000, 10)
    clock.forward(4.999)
    assert (await memory.board(KEY, b"-", b"", 0, 10))[1]
    clock.forward(0.001)
    assert not (await memory.board(KEY, b"-", b"", 0, 10))[1]


async def test_old_messages_make_room_and_a_late_reader_gets_the_rest(redis_server, monkeypatch):
    """A board keeps about MOST_KEPT: it cannot fill a Redis; all that is kept is read, however much at once."""
    monkeypatch.setattr(bounds, "MOST_KEPT", 100)
    board, heard, engine = listening(opener(redis_server.url, None, 5))
    for n in range(1000):
        await board.post(b"%d" % n)
    assert heard == [b"%d" % n for n in range(1000)]
    late, late_heard, second = listening(opener(redis_server.url, None, 5))
    await late.read()
    assert len(late_heard) <= 300
    assert late_heard == heard[-len(late_heard) :]
    await engine.aclose()
    await second.aclose()


async def test_a_board_is_read_each_quarter_second_whatever_the_number_of_requests():
    """In the background; only who finds it older than STALE_S waits."""
    ticker, memory = Ticker(), MemoryStore()
    board, heard, engine = listening(lambda: memory, ticker)
    await board.look()
    await memory.board(KEY, b"-", b"x", 10**6, 10)
    for _ in range(100):
        assert board.look() is None
    await asyncio.sleep(0.01)
    assert heard == []
    ticker.now_s += bounds.POLL_S
    assert board.look() is None
    await asyncio.sleep(0.01)
    assert heard == [b"x"]
    ticker.now_s += bounds.STALE_S
    await memory.board(KEY, b"-", b"y", 10**6, 10)
    await board.look()
    assert heard == [b"x", b"y"]
    await engine.aclose()


async def test_while_the_store_is_away_nobody_waits_and_afterwards_all_is_heard():
    """One attempt each quarter of a second; who waited for the first one is not told of the failure."""
    ticker = Ticker()

    class Broken(MemoryStore):
        away, asked = True, 0

        async def board(self, *arguments):
            self.asked += 1
            if self.away:
                raise StoreUnavailable("away")
            return await super().board(*arguments)

    store = Broken()
    board, heard, engine = listening(lambda: store, ticker)
    await board.look()
    for _ in range(10):
        ticker.now_s += bounds.STALE_S
        assert board.look() is None
        assert board.look() is None
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert store.asked == 11
    with pytest.raises(StoreUnavailable):
        await board.post(b"x")
    store.away = False
    await MemoryStore.board(store, KEY, b"-", b"y", 10**6, 10)
    ticker.now_s += bounds.STALE_S
    board.look()
    await asyncio.sleep(0.01)
    assert heard == [b"y"]
    await engine.aclose()


async def test_a_server_that_hangs_is_given_up_at_the_deadline():
    class Hung(MemoryStore):
        async def board(self, *arguments):
            await asyncio.Event().wait()

    store = Hung()
    board, _, engine = listening(lambda: store)
    engine.deadline_s = 0.05
    with pytest.raises(StoreUnavailable, match="in time"):
        await board.read()
    await engine.aclose()


async def test_after_a_failover_to_a_server_whose_clock_is_behind_messages_are_heard_again():
    """Its ids are smaller than the last one heard: without a second look at the whole board they would be missed."""
    clock = Clock()
    store = MemoryStore(clock)
    board, heard, engine = listening(lambda: store)
    await board.post(b"before")
    store._kept.clear()
    clock.forward(-30)
    await MemoryStore.board(store, KEY, b"-", b"after", 10**6, 10)
    await board.read()
    assert heard == [b"before", b"after"]
    await engine.aclose()


def test_every_event_loop_reads_for_itself():
    """A test client makes one a request; what one has heard the others need not hear again."""
    memory = MemoryStore()
    board, heard, engine = listening(lambda: memory)

    async def look(n):
        await memory.board(KEY, b"-", b"%d" % n, 10**6, 10)
        await board.read()
        await engine.aclose()

    for n in range(3):
        asyncio.run(look(n))
    assert heard == [b"0", b"1", b"2"]


@pytest.mark.parametrize("place", PLACES, indirect=True)
async def test_boards_and_bans_work_wherever_counters_are(place):
    """One server, over TLS, with no more rights than a limiter needs, on a Cluster, behind Sentinels."""
    open_store = opener(place.url, None, 5)
    one, one_heard, first = listening(open_store)
    other, other_heard, second = listening(open_store)
    for _ in range(100):  # a Cluster that has just been started may say for a moment that it is down
        with contextlib.suppress(StoreUnavailable):
            await one.read()
            break
        await asyncio.sleep(0.1)
    for n in range(5):
        await (one if n % 2 else other).post(b"%d" % n)
    place.tell("SCRIPT", "FLUSH")
    await one.read()
    await other.read()
    assert one_heard == other_heard == [b"%d" % n for n in range(5)]
    await first.aclose()
    await second.aclose()


@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_a_board_whose_slot_moves_is_found_again(redis_cluster, begun):
    """A server that has its slot no more says who has; one that is giving it away says who is about to have it."""
    redis_cluster.flush()
    slot, posted = key_slot(KEY), []
    tell(redis_cluster.holder(slot), "SET", b"{" + KEY + b"}", "another key of this slot, to be moved")
    target = next(node for node in redis_cluster.primaries() if node is not redis_cluster.holder(slot))
    with asyncio.Runner() as runner:
        board, heard, engine = listening(opener(redis_cluster.url, None, 5))

        def post(message=b"meanwhile"):
            runner.run(board.post(message))
            posted.append(message)

        if begun == "before":
            post(b"before")
        redis_cluster.migrate(slot, redis_cluster.holder(slot), target, meanwhile=post)
        post(b"after")
        late, late_heard, second = listening(opener(redis_cluster.url, None, 5))
        runner.run(late.read())
        runner.run(engine.aclose())
        runner.run(second.aclose())
    assert b"meanwhile" in posted
    assert heard == late_heard == posted


async def test_a_failed_cluster_is_no_500():
    """Nobody says where the board is."""
    board, _, engine = listening(opener(f"redis+cluster://127.0.0.1:{free_port()}", None, 1))
    with pytest.raises(StoreUnavailable):
        await board.post(b"x")
    await engine.aclose()
