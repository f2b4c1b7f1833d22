"""onequota: one quota for every worker.

How a request travels, room by room. A refusal leaves at the shield or at the gate: before the body is read, before
validation, before dependencies.

    socket → shield → gate ─────────────────────────────────────────────→ route → response
             guard    │ match:     which route will take it (limits/match.py)      ↑ headers
             shedding │ identity:  who asks (limits/identity/)                     │
             deadline │ plan:      which limits apply, compiled once per route (limits/plan.py)
                      │ engine:    one script, all limits, all or nothing ⇄ Redis  │
                      └ decision:  allowed? remaining, reset, retry ───────────────┘

    cli.py          the commands; no logic
      commands/     what they do: check, explain, limits, validate, reset, doctor
    settings.py     the only reader of the environment
      redis_url.py  a Redis URL: read, checked, shown without its password
    server.py       the runner: what is asked for, checked, wired, announced, handed over
      target.py     what is run
      listener.py   the one socket all workers share; another for gRPC
      supervisor.py the parent: starts workers, replaces what is due, dead or stuck
        child.py    one worker, seen from there; what survives a handover
        systemd.py  what systemd is told
      worker.py     one process: uvicorn, its heartbeat and its gentle end; the only file on uvicorn
    shield.py       the outermost middleware: guard, deadlines, load shedding
      exchange.py   one request and its response, as the app and the shield see it
      cancelling.py ending what runs out of time, threads included
      request_id.py the client's or ours, in logs and answers
    database/       the Supabase client: one per process
    logs.py         events, one line each; the only file that names structlog
    status.py       what the parent tells its workers of the whole service
    grpc/           gRPC beside HTTP in every worker: a door on a shared socket, a server behind it (an extra)
    app.py          create_app(settings): the service, wired
    callers.py      who may ask it, and for what: API keys
    routes/         what the service answers: one noun a file
      raw.py        hot routes: answered before the framework sees them
    errors.py       one tree of errors, and problem+json
    client/         asks a running service from Python: blocking and awaited, with an answer while it is away
    limits/
      limiter.py    slowapi's Limiter, awaited; the only file that names slowapi
      direct.py     what an app asks it by itself: check, refund, reserve and settle, lease
      gate.py       the middleware: walks the way above and decides nothing itself
      decorator.py  the same where no gate stands: wrapped functions, Depends(limiter.quota(...))
      passage.py    what both do with one request: charge it, let it through with headers, or refuse it
      held.py       units of concurrency: held while a request or a block runs, renewed, released
      settling.py   what a request was charged by an estimate becomes what it cost
      reservation.py  an estimate charged now, settled or released later, on any worker
      ticket.py   · the id of a reservation: unguessable, and it says itself what it is about
      match.py      request → route, known before the framework routes
      identity/     request → who asks: address, API key, token, header, and combinations; trusted proxies
      calling.py  · how a user's function is called
      access/       who is let in before anything is counted: lists, bans, newcomers
      board.py      what workers tell each other
      plan.py     · (route, method) → charges
      engine.py     charges → decision, per event loop
        lane.py     one queue and its one call under way: shared calls, deadlines
        outage.py   the breaker: whether the store is asked at all
        fallback.py what is answered while it is away: each limit's own policy
        share.py  · this worker's share of a limit; spent.py keeps what its slot has spent of it
        denials.py  refusals repeated for a moment, so that a flood costs Redis nothing
        spread.py   the counters are on several servers: a lane for each; asks that span them, in turn
      decision.py · frozen values: Ask, Charge, Standing, Decision
      limit.py    · a limit, valid by construction; the notation
      headers.py  · decision → header pairs
      allowance.py  limits by address on our own routes, charged in advance
      asks.py     · asks as they travel to a service that keeps another process's counters
      token.py    · idempotency tokens: what is asked again is answered again, and charged once
      keys.py     · the only speller of Redis keys
      policy.py     (domain, descriptors) → which limits, asked how; the verdict
      envoy.py    · what Envoy's rate-limit service asks and is answered, however it is written
      catalog/    · limits by name, from a file of Envoy's form; live.py reads and watches it
      algorithms/   one .lua each + its pure twin; decide.lua joins them into one script
      stores/       how counters are opened: Redis by URL, Sentinels, a Cluster, embedded, fakeredis, this process
      testing.py    a pytest plugin for apps that use the limiter

Rooms marked · are pure: no clock, socket, environment. Imports point inward: routes → limits → algorithms.
"""
