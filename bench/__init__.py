"""Measurements that back the claims: what a limited request costs, whether the count is exact, and who is hung up on.

python -m bench tax      # CPU a request: no limiter, stock slowapi, ours
python -m bench service # CPU an answer of the service: one check, a thousand at once; beside them a bare ASGI handler
python -m bench exact    # many requests through many processes: exactly the limit is admitted
python -m bench hangups  # client errors while workers come and go: stock uvicorn, ours; Node keep-alive clients
python -m bench simulate # whole fleets in virtual time, with all that can go wrong: a seed is a run
python -m bench soak     # a real service for minutes or hours, workers and Redis that come and go
python -m bench trust    # what must hold under faults, bad input and attack: every row of docs/trust.md
"""
