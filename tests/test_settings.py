"""What the environment and the options may say, and the one line told when they cannot be meant."""

import math
import os
from pathlib import Path

import pytest

from service import settings
from service.errors import ConfigurationError
from service.limits import Limiter, identity
from service.redis_url import parse_redis_url, redacted
from service.settings import (
    default_workers,
    load,
    redis_url_from_env,
    several_workers,
    usable_cores,
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("ONEQUOTA_") or name in {"REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY"}:
            monkeypatch.delenv(name)


def refused(**overrides: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(**overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_nothing_said_is_development_on_port_8000_with_the_embedded_redis() -> None:
    said = load()
    assert (said.redis_url, said.production, said.host, said.port) == (None, False, "127.0.0.1", 8000)
    assert (said.workers, said.keep_alive_s, said.backlog, said.drain_s) == (None, 75, 2048, 20)
    assert (said.redis_timeout_ms, said.trusted_proxies, said.check_limit) == (250, (), "10000000/minute")


def test_the_environment_is_read_and_an_option_overrules_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEQUOTA_PORT", "9000")
    monkeypatch.setenv("ENVIRONMENT", " Production")
    assert (load().port, load().production) == (9000, True)
    assert load(port=9001).port == 9001
    assert load(port=None).port == 9000


def test_a_dotenv_file_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("ONEQUOTA_PORT=1234\nREDIS_URL=redis://elsewhere\n")
    monkeypatch.chdir(tmp_path)
    assert load() == settings.Settings()
    assert load().port == 8000


def test_workers_come_from_the_option_then_our_variable_then_web_concurrency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    assert load().workers == 3
    monkeypatch.setenv("ONEQUOTA_WORKERS", "5")
    assert load().workers == 5
    assert load(workers=7).workers == 7


STAGING = "production or development; an ENVIRONMENT of your own needs ONEQUOTA_ENVIRONMENT beside it"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("ONEQUOTA_PORT", "65536", "a whole number from 0 to 65535"),
        ("ONEQUOTA_PORT", "", "a whole number from 0 to 65535"),
        ("ONEQUOTA_PORT", "80 80", "a whole number from 0 to 65535"),
        ("ONEQUOTA_WORKERS", "0", "a whole number from 1 to 1024"),
        ("WEB_CONCURRENCY", "many", "a whole number from 1 to 1024"),
        ("ONEQUOTA_REDIS_TIMEOUT_MS", "0", "a whole number of milliseconds from 1 to 60000"),
        ("ONEQUOTA_REDIS_TIMEOUT_MS", "60001", "a whole number of milliseconds from 1 to 60000"),
        ("ONEQUOTA_KEEP_ALIVE_S", "-1", "a whole number of seconds from 0 to 86400"),
        ("ONEQUOTA_LOG_LEVEL", "loud", "critical, error, warning, info, debug or trace"),
        ("ONEQUOTA_REQUEST_TIMEOUT_S", "nan", "a number of seconds from 0 to 86400"),
        ("ENVIRONMENT", "staging", STAGING),
    ],
)
def test_a_wrong_value_is_one_line_with_its_variable_the_value_and_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refused() == f'{name}="{value}": wanted {wanted}'


def test_a_wrong_option_is_named_as_the_option() -> None:
    assert refused(port=99999) == '--port="99999": wanted a whole number from 0 to 65535'
    assert refused(redis_url="http://x").startswith('--redis="http://x": wanted redis://')


def test_an_environment_of_the_apps_own_is_overruled_by_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "staging")
    monkeypatch.setenv("ONEQUOTA_ENVIRONMENT", "production")
    assert load().production


def test_the_key_of_the_database_is_in_no_repr_and_never_exported() -> None:
    settings = load(supabase_url="https://x.supabase.co", supabase_service_key="hunter2")
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.as_environment())


@pytest.mark.parametrize("paths", ["health", "/health?x=1"])
def test_a_health_path_that_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch, paths: str) -> None:
    monkeypatch.setenv("ONEQUOTA_HEALTH_PATHS", f"/ready,{paths}")
    assert "is no path; write it as /health" in refused()


def test_all_that_is_wrong_is_told_at_once_and_control_characters_stay_on_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "a\r\nb")
    monkeypatch.setenv("ONEQUOTA_PORT", "x")
    assert refused() == (
        'ENVIRONMENT="a\\r\\nb": wanted production or development; '
        "an ENVIRONMENT of your own needs ONEQUOTA_ENVIRONMENT beside it; "
        'ONEQUOTA_PORT="x": wanted a whole number from 0 to 65535'
    )


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://user:pa%2Fss@10.0.0.1:6380/2?socket_timeout=1", "redis://user:pa%2Fss@10.0.0.1:6380/2?socket_timeout=1"),
        ("REDIS://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("rediss://h", "rediss://h"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("unix://user:secret@/run/redis.sock", "unix://user:secret@/run/redis.sock"),
        ("redis+unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("valkey://h:1/2", "redis://h:1/2"),
        ("valkeys://u:p@h", "rediss://u:p@h"),
        ("fakeredis://", "fakeredis://"),
    ],
)  # fmt: skip
def test_a_redis_url_is_kept_in_the_words_of_redis_py(
    monkeypatch: pytest.MonkeyPatch, url: str, canonical: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert parse_redis_url(url) == load().redis_url == redis_url_from_env() == canonical


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "wanted redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH, and it is empty"),
        ("localhost:6379", 'REDIS_URL="***": wanted redis://'),
        ("redis:hunter2@h", 'REDIS_URL="***": wanted redis://'),
        ("memory://", 'REDIS_URL="memory://": wanted redis://'),
        ("redis://", "it names no host"),
        ("redis://:hunter2@", "it names no host"),
        ("redis://:hunter2@h:99999", '="redis://:***@h:99999": its port is not a number from 0 to 65535'),
        ("redis://:hunter2", 'REDIS_URL="redis://:***": its port is not a number'),
        ("redis://:hunter2@h:port", "its port is not a number"),
        ("redis://u:hunter2@[::1/0", "its host is unreadable"),
        ("redis://u:hunter2@h/zero", 'REDIS_URL="redis://u:***@h/zero": its database is not a number'),
        ("redis://u:hun/ter2@h", "its port is not a number"),
        ("redis://u:p#hunter2@h", "port"),
        ("redis://h\n:1", "it holds a space or a control character"),
        ("unix://run/redis.sock", "a socket has three slashes: unix:///run/redis.sock"),
        ("unix://", "a socket has three slashes"),
        ("redis+sentinel://u:hunter2@h/0", 'REDIS_URL="redis+sentinel://u:***@h/0": it names no service'),
        ("redis+cluster://u:hunter2@h/1", "a Cluster has database 0 only"),
    ],
)  # fmt: skip
def test_a_redis_url_that_cannot_be_meant_is_one_line_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    sentence = refused()
    assert sentence.startswith("REDIS_URL=")
    assert told in sentence
    assert "hunter" not in sentence
    assert "ter2" not in sentence
    with pytest.raises(ConfigurationError) as caught:
        redis_url_from_env()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://user:secret@h:6379/0", "redis://user:***@h:6379/0"),
        ("redis://:se@c/r:et@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://secret@h", "redis://***@h"),
        ("redis://h:secret/0", "redis://h:***/0"),
        ("unix:///run/redis.sock?db=1&password=secret", "unix:///run/redis.sock?db=1&password=***"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("secret", "***"),
    ],
)
def test_a_url_is_shown_without_what_may_be_its_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_the_password_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@h")
    assert "hunter2" not in repr(load()) + str(load())
    with pytest.raises(ValueError, match="port") as caught:
        settings.Settings(redis_url="redis://:hunter2@h:x")
    assert "hunter2" not in str(caught.value)


def test_trusted_proxies_are_networks_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEQUOTA_TRUSTED_PROXIES", "10.0.0.0/8, 192.168.1.7,fd00::/8,")
    assert load().trusted_proxies == ("10.0.0.0/8", "192.168.1.7/32", "fd00::/8")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("*", "would believe every caller's own word about its address"),
        ("10.0.0.0/8,*", "would believe every caller's own word"),
        ("0.0.0.0/0", "would believe every caller's own word"),
        ("::/0", "would believe every caller's own word"),
        ("10.0.0.1/8", '"10.0.0.1/8" is one address with the size of a network; write 10.0.0.0/8'),
        ("proxy.local", '"proxy.local" is no network; write it as 10.0.0.0/8'),
    ],
)
def test_a_proxy_that_is_no_network_or_everyone_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, told: str
) -> None:
    monkeypatch.setenv("ONEQUOTA_TRUSTED_PROXIES", value)
    assert told in refused()


def test_a_proxy_may_connect_by_a_unix_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEQUOTA_TRUSTED_PROXIES", "unix:, 10.0.0.0/8")
    assert load().trusted_proxies == ("unix:", "10.0.0.0/8")


def test_what_tokens_and_keys_are_checked_with_is_read_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SUPABASE_JWT_SECRET", "ONEQUOTA_IDENTITY_SECRET", "ONEQUOTA_JWKS_URL")
    for name in names:
        monkeypatch.setenv(name, "hunter2")
    said = load()
    assert said.supabase_jwt_secret is not None and said.identity_secret is not None
    assert said.supabase_jwt_secret.get_secret_value() == said.identity_secret.get_secret_value() == said.jwks_url
    assert "hunter2" not in repr(said)
    assert said.as_environment() == {"ONEQUOTA_JWKS_URL": "hunter2"}


def test_a_worker_reads_from_the_exported_environment_what_its_parent_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "9")
    monkeypatch.setenv("ONEQUOTA_TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8")
    parent = load(port=9000, host="::1", redis_url="valkey://u:p@h/1", environment="production", workers=3)
    for name, value in parent.as_environment().items():
        monkeypatch.setenv(name, value)
    assert load() == parent


def test_a_default_is_not_exported() -> None:
    assert load(port=9000).as_environment() == {"ONEQUOTA_PORT": "9000"}


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


def test_there_is_at_least_one_core_and_at_least_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(settings, "_cgroup_cores", lambda: 0.5)
    assert (usable_cores(), default_workers()) == (1, 2)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
def test_cores_are_the_affinity_cut_to_the_quota_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    for quota, cores in ((math.inf, 8), (3.9, 3), (12.0, 8)):
        monkeypatch.setattr(settings, "_cgroup_cores", lambda quota=quota: quota)
        assert usable_cores() == cores


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/docker/x\n", {"cpu.max": "400000 100000\n"}, 4),  # the container's own view of its path
        ("4:cpu,io:/x\n", {"cpu,io/x/cpu.cfs_quota_us": "300000", "cpu,io/x/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("3:memory:/x\n", {"memory/x/cpu.max": "100000 100000"}, math.inf),
        ("0::/\n", {"cpu.max": "nonsense"}, math.inf),
    ],
)  # fmt: skip
def test_the_quota_of_a_cgroup_or_of_its_parents_counts_in_cores(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    (tmp_path / "self").write_text(membership)
    assert settings._cgroup_cores(groups, tmp_path / "self") == cores


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert settings._cgroup_cores(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(
    ("command", "workers"),
    [
        ("/v/bin/python /v/bin/uvicorn app:app --workers 4", 4),
        ("python -m uvicorn --workers=4 app:app", 4),
        ("/v/bin/python /v/bin/gunicorn -w 4 -k uvicorn.workers.UvicornWorker app:app", 4),
        ("python gunicorn -w4 app:app", 4),
        ("hypercorn -w 2 app:app", 2),
        ("python /v/bin/fastapi run --workers 3 main.py", 3),
        ("python /v/bin/uvicorn app:app", None),
        ("python /v/bin/uvicorn app:app --workers", None),
        ("bash -w 4", None),
        ("celery --workers 4", None),
        ("", None),
    ],
)
def test_the_command_line_of_the_parent_tells_how_many_workers_there_are(
    monkeypatch: pytest.MonkeyPatch, command: str, workers: int | None
) -> None:
    monkeypatch.setattr(settings, "_parent_command", lambda: [*command.split(" "), ""])
    assert several_workers() == workers


def test_our_variable_goes_before_the_command_line_and_that_before_web_concurrency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    monkeypatch.setattr(settings, "_parent_command", list)
    assert several_workers() == 2
    monkeypatch.setattr(settings, "_parent_command", lambda: ["uvicorn", "--workers", "4"])
    assert several_workers() == 4
    monkeypatch.setenv("ONEQUOTA_WORKERS", "1")
    assert several_workers() == 1


def test_the_parent_of_this_process_can_be_read() -> None:
    assert settings._parent_command() == [] or any(settings._parent_command())


def test_an_apps_limiter_takes_its_deadline_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.redis_deadline_from_env() is None
    monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", "1500")
    assert settings.redis_deadline_from_env() == 1.5
    assert Limiter(key_func=identity.client_address).engine.deadline_s == 1.5
    assert Limiter(key_func=identity.client_address, deadline_s=0.1).engine.deadline_s == 0.1
    for wrong in ("", "0", "1.5", "60001", "soon"):
        monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", wrong)
        with pytest.raises(ConfigurationError, match="wanted a whole number of milliseconds from 1 to 60000"):
            settings.redis_deadline_from_env()
