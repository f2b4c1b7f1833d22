"""Clients of our runner see no connection closed under a request: `python -m bench hangups`, small, ours alone.

Promised times are stretched here, for the machine is shared; at full size they are as promised.
"""

import contextlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator

import pytest
from servers import needs
from typer.testing import CliRunner

from bench import hangups
from bench.__main__ import app as command
from bench.hangups import Kind, Report, Row, Size, answers, turnover
from bench.hangups.client import Crew, Failure, InconclusiveError, client
from bench.hangups.servers import Options, environment
from bench.hangups.servers import command as typed
from bench.hangups.stage import sorted_out
from bench.promises import Check, at_most

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, /proc")

SMALL = Size(requests=400, patience=6)


@pytest.fixture(autouse=True)
def _needs_node() -> None:
    needs("node")


def held(row: Row) -> None:
    assert not row.broken, row.text()


# Of our runner


@pytest.mark.parametrize("workers", [2, 4])
def test_no_request_is_lost_while_workers_are_recycled(workers: int) -> None:
    held(turnover.recycle(Kind.OURS, SMALL, workers))


def test_no_request_is_lost_while_all_workers_are_replaced_on_sighup() -> None:
    held(turnover.hup(Kind.OURS, SMALL))


def test_streams_come_whole_through_a_sighup() -> None:
    held(turnover.hup_streams(Kind.OURS, SMALL))


def test_no_request_is_lost_while_the_whole_service_is_handed_over() -> None:
    held(turnover.handover(Kind.OURS, SMALL))


def test_an_unhandled_exception_costs_nobody_a_connection() -> None:
    held(answers.exceptions(Kind.OURS, SMALL))


def test_users_who_think_for_five_seconds_find_their_connection_open() -> None:
    held(answers.think(Kind.OURS, Size(requests=400, patience=6)))


def test_the_status_of_a_large_upload_beyond_a_limit_is_read_every_time() -> None:
    needs("redis-server")
    held(answers.upload_429(Kind.OURS, SMALL))


def test_the_status_of_a_large_upload_to_a_full_service_is_read_every_time_and_health_is_answered() -> None:
    held(answers.upload_503(Kind.OURS, SMALL))


def test_a_killed_worker_takes_along_what_it_held_and_nothing_else_and_is_replaced() -> None:
    held(turnover.kill9(Kind.OURS, SMALL))


def test_a_worker_whose_loop_is_blocked_is_replaced_and_ends_when_it_has_answered() -> None:
    held(turnover.stuck(Kind.OURS, SMALL, block_s=4))


def test_a_worker_whose_loop_is_blocked_for_good_is_ended_at_the_request_timeout() -> None:
    held(turnover.stuck_forever(Kind.OURS, SMALL, request_timeout_s=5))


def test_open_streams_hold_up_the_end_for_as_long_as_the_drain_cap_and_no_longer() -> None:
    held(turnover.sigterm_streams(Kind.OURS, SMALL))


def test_deadlines_of_plain_functions_leave_no_more_threads_than_the_pool_has() -> None:
    held(answers.threads_bounded(Kind.OURS, SMALL))


# Of the measurement


def test_stock_uvicorn_hangs_up_after_an_exception_so_what_is_measured_can_happen() -> None:
    row = answers.exceptions(Kind.STOCK, SMALL)
    assert sum(row.errors.values()) > 10, row.text()
    assert set(row.errors) <= {"socket hang up", "ECONNRESET", "EPIPE"}


class Rude:
    """A server that does, with each connection, what the path asks for; `asked` counts requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while head := connection.recv(65_536):
                path = head.split()[1].decode()
                self.asked.append(path)
                if not self._answer(connection, path):
                    return

    def _answer(self, connection: socket.socket, path: str) -> bool:
        """Whether the connection goes on."""
        if path == "/hang-up":
            connection.close()
        elif path == "/reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        elif path == "/short":
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
            connection.close()
        elif path in {"/stream", "/cut"}:
            body = b"event: end\ndata: {}\n\n" if path == "/stream" else b"data: 1\n\n"
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(head % len(body) + body)
            return True
        elif path == "/item":
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-worker: 7\r\ncontent-length: 2\r\n\r\nok")
            return True
        elif path == "/refuse":
            connection.sendall(b"HTTP/1.1 503 Nope\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            connection.close()
        return path == "/silent"

    def close(self) -> None:
        self.listener.close()
        for connection in self.open:
            connection.close()


@pytest.fixture
def rude() -> Iterator[Rude]:
    server = Rude()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/hang-up", "socket hang up"),
        ("/reset", "ECONNRESET"),
        ("/short", "aborted"),
        ("/cut", "cut"),
        ("/silent", "timeout"),
    ],
)
def test_every_way_to_be_left_without_an_answer_is_counted_by_its_kind_and_nothing_is_sent_twice(
    rude: Rude, path: str, kind: str
) -> None:
    crew = Crew(name="c", clients=1, requests=6, every=((3, f"GET {path}"),), timeout_ms=100)
    with client(rude.port, [crew]) as node:
        seen = node.result(within_s=20)["c"]
    assert (seen.requests, seen.kinds, seen.statuses) == (6, {kind: 2}, {"/item 200": 4})
    assert len(rude.asked) == 6
    first = seen.failures[0]
    assert (first.route, first.reused, first.worker) == (path, True, 7)
    assert seen.opened == (1 if kind == "cut" else 2)


def test_nobody_listening_is_counted_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with client(port, [Crew(name="c", clients=2, requests=4)]) as node:
        seen = node.result(within_s=20)["c"]
    assert (seen.requests, seen.kinds, seen.statuses) == (4, {"ECONNREFUSED": 4}, {})


def test_whole_streams_and_refusals_are_answers(rude: Rude) -> None:
    crews = [
        Crew(name="streams", clients=2, requests=6, wish="GET /stream"),
        Crew(name="refused", clients=1, requests=3, wish="GET /refuse"),
    ]
    with client(rude.port, crews) as node:
        seen = node.result(within_s=20)
    assert (seen["streams"].errors, seen["streams"].statuses, seen["streams"].opened) == (0, {"/stream 200": 6}, 2)
    assert (seen["refused"].errors, seen["refused"].statuses) == (0, {"/refuse 503": 3})
    assert (seen["refused"].closing, seen["refused"].retry_after, seen["refused"].opened) == (3, 3, 3)


def test_the_load_goes_on_until_it_is_told_to_stop_and_can_be_looked_at_meanwhile(rude: Rude) -> None:
    crew = Crew(name="c", clients=4, think_ms=(1, 2))
    with client(rude.port, [crew]) as node:
        node.answered("c", 50, within_s=20)
        mark = node.mark()["c"]
        assert mark.connections == {7: 4}
        with pytest.raises(InconclusiveError, match="the end of time: not within 0 s"):
            node.until(lambda: False, within_s=0, what="the end of time")
        seen = node.stop()["c"]
    assert seen.requests == sum(seen.statuses.values()) >= 50
    assert seen.opened == 4
    assert seen.answered_by == {7: seen.requests}


def test_without_load_nothing_is_measured(rude: Rude) -> None:
    with client(rude.port, [Crew(name="c", clients=1, requests=1)]) as node:
        node.result(within_s=20)
        with pytest.raises(InconclusiveError, match="a request during the event: the load has ended"):
            node.until(lambda: False, within_s=20, what="a request during the event")


def test_a_failure_belongs_to_the_worker_that_held_its_connection() -> None:
    def failure(worker: int | None, started_ms: int) -> Failure:
        return Failure(kind="k", route="/", worker=worker, reused=True, started_ms=started_ms, at_ms=9)

    of_it, fresh, of_another, later = failure(1, 8), failure(None, 5), failure(2, 5), failure(None, 6)
    assert sorted_out([of_it, fresh, of_another, later], 1, 5) == ([of_it, fresh], [of_another, later])


def test_both_servers_are_told_the_same_in_their_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEQUOTA_DRAIN_S", "1")
    monkeypatch.setenv("WEB_CONCURRENCY", "9")
    options = Options(workers=3, max_requests=500, drain_s=7, most_at_once=4)
    stock, ours = (typed(kind, options, 8001) for kind in (Kind.STOCK, Kind.OURS))
    for line in (stock, ours):
        assert "bench.hangups.app:app --host 127.0.0.1 --port 8001 --workers 3" in " ".join(line)
    assert "--limit-max-requests 500 --limit-max-requests-jitter 50" in " ".join(stock)
    assert "--timeout-graceful-shutdown 7 --limit-concurrency 4" in " ".join(stock)
    said = environment(Kind.OURS, options)
    assert (said["ONEQUOTA_MAX_REQUESTS"], said["ONEQUOTA_DRAIN_S"], said["ONEQUOTA_MAX_IN_FLIGHT"]) == (
        "500",
        "7",
        "4",
    )
    assert "ONEQUOTA_REQUEST_TIMEOUT_S" not in said, "what is not meant stays the default"
    assert "WEB_CONCURRENCY" not in said
    assert not any(name.startswith("ONEQUOTA_") for name in environment(Kind.STOCK, options))


def made(kind: Kind, *, errors: int) -> Row:
    check = Check(promise="client errors: 0", held=not errors, found=str(errors))
    return Row(
        scenario="hup",
        kind=kind,
        requests=10,
        errors={"ECONNRESET": errors} if errors else {},
        statuses={"/item 200": 8, "/work 200": 2 - errors},
        facts={"new_workers_after_s": 1.5, "times": 4},
        events={"worker_died": 2},
        checks=(check,),
    )


def test_a_row_says_what_was_counted_and_which_promise_broke() -> None:
    assert made(Kind.OURS, errors=1).text().splitlines() == [
        "hup             ours           10       1  ECONNRESET: 1; 200: 9",
        "                        new workers after 1.50 s, times 4",
        "                        BROKEN  client errors: 0, but 1",
        "                        its log: worker_died: 2",
    ]
    assert "BROKEN" not in made(Kind.STOCK, errors=1).text(), "stock promises nothing"
    assert Report(rows=[made(Kind.STOCK, errors=1), made(Kind.OURS, errors=0)]).verdict() == "every promise holds"
    assert Report(rows=[made(Kind.OURS, errors=1)]).verdict() == "1 of our rows break a promise"


def test_what_never_came_was_not_in_time() -> None:
    assert not at_most("the end", None, 5).held
    assert at_most("the end", 5, 5).held
    assert not at_most("the end", 5.1, 5).held


@pytest.mark.parametrize(("errors", "status"), [(0, 0), (1, 1)])
def test_the_command_ends_with_1_when_a_promise_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, errors: int, status: int
) -> None:
    monkeypatch.setitem(
        hangups.SCENARIOS, "hup", lambda kind, _size: made(kind, errors=errors if kind is Kind.OURS else 1)
    )
    shown = CliRunner().invoke(command, ["hangups", "--scenario", "hup"])
    assert shown.exit_code == status
    assert shown.stdout.splitlines()[-1] == Report(rows=[made(Kind.OURS, errors=errors)]).verdict()
    told = CliRunner().invoke(command, ["hangups", "--scenario", "hup", "--json", "--no-stock"])
    assert told.exit_code == status
    data = json.loads(told.stdout)
    assert [(row["kind"], row["held"]) for row in data["rows"]] == [("ours", not errors)]


def test_the_command_ends_with_2_when_it_could_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ended = CliRunner().invoke(command, ["hangups", "--scenario", "exceptions", "--requests", "400"])
    assert ended.exit_code == 2
    assert "node is not installed" in ended.stderr
    assert CliRunner().invoke(command, ["hangups", "--scenario", "no-such"]).exit_code == 2
