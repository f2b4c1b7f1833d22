"""Which form of a command is meant, by what was given; what is then to be shown.

check     --domain chat user=alice               explain   MODULE:APP METHOD PATH
          alice --limits 10/minute                         --domain chat user=alice --limits-file FILE
limits    MODULE:APP                                       --replay access.log --limits FILE
          FILE
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.client.question import DomainCheck
from service.commands import (
    app_tree,
    asking,
    catalog_tree,
    checking,
    explaining,
    replaying,
    reporting,
    resetting,
    routes,
    screen,
    tracing,
)
from service.commands.asking import Counters, Whom
from service.commands.screen import Shown
from service.errors import ConfigurationError, InvalidInput
from service.limits.catalog import Catalog, load
from service.settings import limits_from_env, redis_url_from_env

Make = Callable[[], Shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where an app is found.

    Attributes:
        app_dir: Where its module is looked for first.
        factory: Its name is that of a function that makes it.
    """

    app_dir: str = "."
    factory: bool = False


def check(
    words: Sequence[str],
    whom: Whom,
    *,
    domain: str | None,
    limits: str | None,
    limits_file: str | None,
    algorithm: str | None,
    burst: int | None,
    cost: int,
    peek: bool,
) -> Make:
    """One decision. Raises OnequotaError for what cannot be meant."""
    question = asking.question(domain, words, limits, algorithm=algorithm, burst=burst, cost=cost, peek=peek)
    asked = whom.asked()
    if isinstance(asked, Counters) and isinstance(question, DomainCheck):
        file = limits_file or limits_from_env()
        if file is None:
            raise ConfigurationError(
                f'a Redis knows no limits of domain "{question.domain}": pass --limits-file, or ask a service, --url'
            )
        asked = whom.asked(load(file))
    elif limits_file is not None:
        raise ConfigurationError("--limits-file goes with --domain and --redis: a service has its own")
    return lambda: checking.check(asked, question)


def explain(
    words: Sequence[str],
    whom: Whom,
    source: Source,
    *,
    domain: str | None,
    limits_file: str | None,
    key: str | None,
    cost: int,
    replay: str | None,
    descriptors: Sequence[str],
) -> Make:
    """What holds, and why. Raises OnequotaError for what cannot be meant."""
    if replay is not None:
        if words:
            raise InvalidInput("--replay", f'takes its requests from a log: leave out "{words[0]}"')
        catalog = _catalog(limits_file)
        made = [replaying.entries(text) for text in descriptors]
        return lambda: _replay(replay, limits_file or str(limits_from_env()), catalog, _domain(domain, catalog), made)
    if domain is not None:
        catalog = _catalog(limits_file)
        entries = asking.entries(words)
        asked = whom.asked(catalog) if whom.known else None
        return lambda: explaining.explain(catalog, domain, entries, asked, cost)
    if len(words) != 3 or ":" not in words[0]:
        raise InvalidInput(
            "explain", "write MODULE:APP METHOD PATH, or --domain NAME KEY=VALUE…, or --replay LOG --limits FILE"
        )
    name, method, path = words
    if not path.startswith("/"):
        raise InvalidInput("PATH", f'"{path}" begins with no slash; write it as /chat')
    app = routes.load(name, source.app_dir, factory=source.factory)
    return lambda: tracing.explain(app, name, method, path, key, whom.redis)


def limits(what: str | None, whom: Whom, source: Source, *, key: str | None) -> Make:
    """All limits. Raises OnequotaError for what cannot be meant."""
    what = what or limits_from_env()
    if what is None:
        raise InvalidInput("limits", "of what? Name an app, MODULE:APP, or a limits file; or set ONEQUOTA_LIMITS")
    if Path(what).exists():
        catalog = load(what)
        asked = whom.asked(catalog) if key is not None else None
        return lambda: catalog_tree.tree_of(catalog, what, key, asked)
    if ":" not in what:
        raise InvalidInput("limits", f'"{what}" is no file, and no app: an app is MODULE:APP, for example main:app')
    app = routes.load(what, source.app_dir, factory=source.factory)
    return lambda: app_tree.tree_of(app, what, key, whom.redis)


def reset(key: str, redis: str | None, prefix: str) -> Make:
    """Forget a key. Raises ConfigurationError if no Redis is named."""
    url = redis or redis_url_from_env()
    if url is None:
        raise ConfigurationError("in which Redis? Pass --redis URL, or set REDIS_URL, as the services have it")
    counters = Counters(url, None)
    return lambda: resetting.reset(counters, key, prefix)


def _catalog(limits_file: str | None) -> Catalog:
    file = limits_file or limits_from_env()
    if file is None:
        raise ConfigurationError("by which limits? Pass --limits-file FILE, the file that the service is started with")
    return load(file)


def _domain(domain: str | None, catalog: Catalog) -> str:
    if domain is None and len(catalog.domains) != 1:
        raise InvalidInput("--domain", f"which? The file has {', '.join(catalog.domains)}")
    return domain or next(iter(catalog.domains))


def _replay(
    log: str, file: str, catalog: Catalog, domain: str, descriptors: Sequence[tuple[replaying.Entry, ...]]
) -> Shown:
    replay = replaying.Replay(catalog, domain, descriptors)
    with replaying.opened(log) as lines:
        asyncio.run(replay.take(screen.counted(lines, "lines")))
    return reporting.shown(replay, file, domain, catalog)
