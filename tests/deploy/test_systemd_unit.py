"""The committed systemd unit, its environment file, and the numbers they share with the runner."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
from nginx import DEPLOY, replaced
from servers import needs

from service import settings
from service.settings import Settings

UNIT = DEPLOY / "onequota.service"
# What the environment file shows an example of, and not the default.
EXAMPLES = {"api_keys", "environment", "redis_url", "trusted_proxies", "workers", "max_requests", "log_file"}
EXAMPLES |= {"grpc_port", "supabase_url", "supabase_service_key"}
PROGRAM = "/opt/onequota/venv/bin/onequota"


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def variables(*, commented: bool) -> dict[str, str]:
    """What the environment file says; with what it would say if no line were commented out."""
    lines = (DEPLOY / "onequota.env.example").read_text().splitlines()
    pattern = r"#?([A-Z_]+)=(.*)" if commented else r"([A-Z_]+)=(.*)"
    return dict(match.groups() for line in lines if (match := re.fullmatch(pattern, line)))


def test_systemd_finds_nothing_to_complain_of(tmp_path: Path) -> None:
    """In a copy whose program exists: this machine need not have the service installed. Nothing else is changed."""
    verify = needs("systemd-analyze")
    copy = tmp_path / "onequota.service"
    copy.write_text(replaced(UNIT.read_text(), PROGRAM, needs("true")))
    done = subprocess.run(
        [verify, "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_runs_the_service_and_listens_to_the_main_process_only(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["ExecStart"] == f"{PROGRAM} serve"
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]


def test_a_stop_reaches_the_parent_alone_and_outlasts_the_drain(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["KillMode"] == "mixed"
    assert "KillSignal" not in service
    assert int(service["TimeoutStopSec"]) >= Settings().drain_s + 5


def test_one_dead_worker_does_not_stop_the_service(unit: configparser.ConfigParser) -> None:
    assert unit["Service"]["OOMPolicy"] == "continue"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"


def test_what_may_be_written_to_is_what_the_environment_file_names(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["ProtectSystem"] == "strict"
    logs = Path("/var/log") / service["LogsDirectory"]
    assert logs in Path(variables(commented=True)["ONEQUOTA_LOG_FILE"]).parents
    assert "AF_UNIX" in service["RestrictAddressFamilies"].split(), "the notify socket"


def test_the_environment_file_is_that_of_a_production_service(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables(commented=True):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables(commented=False).items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    assert loaded.production
    assert loaded.redis_url is not None
    assert loaded.trusted_proxies == ("127.0.0.1/32",)


@pytest.mark.impatient
def test_every_variable_of_the_environment_file_exists_and_defaults_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    said = variables(commented=True)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    loaded, default = settings.load(), Settings.model_construct()
    known = {name for field in Settings.model_fields for name in settings._variables(field)}
    assert set(said) <= known
    for field in Settings.model_fields:
        if field not in EXAMPLES:
            assert getattr(loaded, field) == getattr(default, field), field


def test_there_is_no_secret_in_it() -> None:
    said = variables(commented=True)
    assert said["SUPABASE_SERVICE_KEY"] == ""
    assert "@" not in said["REDIS_URL"]
