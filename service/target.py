"""What is run, checked before anything starts: the app's name, where it is looked for, its TLS files."""

import importlib.util
import json
import os
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path

from service.errors import ConfigurationError
from service.settings import working_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is run, and where it listens if not on host and port.

    Attributes:
        app: `MODULE:APP`.
        factory: APP is called, without arguments, to make the app.
        service: This is our own service: it cannot work without Redis, and a core more is a worker more.
        app_dir: Directory put first on the import path; None = as it is.
        uds: Path of a unix socket.
        fd: A listening or bound socket that was inherited.
        reload: Restart on changed files; None = in development, when one worker is meant.
    """

    app: str
    factory: bool = False
    service: bool = False
    app_dir: str | None = None
    uds: str | None = None
    fd: int | None = None
    reload: bool | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    ssl_ca_certs: str | None = None

    @property
    def tls(self) -> bool:
        return self.ssl_certfile is not None


SERVICE = Target(app="service.app:create_app", factory=True, service=True, reload=False)


def check(target: Target) -> None:
    """See that it can be meant; put its directory on the import path.

    Raises:
        ConfigurationError: It cannot; one sentence.
    """
    _check_words(target)
    _check_tls(target)
    if target.app_dir is not None:
        # Not resolved: a link to the latest release is followed anew by every worker that starts.
        sys.path.insert(0, os.path.normpath(Path(working_directory(), target.app_dir)))
    _check_module(target.app)


def _check_words(target: Target) -> None:
    module, _, attribute = target.app.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigurationError(f'app "{target.app}": wanted MODULE:APP, for example main:app')
    if target.uds is not None and target.fd is not None:
        raise ConfigurationError("--uds and --fd both say where to listen: leave one out")
    if sys.platform == "win32" and (target.uds is not None or target.fd is not None):
        raise ConfigurationError("--uds and --fd do not exist on Windows: use --host and --port")
    if target.uds is not None and (not target.uds or "\0" in target.uds):
        raise ConfigurationError(f"--uds {json.dumps(target.uds)} is no path: is a variable empty?")
    if target.fd is not None and target.fd < 0:
        raise ConfigurationError(f"--fd {target.fd} is no file descriptor: wanted 0 or more")
    if target.app_dir is not None and not Path(target.app_dir).is_dir():
        raise ConfigurationError(f'--app-dir "{target.app_dir}" is no directory')


def _check_module(app: str) -> None:
    """Only whether it can be found: importing an app is for its workers, who tell what is missing inside."""
    module = app.partition(":")[0]
    name = module.partition(".")[0]
    if name == "service" and not _exists(module):
        raise unloadable(app, 'onequota\'s own package is called "service", and hides yours: call yours differently')
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        raise unloadable(app, f'no module "{name}" in the app directory or among what is installed')


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def unloadable(app: str, reason: str) -> ConfigurationError:
    """The error of an app that cannot be loaded."""
    return ConfigurationError(f'app "{app}" cannot be loaded: {reason}')


def _check_tls(target: Target) -> None:
    if target.ssl_certfile is None:
        if target.ssl_keyfile or target.ssl_ca_certs or target.ssl_keyfile_password:
            raise ConfigurationError("TLS needs a certificate: add --ssl-certfile")
        return
    for option, path in (
        ("--ssl-certfile", target.ssl_certfile),
        ("--ssl-keyfile", target.ssl_keyfile),
        ("--ssl-ca-certs", target.ssl_ca_certs),
    ):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigurationError(f'{option} "{path}" cannot be read')
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A password, even an empty one, keeps OpenSSL from asking for it on the terminal.
        context.load_cert_chain(target.ssl_certfile, target.ssl_keyfile, lambda: target.ssl_keyfile_password or "")
        if target.ssl_ca_certs:
            context.load_verify_locations(target.ssl_ca_certs)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the TLS files do not fit each other or the password: {error}") from None
