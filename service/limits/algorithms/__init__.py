"""The ways to count. To add one: write `x.lua` and `x.py`, add its line to `_REGISTRY`."""

from dataclasses import replace
from functools import cache
from importlib import resources

from service.limits.algorithms.concurrency import CONCURRENCY
from service.limits.algorithms.contract import Algorithm
from service.limits.algorithms.fixed_window import FIXED_WINDOW
from service.limits.algorithms.gcra import GCRA
from service.limits.algorithms.moving_window import MOVING_WINDOW
from service.limits.algorithms.sliding_window_counter import SLIDING_WINDOW_COUNTER

_REGISTRY = (FIXED_WINDOW, MOVING_WINDOW, SLIDING_WINDOW_COUNTER, GCRA, CONCURRENCY)

KNOWN: dict[str, Algorithm] = {
    algorithm.name: replace(algorithm, code=code) for code, algorithm in enumerate(_REGISTRY, start=1)
}
"""By the name users write, in registry order; `code` is the place in the script's table."""

ALGORITHMS = {name: algorithm for name, algorithm in KNOWN.items() if not algorithm.leases}
"""Those that count what comes in a time: what a rate can be counted by."""

TWINS = {algorithm.code: algorithm.twin for algorithm in KNOWN.values()}

_HERE = "--@algorithms"


@cache
def script() -> str:
    """The one script: `decide.lua` with every algorithm's file, and `once.lua`, in its place."""
    folder = resources.files(__name__)
    parts = [
        f"function()\n{(folder / algorithm.lua).read_text(encoding='utf-8')}end,\n" for algorithm in KNOWN.values()
    ]
    whole = (folder / "decide.lua").read_text(encoding="utf-8").replace(_HERE, "".join(parts))
    return whole.replace("--@once\n", (folder / "once.lua").read_text(encoding="utf-8"))
