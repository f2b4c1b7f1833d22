"""Whole fleets in one process, in no time, the same way every time: workers, a Redis, and all that can go wrong.

A seed is a run. Each worker is a real `Engine` over the real store of a simulated Redis (`network.py`), on an event
loop whose time is virtual (`loop.py`). What goes wrong, and when, is drawn from the seed (`faults.py`); callers ask,
leave, wait as long as they are told, ask again with tokens (`fleet.py`); after each step the promises are looked at
(`ledger.py`). The same seed gives the same run, to the microsecond: `python -m bench simulate --seed 17`.

    loop.py      virtual time
    network.py   the server and the wires
    faults.py    what goes wrong
    fleet.py     workers and callers
    ledger.py    the promises
    bounds.py    what each algorithm may let pass, said without it
    run.py       one seed
"""

from bench.simulation.run import Report, Run, run, simulate

__all__ = ["Report", "Run", "run", "simulate"]
