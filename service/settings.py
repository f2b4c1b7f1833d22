"""What the deployment says: the only reader of the environment.

Every name is spelled once, here. A value that cannot be meant is a `ConfigurationError` of one line that says
which variable or option, what came and what was wanted; the password of a Redis URL is never part of it.
"""

import ipaddress
import json
import math
import os
import re
import sys
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.errors import ConfigurationError
from service.redis_url import parse_redis_url, redacted

PREFIX = "ONEQUOTA_"

IDENTITY_SECRET = f"{PREFIX}IDENTITY_SECRET"

UNIX_PEERS = "unix:"
"""Among the trusted proxies: whoever connects by a unix socket."""

HANDOVER = f"{PREFIX}HANDOVER"
PROBE = "probe"
"""Value of HANDOVER: start as far as it can be known that it would work, and no further."""

# REDIS_URL of one process without any Redis: exported by the runner when nothing can be embedded.
FAKE_REDIS = "fakeredis://"

_OPTIONS = {"redis_url": "--redis"}  # all other options are called as their field
_SERVERS = {"uvicorn", "gunicorn", "hypercorn", "fastapi", "onequota", "service.cli"}


def _items(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _networks(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(item if item == UNIX_PEERS else str(_network(item)) for item in items)


def _network(item: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    if item == "*" or item.endswith("/0"):
        raise ValueError(
            f"{_quoted(item)} would believe every caller's own word about its address; "
            "name the networks of your proxies, for example 10.0.0.0/8"
        )
    try:
        network = ipaddress.ip_network(item, strict=False)
    except ValueError:
        raise ValueError(f"{_quoted(item)} is no network; write it as 10.0.0.0/8 or fd00::/8") from None
    if ipaddress.ip_interface(item).ip != network.network_address:
        raise ValueError(f"{_quoted(item)} is one address with the size of a network; write {network}")
    return network


def _paths(items: tuple[str, ...]) -> tuple[str, ...]:
    for item in items:
        if not item.startswith("/") or "?" in item:
            raise ValueError(f"{_quoted(item)} is no path; write it as /health")
    return items


def _lowered(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _whole(low: int, high: int | None = None, *, unit: str = "") -> Any:
    """The range of an integer, and the words that name it."""
    until = f"from {low} to {high}" if high is not None else f"of at least {low}"
    return Field(ge=low, le=high, description=f"a whole number{unit and f' of {unit}'} {until}")


def _seconds() -> Any:
    return Field(ge=0, le=86_400, allow_inf_nan=False, description="a number of seconds from 0 to 86400")


class Settings(BaseSettings):
    """The deployment, read once at start-up; equal in the parent and in every worker.

    Attributes:
        redis_url: Where the counters live, see `redis_url`; None = the embedded Redis.
        environment: `production` refuses what is for development.
        host: Address to listen on.
        port: TCP port; 0 = any free one.
        grpc_port: The same, for Envoy's gRPC; None = it is not served. Of `onequota serve` only.
        workers: Processes sharing the port; None = the command decides.
        keep_alive_s: How long an idle connection stays open, seconds.
        backlog: Connections the kernel queues before they are accepted.
        drain_s: How long a worker that was told to stop may still serve what is open, seconds.
        start_timeout_s: How long a worker may take until it serves, else it is ended; 0 = for ever.
        max_requests: Requests after which a worker is replaced, plus up to a tenth at random; 0 = never.
        max_in_flight: Requests a worker serves at once, before their first byte; more are answered 503; 0 = any.
        max_streams: Responses a worker streams at once; more are answered 503; 0 = any.
        max_body_bytes: Largest request body, else 413; 0 = any.
        request_timeout_s: Time to first byte, from the last byte of the request that came, else 504; 0 = for ever.
        stream_idle_s: Longest silence within a response that streams, else it is cut; 0 = for ever.
        header_timeout_s: How long a client may take to send a request's header, seconds; 0 = for ever.
        health_paths: Paths that are never shed.
        redis_timeout_ms: Deadline of one decision, milliseconds.
        on_outage: What limits answer while Redis is away, unless one says otherwise: `local`, `allow` or `deny`.
        hosts: How many hosts share the counters, this one included; `local` divides limits by it.
        trusted_proxies: Networks whose X-Forwarded-For is believed, canonical CIDR; `unix:` = unix sockets.
        limits: File or directory of the catalog; None = there is none. Read by `service.app`.
        limits_kept: Where the last good catalog is kept; said by the runner to its workers.
        deny, allow: Networks and identities that are never, or always, let in.
        ban: Refusals, as a limit, after which somebody is banned; None = nobody is.
        ban_for_s: For how long, seconds.
        newcomers: Identities nobody vouches for that may have counters of their own, a worker; 0 = any number.
        check_limit: Limit string that guards /v1/check per caller's address; read by `service.app`.
        api_keys: Who may ask the service, and for what; None = everybody, everything. Read by `service.callers`.
        miss_limit: Requests without a good key that an address is told so; more are 429.
        open: `serve` may listen where others reach it, without any key.
        log_level: The least grave line that is logged.
        log_format: `json`, or `text` for people; None = json in production.
        log_file: Also log there, rotating; None = to standard error only.
        log_file_mb: Size at which it is rotated, megabytes; five old ones are kept.
        access_log: A line a request; None = the command decides.
        supabase_url, supabase_service_key: Of the Supabase project; None = none.
        supabase_jwt_secret: What its HS256 tokens are signed with; read by `identity.jwt_subject`.
        jwks_url, jwt_issuer: Whose tokens with public keys are believed; None = those of `supabase_url`.
        identity_secret: What digests of API keys are made with; the same for all workers of all hosts.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, populate_by_name=True, hide_input_in_errors=True)

    redis_url: Annotated[str, AfterValidator(parse_redis_url)] | None = Field(
        default=None, validation_alias="REDIS_URL", repr=False
    )
    environment: Annotated[Literal["production", "development"], BeforeValidator(_lowered)] = Field(
        default="development",
        validation_alias=AliasChoices(f"{PREFIX}ENVIRONMENT", "ENVIRONMENT"),
        description=f"production or development; an ENVIRONMENT of your own needs {PREFIX}ENVIRONMENT beside it",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="an address to listen on")
    port: Annotated[int, _whole(0, 65535)] = 8000
    grpc_port: Annotated[int, _whole(0, 65535)] | None = Field(
        default=None, description="a whole number from 0 to 65535"
    )
    workers: Annotated[int, _whole(1, 1024)] | None = Field(
        default=None,
        validation_alias=AliasChoices(f"{PREFIX}WORKERS", "WEB_CONCURRENCY"),
        description="a whole number from 1 to 1024",
    )
    keep_alive_s: Annotated[int, _whole(0, 86_400, unit="seconds")] = 75
    backlog: Annotated[int, _whole(1, 65_535)] = 2048
    drain_s: Annotated[int, _whole(0, 86_400, unit="seconds")] = 20
    start_timeout_s: Annotated[float, _seconds()] = 120
    max_requests: Annotated[int, _whole(0)] = 0
    max_in_flight: Annotated[int, _whole(0)] = 100
    max_streams: Annotated[int, _whole(0)] = 0
    max_body_bytes: Annotated[int, _whole(0, unit="bytes")] = 0
    request_timeout_s: Annotated[float, _seconds()] = 30
    stream_idle_s: Annotated[float, _seconds()] = 60
    header_timeout_s: Annotated[float, _seconds()] = 15
    health_paths: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items), AfterValidator(_paths)] = (
        "/health",
        "/ready",
    )
    redis_timeout_ms: Annotated[int, _whole(1, 60_000, unit="milliseconds")] = 250
    on_outage: Annotated[Literal["local", "allow", "deny"], BeforeValidator(_lowered)] = Field(
        default="local", description="local, allow or deny"
    )
    hosts: Annotated[int, _whole(1, 10_000)] = 1
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items), AfterValidator(_networks)] = ()
    limits: str | None = Field(default=None, min_length=1, description="a path of a file or directory")
    limits_kept: str | None = Field(default=None, min_length=1, description="a path")
    deny: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items)] = ()
    allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_items)] = ()
    ban: str | None = Field(default=None, min_length=1, description="a limit such as 100/minute")
    ban_for_s: Annotated[int, _whole(1, 30 * 86_400, unit="seconds")] = 600
    newcomers: Annotated[int, _whole(0, 10_000_000)] = 100_000
    check_limit: str = Field(default="10000000/minute", min_length=1, description="a limit such as 10000000/minute")
    api_keys: SecretStr | None = Field(default=None, repr=False)
    miss_limit: str = Field(default="30/minute", min_length=1, description="a limit such as 30/minute")
    open: bool = Field(default=False, description="true or false")
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug", "trace"], BeforeValidator(_lowered)
    ] = Field(default="info", description="critical, error, warning, info, debug or trace")
    log_format: Annotated[Literal["json", "text"], BeforeValidator(_lowered)] | None = Field(
        default=None, description="json or text"
    )
    log_file: str | None = Field(default=None, min_length=1, description="a path")
    log_file_mb: Annotated[int, _whole(1, 1_000_000, unit="megabytes")] = 100
    access_log: bool | None = Field(default=None, description="true or false")
    supabase_url: str | None = Field(default=None, validation_alias="SUPABASE_URL", repr=False)
    supabase_service_key: SecretStr | None = Field(default=None, validation_alias="SUPABASE_SERVICE_KEY", repr=False)
    supabase_jwt_secret: SecretStr | None = Field(default=None, validation_alias="SUPABASE_JWT_SECRET", repr=False)
    jwks_url: str | None = Field(default=None, repr=False, description="a URL of a JWKS document")
    jwt_issuer: str | None = Field(default=None, description="the iss of tokens that are believed")
    identity_secret: SecretStr | None = Field(default=None, repr=False, description="a secret")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then the environment; no .env file: what runs is what the process was given."""
        return init_settings, env_settings

    @property
    def production(self) -> bool:
        """Whether what is for development must be refused."""
        return self.environment == "production"

    def as_environment(self) -> dict[str, str]:
        """The variables from which a worker reads these very settings.

        Only what was said: a default stays unsaid, so that no ENVIRONMENT is invented for an app that runs.
        """
        said = {name: getattr(self, name) for name in sorted(self.model_fields_set)}
        return {
            _variables(name)[0]: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in said.items()
            if not isinstance(value, SecretStr)  # it came from the environment, and is there still
            if value is not None
        }


def load(**overrides: Any) -> Settings:
    """The settings: options given (None = not given), else the environment, else the defaults.

    Raises:
        ConfigurationError: One line for all that is wrong.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        sentences = [_sentence(detail, given) for detail in error.errors(include_url=False)]
    raise ConfigurationError("; ".join(dict.fromkeys(sentences)))


def _sentence(detail: ErrorDetails, given: dict[str, Any]) -> str:
    field = _field(str(detail["loc"][0]))
    if field is None:
        return f"{_quoted(detail['loc'][0])} is no setting"
    name = _OPTIONS.get(field, "--" + field.replace("_", "-")) if field in given else _source(field)
    value = given[field] if field in given else os.environ.get(name, detail["input"])
    shown = _quoted(redacted(str(value)) if field == "redis_url" and value else value)
    # A validator of ours has the better sentence; pydantic's own speaks of "input".
    cause = detail.get("ctx", {}).get("error")
    wanted = str(cause) if cause is not None else f"wanted {Settings.model_fields[field].description}"
    return f"{name}={shown}: {wanted}"


def _field(location: str) -> str | None:
    """The field an error speaks of: pydantic says its alias, and not always in capitals."""
    names = {name: field for field in Settings.model_fields for name in (field, *_variables(field))}
    return names.get(location) or names.get(location.upper())


def _variables(field: str) -> list[str]:
    """The environment variables a field is read from; it is exported as the first."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [str(alias) if alias else PREFIX + field.upper()]


def _source(field: str) -> str:
    """The environment variable a field was read from."""
    variables = _variables(field)
    return next((name for name in variables if name in os.environ), variables[0])


def _quoted(value: object) -> str:
    """`value` on one line, at most 80 characters of it, control characters escaped."""
    text = str(value)
    return json.dumps(text if len(text) <= 80 else f"{text[:77]}...")


def redis_url_from_env() -> str | None:
    """REDIS_URL, checked; None when it is not set.

    Raises:
        ConfigurationError: It is set, and cannot be meant.
    """
    value = os.environ.get("REDIS_URL")
    if value is None:
        return None
    try:
        return parse_redis_url(value)
    except ValueError as error:
        raise ConfigurationError(f"REDIS_URL={_quoted(redacted(value) if value else '')}: {error}") from None


def redis_deadline_from_env() -> float | None:
    """ONEQUOTA_REDIS_TIMEOUT_MS in seconds; None when it is not set.

    Raises:
        ConfigurationError: It is set, and is no number of milliseconds.
    """
    name = f"{PREFIX}REDIS_TIMEOUT_MS"
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal() or not 1 <= int(value) <= 60_000:
        wanted = Settings.model_fields["redis_timeout_ms"].description
        raise ConfigurationError(f"{name}={_quoted(value)}: wanted {wanted}")
    return int(value) / 1000


def on_outage_from_env() -> str | None:
    """ONEQUOTA_ON_OUTAGE in lower case, unchecked: whoever goes by it refuses what it does not know; None = not set."""
    value = os.environ.get(f"{PREFIX}ON_OUTAGE")
    return None if value is None else value.strip().lower()


def hosts_from_env() -> int:
    """ONEQUOTA_HOSTS, by default 1.

    Raises:
        ConfigurationError: It is set, and is no number of hosts.
    """
    name = f"{PREFIX}HOSTS"
    value = os.environ.get(name, "1")
    if not value.isdecimal() or not 1 <= int(value) <= 10_000:
        raise ConfigurationError(f"{name}={_quoted(value)}: wanted {Settings.model_fields['hosts'].description}")
    return int(value)


def trusted_proxies_from_env() -> tuple[str, ...]:
    """ONEQUOTA_TRUSTED_PROXIES, split; what is no network is refused by whoever believes them."""
    value = os.environ.get(f"{PREFIX}TRUSTED_PROXIES", "")
    return tuple(item.strip() for item in value.split(",") if item.strip())


class AccessSettings(NamedTuple):
    """What the environment says of who is let in, for a limiter that is not told.

    Attributes:
        deny, allow: Entries, unchecked.
        ban: The limit, unchecked, and for how many seconds; None where ONEQUOTA_BAN is not set.
        newcomers: 0 where it is not set.
    """

    deny: tuple[str, ...]
    allow: tuple[str, ...]
    ban: tuple[str, int] | None
    newcomers: int


def access_from_env() -> AccessSettings:
    """ONEQUOTA_DENY, _ALLOW, _BAN, _BAN_FOR_S and _NEWCOMERS.

    Raises:
        ConfigurationError: A number is none, or out of range.
    """
    names = ("deny", "allow", "ban", "newcomers")
    given = {name for name in names if os.environ.get(f"{PREFIX}{name.upper()}")}
    if not given:
        return AccessSettings((), (), None, 0)
    said = load()
    ban = None if said.ban is None else (said.ban, said.ban_for_s)
    return AccessSettings(said.deny, said.allow, ban, said.newcomers if "newcomers" in given else 0)


def supabase_from_env() -> tuple[str | None, str | None]:
    """SUPABASE_URL and SUPABASE_SERVICE_KEY, unchecked; None for each that is not set, or empty."""
    return os.environ.get("SUPABASE_URL") or None, os.environ.get("SUPABASE_SERVICE_KEY") or None


def service_url_from_env() -> str | None:
    """ONEQUOTA_URL, unchecked: the service that commands and clients ask; None when it is not set, or empty."""
    return os.environ.get(f"{PREFIX}URL") or None


def limits_from_env() -> str | None:
    """ONEQUOTA_LIMITS, unchecked: the file of the catalog; None when it is not set, or empty."""
    return os.environ.get(f"{PREFIX}LIMITS") or None


def api_key_from_env() -> str | None:
    """ONEQUOTA_API_KEY, unchecked: what they ask it with; None when it is not set, or empty."""
    return os.environ.get(f"{PREFIX}API_KEY") or None


def jwt_from_env() -> tuple[str | None, str | None, str | None]:
    """(secret of HS256, JWKS URL, issuer) of the tokens that are believed, unchecked; None for each that is not set.

    SUPABASE_JWT_SECRET, ONEQUOTA_JWKS_URL and ONEQUOTA_JWT_ISSUER; the last two are else the ones of SUPABASE_URL.
    """
    secret = os.environ.get("SUPABASE_JWT_SECRET") or None
    keys, issuer = (os.environ.get(f"{PREFIX}{name}") or None for name in ("JWKS_URL", "JWT_ISSUER"))
    project = os.environ.get("SUPABASE_URL")
    if project:
        auth = f"{project.rstrip('/')}/auth/v1"
        issuer = issuer or (auth if keys is None else None)
        keys = keys or f"{auth}/.well-known/jwks.json"
    return secret, keys, issuer


def identity_secret_from_env() -> str | None:
    """ONEQUOTA_IDENTITY_SECRET, unchecked; None when it is not set, or empty."""
    return os.environ.get(IDENTITY_SECRET) or None


def working_directory() -> str:
    """Where this process was started, by the name the shell knows: a link to the latest release stays one."""
    named = os.environ.get("PWD", "")
    try:
        return named if named and Path(named).samefile(".") else str(Path.cwd())
    except OSError:
        return str(Path.cwd())


def notify_socket() -> str | None:
    """Where systemd listens; None where there is none."""
    return os.environ.get("NOTIFY_SOCKET") or None


def wants_no_colours() -> bool:
    """What the user says of colours in a terminal (no-color.org), and what a terminal says of itself."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def take_handover() -> str | None:
    """What this process left to itself before exec, or PROBE: see `server`. Taken out, for no worker may see it."""
    return os.environ.pop(HANDOVER, None)


def default_workers() -> int:
    """Workers of a server that was told nothing: one a core; two on one core, so that one can be replaced."""
    return max(2, usable_cores()) if sys.platform != "win32" else 1


def usable_cores() -> int:
    """Cores this process may keep busy: its affinity, cut to its cgroups' quota, rounded down, at least 1."""
    cores: float = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.floor(min(cores, _cgroup_cores())))


def _cgroup_cores(groups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPU quota in cores, infinite when there is none. A parent's quota binds its children."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return math.inf
    quotas = [math.inf]
    for _, controllers, path in lines:
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A v1 hierarchy is mounted under its controllers' names; the unified one (v2) has none.
        for mount in (groups, *(groups / name for name in (controllers, "cpu", "unified") if name)):
            group = PurePath(path.strip("/"))
            quotas += [_quota(mount / part) for part in (group, *group.parents)]
    return min(quotas)


def _quota(group: Path) -> float:
    """The quota of one cgroup, in cores: `cpu.max` of v2, or the two files of v1."""
    try:
        if (group / "cpu.max").is_file():
            quota, period = (group / "cpu.max").read_text().split()[:2]
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota.isdigit() and int(period) else math.inf
    except (OSError, ValueError):
        return math.inf


def several_workers() -> int | None:
    """How many processes run this app, as far as this one can tell; None = it cannot.

    ONEQUOTA_WORKERS (our runner sets it), else what the server that started this process was told on its
    command line (Linux; uvicorn, gunicorn, hypercorn, fastapi), else WEB_CONCURRENCY, which that overrules.
    """
    ours = _counted(os.environ.get(f"{PREFIX}WORKERS"))
    told = _told(_parent_command()) or _told(["gunicorn", *os.environ.get("GUNICORN_CMD_ARGS", "").split()])
    return ours or told or _counted(os.environ.get("UVICORN_WORKERS")) or _counted(os.environ.get("WEB_CONCURRENCY"))


def _counted(value: str | None) -> int | None:
    return int(value) if value and value.strip().isdecimal() else None


def _parent_command() -> list[str]:
    try:
        return Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _told(command: list[str]) -> int | None:
    """The worker count in the command line of an ASGI server, `--workers N`, `--workers=N`, `-w N`, `-wN`."""
    if not any(PurePath(word).name in _SERVERS for word in command[:4]):
        return None
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word in {"--workers", "-w"}:
            return _counted(following)
        if match := re.fullmatch(r"(?:--workers=|-w=?)(\d+)", word):
            return _counted(match[1])
    return None
