"""onequota reset: forget what was counted for a key."""

from rich.text import Text

from service.commands.asking import Counters
from service.commands.screen import Shown
from service.commands.words import plural
from service.limits.engine import Engine


def reset(counters: Counters, key: str, prefix: str = "") -> Shown:
    """Forget all counters of a key, whatever they limit.

    Args:
        counters: In which Redis.
        key: As it was charged: an address, `alice`, or of a domain its counter, as `explain` shows it.
        prefix: Of the app's keys, `Limiter(key_prefix=)`.

    Raises:
        StoreUnavailable: The Redis cannot be reached.
    """

    async def forget(engine: Engine) -> int:
        return await engine.forget(prefix, key)

    count = counters.run(forget)
    text = Text.assemble((f"{plural(count, 'counter')} forgotten", "green" if count else "yellow"), f" of {key}")
    if not count:
        text.append("; is it the key as it was charged? explain and limits --key show where it stands", "dim")
    return Shown(text=text, document={"key": key, "forgotten": count})
