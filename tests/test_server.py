"""What the runner decides, where it listens and what it says; running it is in test_cli."""

import errno
import json
import os
import socket
import sys
from pathlib import Path

import pytest
from uvicorn.importer import ImportFromStringError

from service import server
from service.errors import ConfigurationError, InvalidLimit
from service.server import SERVICE, Banner, Plan, Target, plan
from service.settings import Settings

RUN = Target(app="main:app")
REDIS = "redis://h"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ONEQUOTA_") or name in {"REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY"}:
            monkeypatch.delenv(name)


def settled(production: bool = False, workers: int | None = None, redis_url: str | None = None) -> Settings:
    environment = "production" if production else "development"
    return Settings(environment=environment, workers=workers, redis_url=redis_url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "settings", "planned"),
    [
        (SERVICE, settled(), (4, False, True)),
        (SERVICE, settled(workers=1), (1, False, True)),
        (SERVICE, settled(redis_url=REDIS), (4, False, False)),
        (SERVICE, settled(production=True, redis_url=REDIS), (4, False, False)),
        (RUN, settled(), (1, True, True)),
        (RUN, settled(workers=1), (1, True, True)),
        (RUN, settled(workers=3), (3, False, True)),
        (RUN, settled(redis_url=REDIS), (1, True, False)),
        (RUN, settled(production=True), (4, False, False)),
        (RUN, settled(production=True, workers=1), (1, False, False)),
        (Target(app="main:app", reload=False), settled(), (1, False, True)),
        (Target(app="main:app", reload=True), settled(production=True), (1, True, False)),
    ],
)
def test_workers_reloading_and_redis_are_decided_from_what_was_said(
    target: Target, settings: Settings, planned: tuple[int, bool, bool]
) -> None:
    workers, reload, embed = planned
    assert plan(settings, target, default=4) == Plan(workers=workers, reload=reload, embed=embed)


@pytest.mark.parametrize(
    ("target", "settings", "told"),
    [
        (Target(app="m:a", reload=True), settled(workers=2), "reload works with one worker, and 2 are"),
        (SERVICE, settled(production=True), "set REDIS_URL"),
        (SERVICE, settled(production=True, workers=1, redis_url="fakeredis://"), "set REDIS_URL"),
        (SERVICE, settled(redis_url="fakeredis://"), "cannot be shared by 4 workers"),
        (RUN, settled(workers=2, redis_url="fakeredis://"), "cannot be shared by 2 workers"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_together_is_refused_with_a_sentence(
    target: Target, settings: Settings, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        plan(settings, target, default=4)


def test_with_nothing_to_embed_one_worker_runs_on_fakeredis_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "find_binary", lambda: None)
    with server._redis(settled(), Plan(workers=4, reload=False, embed=True)) as redis:
        assert redis.url == "fakeredis://"
        assert redis.warning is not None
        assert "one worker on fakeredis" in redis.warning


def test_a_redis_that_was_given_is_described_without_its_password() -> None:
    settings = settled(redis_url="redis://u:hunter2@127.0.0.1:1/1")
    with server._redis(settings, Plan(workers=4, reload=False, embed=False)) as redis:
        assert (redis.url, redis.described) == ("redis://u:hunter2@127.0.0.1:1/1", "redis://u:***@127.0.0.1:1/1")


def test_a_redis_that_does_not_answer_is_warned_of_without_its_password(redis_server) -> None:
    """The service starts all the same: Redis may come later."""
    assert server._silence(redis_server.url) is None
    told = server._silence("redis://u:hunter2@127.0.0.1:1/1")
    assert told is not None
    assert "redis://u:***@127.0.0.1:1/1 does not answer" in told
    assert "hunter2" not in told


BODY = """-H 'content-type: application/json' -d '{"key":"alice","limits":"10/minute"}'"""


@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000/v1/check"),
        ("http://0.0.0.0:81", "localhost:81/v1/check"),
        ("http://[::]:81", "localhost:81/v1/check"),
        ("http://[::1]:81", "'[::1]:81/v1/check'"),
        ("unix:/run/a b.sock", "--unix-socket '/run/a b.sock' localhost/v1/check"),
    ],
)
def test_the_curl_line_names_the_true_place(where: str, place: str) -> None:
    assert server._curl(where) == f"curl -s {place} {BODY}"


def test_the_banner_is_lines_for_people_and_one_line_for_programs() -> None:
    banner = Banner(
        url="http://127.0.0.1:8000",
        redis="embedded redis 7.0.15, for development",
        workers=2,
        reload=False,
        curl="curl -s 127.0.0.1:8000/v1/check",
        warning=None,
    )
    assert banner.text().splitlines() == [
        "listening  http://127.0.0.1:8000",
        "redis      embedded redis 7.0.15, for development",
        "workers    2, sharing one quota",
        "try        curl -s 127.0.0.1:8000/v1/check",
    ]
    assert "\n" not in banner.json()
    assert json.loads(banner.json())["workers"] == 2


def test_two_servers_cannot_take_one_port_even_before_their_workers_are_up() -> None:
    with server._bound("127.0.0.1", 0, 16) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            server._bound("127.0.0.1", port, 16)
    assert str(caught.value) == (
        f"port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --port"
    )


def test_a_client_that_comes_before_the_workers_waits_and_is_not_refused() -> None:
    with (
        server._bound("127.0.0.1", 0, 16) as listener,
        socket.create_connection(listener.getsockname(), timeout=1),
    ):
        pass


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "x"), "port 80 on h is not permitted to this user: choose one from 1024 on"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "host h is no address of this machine"),
        (socket.gaierror(-2, "x"), 'host "h" is not known'),
        (OSError(errno.ENOBUFS, "no buffers"), "cannot listen on port 80 of h: no buffers"),
    ],
)
def test_a_port_that_cannot_be_taken_is_one_sentence(error: OSError, told: str) -> None:
    assert told in server._why_not(error, "h", 80)


def test_a_host_that_is_not_of_this_machine_is_one_sentence() -> None:
    with pytest.raises(ConfigurationError, match=r"host 192\.0\.2\.1 is no address of this machine"):
        server._bound("192.0.2.1", 0, 16)


unix = pytest.mark.skipif(sys.platform == "win32", reason="unix sockets")


@unix
def test_a_unix_socket_left_behind_is_replaced_and_one_in_use_or_a_file_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    server._bound_to_path(path, 16).close()  # closing leaves the file
    with (
        server._bound_to_path(path, 16),
        pytest.raises(ConfigurationError, match=r'cannot listen on --uds ".*": something else is there'),
    ):
        server._bound_to_path(path, 16)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigurationError, match="something else is there"):
        server._bound_to_path(str(tmp_path / "file"), 16)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (Target(app="main"), 'app "main": wanted MODULE:APP'),
        (Target(app=":app"), "wanted MODULE:APP"),
        (Target(app=".main:app"), "wanted MODULE:APP"),
        (Target(app="src/main:app"), "wanted MODULE:APP"),
        (Target(app="m:a", uds="/s", fd=3), "--uds and --fd both say where to listen"),
        (Target(app="m:a", app_dir="/nowhere/at/all"), '--app-dir "/nowhere/at/all" is no directory'),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(target: Target, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        server._check_target(target)


@pytest.mark.parametrize("option", [{"uds": "/s"}, {"fd": 3}])
def test_windows_has_neither_uds_nor_fd(monkeypatch: pytest.MonkeyPatch, option: dict[str, object]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match="do not exist on Windows"):
        server._check_target(Target(app="m:a", **option))  # type: ignore[arg-type]


def test_tls_files_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("nonsense")
    certificate = str(tmp_path / "c.pem")
    for target, told in (
        (Target(app="m:a", ssl_keyfile=certificate), "add --ssl-certfile"),
        (Target(app="m:a", ssl_certfile="/no"), '--ssl-certfile "/no" cannot be read'),
        (
            Target(app="m:a", ssl_certfile=certificate, ssl_keyfile="/no"),
            '--ssl-keyfile "/no" cannot be read',
        ),
        (Target(app="m:a", ssl_certfile=certificate), "the TLS files do not fit each other"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            server._check_tls(target)


def test_the_password_of_a_key_is_in_no_repr() -> None:
    assert "hunter2" not in repr(Target(app="m:a", ssl_keyfile_password="hunter2"))


def test_a_module_that_does_not_exist_is_told_and_none_is_imported_to_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "explosive_app.py").write_text("raise SystemExit(1)")
    server._check_module("explosive_app:app")
    with pytest.raises(ConfigurationError, match='app "no_such_app:app" cannot be loaded: no module'):
        server._check_module("no_such_app:app")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_the_reason_of_a_worker_is_one_line_with_the_place_in_the_code() -> None:
    line = server._reason("m:a", raised(KeyError("SECRET\nKEY")))
    assert line.startswith('app "m:a" cannot be loaded: KeyError: ')
    assert f"({__file__}, line " in line
    assert "\n" not in line


def test_our_own_sentences_are_told_as_they_are() -> None:
    assert server._reason("m:a", raised(InvalidLimit('limit "x": what?'))) == 'limit "x": what?'
    missing = ImportFromStringError('Attribute "a" not found in module "m".')
    assert server._reason("m:a", missing) == ('app "m:a" cannot be loaded: Attribute "a" not found in module "m"')


def test_uvicorn_is_configured_as_promised() -> None:
    config = server._config(Settings(workers=3), SERVICE, False)
    assert (config.timeout_keep_alive, config.backlog, config.workers) == (75, 2048, 3)
    assert (config.proxy_headers, config.server_header, config.factory) == (False, False, True)
    assert config.timeout_graceful_shutdown == 20
