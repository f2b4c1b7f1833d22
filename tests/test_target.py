"""What is run is checked before anything starts."""

import sys
from pathlib import Path

import pytest

from service import target
from service.errors import ConfigurationError
from service.target import Target


@pytest.mark.parametrize(
    ("aim", "told"),
    [
        (Target(app="main"), 'app "main": wanted MODULE:APP'),
        (Target(app=":app"), "wanted MODULE:APP"),
        (Target(app=".main:app"), "wanted MODULE:APP"),
        (Target(app="src/main:app"), "wanted MODULE:APP"),
        (Target(app="m:a", uds="/s", fd=3), "--uds and --fd both say where to listen"),
        (Target(app="m:a", uds=""), '--uds "" is no path'),
        (Target(app="m:a", fd=-1), "--fd -1 is no file descriptor"),
        (Target(app="m:a", app_dir="/nowhere/at/all"), '--app-dir "/nowhere/at/all" is no directory'),
    ],
)
def test_a_target_that_cannot_be_meant_is_refused(aim: Target, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        target._check_words(aim)


@pytest.mark.parametrize("option", [{"uds": "/s"}, {"fd": 3}])
def test_windows_has_neither_uds_nor_fd(monkeypatch: pytest.MonkeyPatch, option: dict[str, object]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match="do not exist on Windows"):
        target._check_words(Target(app="m:a", **option))  # type: ignore[arg-type]


def test_tls_files_are_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "c.pem").write_text("nonsense")
    certificate = str(tmp_path / "c.pem")
    for aim, told in (
        (Target(app="m:a", ssl_keyfile=certificate), "add --ssl-certfile"),
        (Target(app="m:a", ssl_certfile="/no"), '--ssl-certfile "/no" cannot be read'),
        (
            Target(app="m:a", ssl_certfile=certificate, ssl_keyfile="/no"),
            '--ssl-keyfile "/no" cannot be read',
        ),
        (Target(app="m:a", ssl_certfile=certificate), "the TLS files do not fit each other"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            target._check_tls(aim)


def test_the_password_of_a_key_is_in_no_repr() -> None:
    assert "hunter2" not in repr(Target(app="m:a", ssl_keyfile_password="hunter2"))


def test_a_module_that_does_not_exist_is_told_and_none_is_imported_to_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "explosive_app.py").write_text("raise SystemExit(1)")
    target._check_module("explosive_app:app")
    with pytest.raises(ConfigurationError, match='app "no_such_app:app" cannot be loaded: no module'):
        target._check_module("no_such_app:app")


def test_an_app_behind_our_own_packages_name_is_told_so() -> None:
    with pytest.raises(ConfigurationError, match=r'package is called "service", and hides yours'):
        target._check_module("service.main:app")
    target._check_module("service.app:create_app")
