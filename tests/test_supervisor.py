"""The parent: replaces what is due, dead or stuck, and nobody's request is lost. Real processes, real signals."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from redis import Redis
from running import ROOT, Running, alive, becomes, onequota
from websockets.sync.client import connect

from service.supervisor import Supervisor

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

APP = """
import asyncio, os, time
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
app = FastAPI()

@app.get("/")
async def who():
    return {"pid": os.getpid(), "redis": os.environ.get("REDIS_URL")}

@app.get("/wait")
async def wait(s: float):
    await asyncio.sleep(s)
    return {"pid": os.getpid()}

@app.get("/block")
async def block(s: float):
    time.sleep(s)
    return {"pid": os.getpid()}

@app.get("/stream")
async def stream(chunks: int):
    async def body():
        for n in range(chunks):
            yield f"{n}\\n"
            await asyncio.sleep(0.1)
        yield "end\\n"
    return StreamingResponse(body())

@app.post("/refuse")
async def refuse():
    return {"pid": os.getpid()}

@app.websocket("/echo")
async def echo(socket: WebSocket):
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())
"""


@pytest.fixture(autouse=True)
def app_file(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


@contextlib.contextmanager
def service(
    cwd: Path, workers: int = 2, *options: str, python: str = sys.executable, pwd: str = "", **variables: str
) -> Iterator["Seen"]:
    arguments = ["run", "app:app", "--port", "0", "--workers", str(workers), "--no-reload", "--no-access-log", *options]
    variables = {"ONEQUOTA_LOG_FORMAT": "json"} | {f"ONEQUOTA_{name}": value for name, value in variables.items()}
    variables |= {"PWD": pwd} if pwd else {}
    with onequota(cwd, *arguments, variables=variables, python=python) as running:
        seen = Seen(running)
        assert becomes(lambda: len(seen.events("worker_serving")) == workers, 20), running.said()
        yield seen


class Seen:
    """A running service, and what it has logged."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.pid = running.process.pid
        self.port = int(running.banner["url"].rpartition(":")[2])

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.running.said().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def becomes(self, name: str, count: int = 1, within_s: float = 20) -> list[dict[str, Any]]:
        assert becomes(lambda: len(self.events(name)) >= count, within_s), self.running.said()
        return self.events(name)

    def signal(self, number: int) -> None:
        self.running.process.send_signal(number)

    @property
    def serving(self) -> set[int]:
        """Workers that serve and are not retired, by pid."""
        gone = {e["worker"] for name in ("worker_retired", "worker_died", "worker_ended") for e in self.events(name)}
        return {event["worker"] for event in self.events("worker_serving")} - gone

    def connect(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, path: str = "/") -> Any:
        connection = self.connect()
        with contextlib.closing(connection):
            return get(connection, path)[1]

    def ends(self, within_s: float) -> float:
        """Seconds until the parent is gone; it must be, with status 0."""
        began_s = time.monotonic()
        assert self.running.process.wait(within_s) == 0
        return time.monotonic() - began_s


def get(connection: http.client.HTTPConnection, path: str = "/") -> tuple[http.client.HTTPResponse, Any]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer, json.loads(answer.read())


class Callers:
    """Threads that each ask, again and again, on a connection they keep as long as the server does."""

    def __init__(self, seen: Seen, count: int) -> None:
        self.errors: list[Exception] = []
        self.answers = 0
        self._over = threading.Event()
        self._seen = seen
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        connection = self._seen.connect()
        while not self._over.is_set():
            try:
                answer, _ = get(connection)
                self.answers += 1
                assert answer.status == 200
            except Exception as error:
                self.errors.append(error)
            time.sleep(0.005)
        connection.close()

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_sighup_replaces_every_worker_and_no_request_is_lost(tmp_path: Path) -> None:
    with service(tmp_path) as seen, Callers(seen, 4) as callers:
        before = seen.serving
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_ended", 2)
        assert seen.serving.isdisjoint(before)
        assert len(seen.serving) == 2
        assert [event["reason"] for event in seen.events("worker_retired")] == ["reload", "reload"]
    assert callers.errors == []
    assert callers.answers > 20


def test_nobody_is_retired_before_the_replacement_serves(tmp_path: Path) -> None:
    with service(tmp_path) as seen:
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_ended", 2)
        lines = [json.loads(line)["event"] for line in seen.running.said().splitlines() if line.startswith("{")]
        turns = [event for event in lines if event in {"worker_serving", "worker_retired"}]
        assert turns == ["worker_serving"] * 3 + ["worker_retired", "worker_serving", "worker_retired"]


def test_workers_are_recycled_after_their_requests_and_none_is_lost(tmp_path: Path) -> None:
    with service(tmp_path, 2, "--max-requests", "50") as seen, Callers(seen, 4) as callers:
        seen.becomes("worker_ended", 4, 30)
    assert callers.errors == []
    assert {event["reason"] for event in seen.events("worker_retired")[:4]} == {"recycle"}


def test_keep_alive_stays_useful_and_only_a_retired_worker_says_close(tmp_path: Path) -> None:
    with service(tmp_path) as seen, contextlib.closing(seen.connect()) as connection:
        answer, first = get(connection)
        assert (answer.headers["keep-alive"], answer.headers["connection"]) == ("timeout=70", None)
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_retired", 2)
        # Its worker is gone from the listener, and still answers on this connection; then it says so.
        answers = [get(connection)]
        while answers[-1][0].headers["connection"] is None:  # the order is on its way
            assert len(answers) < 10_000
            answers.append(get(connection))
        assert {body["pid"] for _, body in answers} == {first["pid"]}
        assert (answer.headers["keep-alive"], answers[-1][0].headers["keep-alive"]) == ("timeout=70", None)
        seen.becomes("worker_ended", 2)  # the order may be on its way to the other one, too
        assert get(connection)[1]["pid"] in seen.serving


def test_a_request_and_a_stream_under_way_end_whole_on_the_old_worker(tmp_path: Path) -> None:
    with (
        service(tmp_path) as seen,
        ThreadPoolExecutor(1) as pool,
        contextlib.closing(seen.connect()) as connection,
    ):
        waiting = pool.submit(seen.ask, "/wait?s=2")
        connection.request("GET", "/stream?chunks=20")
        stream = connection.getresponse()
        before = seen.serving
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_retired", 2)
        assert stream.read().split()[-1] == b"end"
        assert waiting.result()["pid"] in before


def test_a_websocket_is_closed_with_1012_when_its_worker_is_replaced(tmp_path: Path) -> None:
    with service(tmp_path) as seen, connect(f"ws://127.0.0.1:{seen.port}/echo") as websocket:
        websocket.send("hello")
        assert websocket.recv() == "hello"
        seen.signal(signal.SIGHUP)
        with pytest.raises(Exception, match="1012"):
            websocket.recv(timeout=20)


def test_sigterm_to_a_worker_has_it_replaced(tmp_path: Path) -> None:
    with service(tmp_path) as seen:
        asked = min(seen.serving)
        os.kill(asked, signal.SIGTERM)
        [event] = seen.becomes("worker_retired")
        assert (event["worker"], event["reason"]) == (asked, "asked")
        assert len(seen.serving) == 2


def test_workers_can_be_added_and_taken_away(tmp_path: Path) -> None:
    with service(tmp_path, 1) as seen:
        seen.signal(signal.SIGTTIN)
        seen.becomes("worker_serving", 2)
        seen.signal(signal.SIGTTOU)
        [event] = seen.becomes("worker_retired")
        assert event["reason"] == "fewer"
        seen.signal(signal.SIGTTOU)  # the last one stays
        assert "pid" in seen.ask()


def test_a_stuck_loop_is_told_replaced_and_drains_when_it_comes_back(tmp_path: Path) -> None:
    with service(tmp_path) as seen, ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(seen.ask, "/block?s=6")
        [event] = seen.becomes("worker_stuck")
        [where] = seen.becomes("loop_stuck")
        assert "in block" in where["stack"]
        assert where["pid"] == event["worker"]
        seen.becomes("worker_serving", 3, 5)
        assert not blocked.done(), "the replacement serves while the other is stuck"
        assert blocked.result() == {"pid": event["worker"]}, "it came back, and its request is answered"
        assert [e["worker"] for e in seen.becomes("worker_ended")] == [event["worker"]]
        assert len(seen.serving) == 2


def test_a_worker_that_is_only_slow_loses_no_request_however_short_their_deadline(tmp_path: Path) -> None:
    with service(tmp_path, REQUEST_TIMEOUT_S="1") as seen, ThreadPoolExecutor(1) as pool:
        slow = min(seen.serving)
        os.kill(slow, signal.SIGSTOP)
        waiting = pool.submit(lambda: [seen.ask() for _ in range(20)])
        seen.becomes("worker_stuck")
        os.kill(slow, signal.SIGCONT)
        seen.becomes("worker_back")
        assert len(waiting.result()) == 20


def test_a_parent_that_slept_calls_nobody_stuck(tmp_path: Path) -> None:
    with service(tmp_path) as seen:
        before = seen.serving
        os.kill(seen.pid, signal.SIGSTOP)
        time.sleep(3.5)
        os.kill(seen.pid, signal.SIGCONT)
        seen.signal(signal.SIGTTIN)
        seen.becomes("worker_serving", 3)
        assert seen.events("worker_stuck") == []
        assert before < seen.serving


def test_a_worker_that_came_back_while_its_replacement_could_not_start_lives_on(tmp_path: Path, app_file: Path) -> None:
    with service(tmp_path, 1, REQUEST_TIMEOUT_S="5") as seen, ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(seen.ask, "/block?s=4.5")
        app_file.write_text("raise RuntimeError('half a deploy')")
        seen.becomes("worker_failed")
        assert "pid" in blocked.result()
        time.sleep(6)  # until it would have been ended, had it not come back
        assert "pid" in seen.ask()
        assert seen.events("worker_died") == []


def test_a_slow_start_is_not_waited_for_by_who_stops(tmp_path: Path, app_file: Path) -> None:
    app_file.write_text("import time; time.sleep(60)")
    with onequota(tmp_path, "run", "app:app", "--port", "0", "--workers", "1", "--no-reload") as running:
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) == 0


def test_a_request_is_one_line(tmp_path: Path) -> None:
    with service(tmp_path, 1, "--access-log") as seen:
        seen.ask()
        [event] = seen.becomes("request")
        assert (event["path"], event["status"]) == ("/", 200)
        assert '"logger": "uvicorn.access"' not in seen.running.said()


def test_a_parent_that_is_killed_leaves_no_worker_for_longer_than_the_drain(tmp_path: Path) -> None:
    """Not even one whose loop or thread hangs: it would hold the port."""
    with service(tmp_path, DRAIN_S="1") as seen, contextlib.closing(seen.connect()) as connection:
        workers = seen.serving
        connection.request("GET", "/block?s=60")
        time.sleep(0.3)
        os.kill(seen.pid, signal.SIGKILL)
        assert becomes(lambda: not any(alive(worker) for worker in workers), 15)


def test_an_embedded_redis_that_dies_is_told(tmp_path: Path) -> None:
    with service(tmp_path, 1) as seen:
        with contextlib.closing(Redis.from_url(seen.ask()["redis"])) as redis:
            os.kill(redis.info("server")["process_id"], signal.SIGKILL)
        seen.becomes("embedded_redis_died")
        assert "pid" in seen.ask()


def test_an_app_that_configures_logging_its_own_way_silences_nobody(tmp_path: Path, app_file: Path) -> None:
    app_file.write_text(APP + "\nimport logging.config\nlogging.config.dictConfig({'version': 1})\n"
        "@app.get('/boom')\ndef boom(): raise RuntimeError('loud')\n")  # fmt: skip
    with service(tmp_path, 1) as seen:
        assert seen.ask("/boom")["status"] == 500
        [event] = seen.becomes("unhandled_exception")
        assert "loud" in event["exception"]


def test_a_loop_that_never_comes_back_is_ended_at_the_request_timeout(tmp_path: Path) -> None:
    with service(tmp_path, REQUEST_TIMEOUT_S="3") as seen, ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(seen.ask, "/block?s=60")
        [event] = seen.becomes("worker_stuck")
        [ended] = seen.becomes("worker_ended")
        assert (ended["worker"], ended["exit_code"]) == (event["worker"], -signal.SIGKILL)
        with pytest.raises((OSError, http.client.HTTPException)):
            blocked.result()
        assert len(seen.serving) == 2


def test_code_that_does_not_start_relieves_nobody(tmp_path: Path, app_file: Path) -> None:
    with service(tmp_path) as seen:
        before = seen.serving
        app_file.write_text("raise RuntimeError('half a deploy')")
        seen.signal(signal.SIGHUP)
        [failed] = seen.becomes("worker_failed")
        assert "half a deploy" in failed["reason"]
        assert "app.py, line 1" in failed["reason"]
        assert seen.ask()["pid"] in before
        app_file.write_text(APP)
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_ended", 2)
        assert seen.ask()["pid"] not in before


def test_no_process_to_be_had_is_waited_out_and_costs_no_worker(tmp_path: Path) -> None:
    """Any reason for which fork or socketpair may fail; here, too few descriptors for one more."""
    import resource

    with service(tmp_path) as seen:
        before = seen.serving
        ours = resource.prlimit(seen.pid, resource.RLIMIT_NOFILE)
        open_files = len(list(Path(f"/proc/{seen.pid}/fd").iterdir()))
        resource.prlimit(seen.pid, resource.RLIMIT_NOFILE, (open_files, ours[1]))
        seen.signal(signal.SIGHUP)
        failed = seen.becomes("worker_failed")[0]
        assert failed["reason"] == "a worker cannot be started: Too many open files"
        assert seen.ask()["pid"] in before
        resource.prlimit(seen.pid, resource.RLIMIT_NOFILE, ours)
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_retired", 2)
        assert seen.serving.isdisjoint(before)


def test_workers_that_do_not_stay_are_started_ever_more_slowly() -> None:
    supervisor = Supervisor.__new__(Supervisor)
    pauses = [supervisor._pause(failures) for failures in range(10)]
    assert pauses == [0.0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_as_pid_1_strangers_are_reaped() -> None:
    """In a process of its own: whoever reaps every child would reap those of other tests."""
    script = """
import os, time
from service.supervisor import Supervisor
stranger = os.fork()
if stranger == 0:
    os._exit(7)
supervisor = Supervisor.__new__(Supervisor)
supervisor.workers = []
supervisor._watched = lambda pid: None
for _ in range(500):
    supervisor._bury()
    try:
        os.kill(stranger, 0)  # a zombie still has its pid
    except ProcessLookupError:
        print("reaped")
        break
    time.sleep(0.01)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "reaped\n"


def test_sigusr2_hands_over_in_place_with_the_socket_the_workers_and_redis(tmp_path: Path) -> None:
    with service(tmp_path) as seen, Callers(seen, 4) as callers:
        before, url = seen.serving, seen.ask()["redis"]
        with contextlib.closing(Redis.from_url(url)) as redis:
            redis.set("counted", 7)
            for turn in (1, 2):
                seen.signal(signal.SIGUSR2)
                seen.becomes("worker_ended", 2 * turn)
                assert seen.serving.isdisjoint(before)
                before = seen.serving
            assert seen.ask()["redis"] == url
            assert redis.get("counted") == b"7"
            pid = redis.info("server")["process_id"]
        assert [event["pid"] for event in seen.events("handover")] == [seen.pid, seen.pid]
    assert callers.errors == []
    assert not alive(pid), "the embedded Redis ends with the service"
    assert not Path(url.removeprefix("unix://")).parent.exists()


def test_signals_in_the_middle_of_a_handover_are_not_lost_and_kill_nobody(tmp_path: Path) -> None:
    with service(tmp_path) as seen:
        for _ in range(5):
            seen.signal(signal.SIGUSR2)
            seen.signal(signal.SIGHUP)
            time.sleep(0.1)
        seen.becomes("worker_ended", 2)
        assert "pid" in seen.ask()
        seen.signal(signal.SIGTERM)
        assert seen.ends(20) < 20


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2], ids=["HUP", "USR2"])
@pytest.mark.parametrize("how", ["cwd", "app_dir"])
def test_a_link_to_the_latest_release_is_followed_by_every_deploy(
    tmp_path: Path, app_file: Path, number: signal.Signals, how: str
) -> None:
    current = tmp_path / "current"
    for release in ("first", "second"):
        (tmp_path / release).mkdir()
        text = APP + f"\n@app.get('/release')\ndef release(): return ['{release}', os.path.exists('{release}.txt')]\n"
        (tmp_path / release / "app.py").write_text(text)
        (tmp_path / release / f"{release}.txt").touch()
    app_file.unlink()
    current.symlink_to("first")
    options, where = (["--app-dir", str(current)], tmp_path) if how == "app_dir" else ([], current)
    with service(where, 1, *options, pwd=str(where)) as seen:
        assert seen.ask("/release") == ["first", how == "cwd"]
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").rename(current)
        seen.signal(number)
        seen.becomes("worker_ended")
        assert seen.ask("/release") == ["second", how == "cwd"]


def test_a_handover_that_could_not_start_is_not_begun(tmp_path: Path, app_file: Path) -> None:
    with service(tmp_path) as seen:
        app_file.unlink()
        seen.signal(signal.SIGUSR2)
        [failed] = seen.becomes("handover_failed")
        assert 'no module "app"' in failed["reason"]
        assert "pid" in seen.ask()


def test_a_handover_with_no_interpreter_to_start_is_not_begun(tmp_path: Path) -> None:
    """As while a virtual environment is being rebuilt."""
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    (tmp_path / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (tmp_path / "lib").symlink_to(Path(sys.prefix) / "lib")
    (tmp_path / "bin").mkdir()
    python = python.rename(tmp_path / "bin" / "python")
    with service(tmp_path, python=str(python)) as seen:
        python.unlink()
        seen.signal(signal.SIGUSR2)
        [failed] = seen.becomes("handover_failed")
        assert "No such file" in failed["reason"]
        assert "pid" in seen.ask()


def test_a_stop_that_comes_while_a_handover_is_being_tried_is_obeyed(tmp_path: Path) -> None:
    with service(tmp_path) as seen:
        seen.signal(signal.SIGUSR2)
        time.sleep(0.15)  # the new one is being tried, for some tenths of a second
        seen.signal(signal.SIGTERM)
        assert seen.ends(20) < 20


def test_a_worker_that_never_comes_to_serve_is_ended_and_blocks_no_later_deploy(tmp_path: Path, app_file: Path) -> None:
    with service(tmp_path, START_TIMEOUT_S="3") as seen:
        before = seen.serving
        app_file.write_text("import time; time.sleep(3600)")
        seen.signal(signal.SIGHUP)
        [failed] = seen.becomes("worker_failed")
        assert failed["reason"] == "a worker did not serve within 3 s (ONEQUOTA_START_TIMEOUT_S)"
        seen.signal(signal.SIGHUP)
        time.sleep(1)  # one hangs again
        app_file.write_text(APP)
        seen.signal(signal.SIGHUP)
        seen.becomes("worker_ended", 3)  # the one that hung, and the two of before
        assert seen.ask()["pid"] not in before
        assert len(seen.events("worker_failed")) == 1


def test_a_socket_path_that_a_successor_has_taken_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    arguments = ("run", "app:app", "--app-dir", str(tmp_path), "--uds", str(path), "--workers", "1", "--no-reload")
    (tmp_path / "second").mkdir()
    with onequota(tmp_path, *arguments) as first:
        assert becomes(lambda: "worker_serving" in first.said(), 20)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, timeout=20) as client, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.get, "http://x/wait?s=2")
            time.sleep(0.5)
            first.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with onequota(tmp_path / "second", *arguments) as second:
                assert waiting.result().status_code == 200
                assert first.process.wait(20) == 0
                assert path.exists()
                with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=20) as other:
                    assert other.get("http://x/").status_code == 200
                assert second.process.poll() is None
    assert not path.exists()


def test_sigterm_lets_what_is_under_way_finish(tmp_path: Path) -> None:
    with service(tmp_path, DRAIN_S="10") as seen, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seen.ask, "/wait?s=1")
        time.sleep(0.3)
        seen.signal(signal.SIGTERM)
        assert "pid" in waiting.result()
        assert seen.ends(10) < 8, "nobody waits for a drain that has nothing to wait for"


@pytest.mark.parametrize("path", ["/stream?chunks=1000", "/block?s=60"])
def test_sigterm_ends_within_the_drain_whatever_is_open(tmp_path: Path, path: str) -> None:
    with service(tmp_path, DRAIN_S="3") as seen, contextlib.closing(seen.connect()) as connection:
        connection.request("GET", path)
        time.sleep(0.5)
        seen.signal(signal.SIGTERM)
        assert seen.ends(10) < 4.5, "3 s, and the ends of three processes on a busy machine"


def test_without_a_drain_an_app_still_ends(tmp_path: Path, app_file: Path) -> None:
    app_file.write_text(APP.replace("app = FastAPI()", """
from contextlib import asynccontextmanager
@asynccontextmanager
async def lifespan(app):
    yield
    open("ended", "w").close()
app = FastAPI(lifespan=lifespan)
"""))  # fmt: skip
    with service(tmp_path, 1, DRAIN_S="0") as seen:
        seen.signal(signal.SIGTERM)
        assert seen.ends(10) < 5
    assert (tmp_path / "ended").exists()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with service(tmp_path) as seen, contextlib.closing(seen.connect()) as connection:
        connection.request("GET", "/wait?s=60")
        time.sleep(0.3)
        for _ in range(2):
            os.killpg(seen.pid, signal.SIGINT)
            time.sleep(0.3)
        assert seen.ends(10) < 3


def test_systemd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.settimeout(20)
        arguments = ("run", "app:app", "--port", "0", "--workers", "1", "--no-reload")
        with onequota(tmp_path, *arguments, variables={"NOTIFY_SOCKET": str(path)}) as running:
            assert systemd.recv(100) == b"READY=1"
            running.process.send_signal(signal.SIGHUP)
            assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", systemd.recv(100))
            assert systemd.recv(100) == b"READY=1"
            running.process.send_signal(signal.SIGUSR2)
            assert systemd.recv(100) == b"READY=1"
            running.process.send_signal(signal.SIGTERM)
            assert systemd.recv(100) == b"STOPPING=1"


def test_the_listener_is_inherited_by_nobody_elses_children(tmp_path: Path, app_file: Path) -> None:
    """A program that an app starts would keep the port when the service is gone."""
    probe = "import os; print(*[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if int(n) > 2])"
    app_file.write_text(
        APP
        + f"""
import subprocess, sys
@app.get("/child")
def child():
    run = subprocess.run([sys.executable, "-c", {probe!r}], close_fds=False, capture_output=True, text=True)
    return {{"open": run.stdout}}
"""
    )
    with service(tmp_path, 1) as seen:
        assert "socket:" not in seen.ask("/child")["open"]
