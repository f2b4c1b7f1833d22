"""What the commands of `cli.py` do: each asks, makes a document, and has it shown.

    asking.py      whom a command asks: a running service, or the Redis that services count in
    checking.py    onequota check
    descending.py· which descriptors of a catalog a request meets, and why the others do not hold
    explaining.py  onequota explain --domain
    routes.py      the limits of an app, route by route, and why others do not hold
    standing.py    where they stand for a key
    tracing.py     onequota explain MODULE:APP
    app_tree.py    onequota limits MODULE:APP
    catalog_tree.py  onequota limits FILE
    access_log.py· lines of an access log, by whichever format
    replaying.py   onequota explain --replay: what other limits would have refused
    reporting.py   and how that is told
    validating.py  onequota validate
    resetting.py   onequota reset
    doctor.py      onequota doctor
    screen.py      text for people, one line of JSON for programs, once or again and again
    words.py     · what both say alike

Exit codes: 0 allowed or good, 1 refused or not good, 2 it could not be done, with one line on standard error.
"""
