"""The table: what must hold under faults, bad input and attack, and what measures it. One row a promise.

To add a row, or a scenario to one: a function of a `Size` that answers a `Finding`, and its place here.
"""

from bench.trust import callers, counts, doors, floods, input, keys, outages, secrets, simulated, slow
from bench.trust.finding import Row
from bench.trust.proven import Proof

CLUSTER = "tests/faults/test_cluster.py"

ROWS: tuple[Row, ...] = (
    Row(
        key="workers",
        fault="8 worker processes, 200,000 decisions, a limit of 10,000",
        promise="exactly 10,000 admitted",
        scenarios=(counts.workers,),
    ),
    Row(
        key="mixed",
        fault="Several limits mixed, 50,000 requests at once",
        promise="as many pass as the tightest limit admits; refusals change no counter",
        scenarios=(counts.mixed,),
    ),
    Row(
        key="twin",
        fault="Random operations, and clocks that are set back, against the pure twins",
        promise="no divergence",
        scenarios=(
            Proof(
                tests=("tests/contract/test_parity.py",),
                how="A hypothesis state machine asks script and twin the same and compares every number, on every "
                "redis-server there is and on fakeredis.",
                least=4,
                options=("--times", "3"),
            ),
        ),
    ),
    Row(
        key="flush",
        fault="SCRIPT FLUSH every 100 ms under load",
        promise="no errors, exact",
        scenarios=(counts.flushed,),
    ),
    Row(
        key="away",
        fault="Redis refuses connections, is stopped, or is behind a black hole, 30 s, each outage policy",
        promise="first answer within the deadline + 10 ms, then 5 ms; no 500; routes without limits unaffected",
        scenarios=(outages.away,),
    ),
    Row(
        key="flaps",
        fault="Redis flaps: 1 s away, 1 s there, 60 times",
        promise="at most twice the limit in a window; as many connections a second as workers",
        scenarios=(outages.flaps,),
    ),
    Row(
        key="lost",
        fault="Replies are lost after their commands were carried out",
        promise="each decision is charged at most once",
        scenarios=(
            outages.lost,
            Proof(
                tests=("tests/faults/test_network.py",),
                how="The same in an app, on one Redis, a Cluster and behind Sentinels; networks that stall and cut.",
                least=4,
            ),
        ),
    ),
    Row(
        key="full",
        fault="maxmemory is reached, under noeviction",
        promise="the outage policy, not a 500",
        scenarios=(
            outages.full,
            Proof(
                tests=("tests/faults/test_what_redis_refuses.py",),
                how="Whatever else Redis refuses: READONLY, LOADING, BUSY, NOREPLICAS, MISCONF, maxclients, ACL.",
                least=5,
            ),
        ),
    ),
    Row(
        key="cluster",
        fault="A primary of a 6-node Cluster is killed, or hangs, under load",
        promise="back within the node timeout + 3 s; no 500; no READONLY afterwards",
        scenarios=(
            Proof(
                tests=(
                    f"{CLUSTER}::test_a_primary_that_dies_or_hangs_is_replaced_and_only_its_slots_notice",
                    f"{CLUSTER}::test_an_idle_worker_notices_a_failover_at_its_next_ask_and_tells_nobody",
                    f"{CLUSTER}::test_a_member_that_hangs_does_not_keep_a_new_worker_from_finding_the_others",
                ),
                how="Three primaries and their replicas, real processes; callers ask all the while.",
                least=4,
            ),
        ),
    ),
    Row(
        key="reshard",
        fault="Slots are moved under load",
        promise="exact; no CROSSSLOT, MOVED, ASK, TRYAGAIN reaches a caller",
        scenarios=(
            Proof(
                tests=(f"{CLUSTER}::test_slots_that_move_under_load_are_exact_and_nobody_notices",),
                how="Slots go to another primary and back, key by key, while their counters are used up.",
            ),
        ),
    ),
    Row(
        key="sentinel",
        fault="Sentinel failover; a replica is promoted after stalled replication",
        promise="lost charges at most rate x (min-replicas-max-lag + 2 s), with the documented setting",
        scenarios=(
            Proof(
                tests=("tests/faults/test_sentinels.py",),
                how="A primary, its replica and three Sentinels, real processes, under load; the primary dies, hangs, "
                "or is cut off from its replica first.",
                least=2,
            ),
        ),
    ),
    Row(
        key="simulated",
        fault="Crashes, lost replies, partitions, clocks that are set, killed workers, all at once, in virtual time",
        promise="every promise, after every step; the same seed is the same run",
        scenarios=(simulated.seeds,),
    ),
    Row(
        key="disconnects",
        fault="30 % of clients hang up in the middle of a request",
        promise="no answer reaches the wrong caller; no connection leaks",
        scenarios=(callers.disconnects,),
    ),
    Row(
        key="keys",
        fault="Every key, and a million hostile tuples",
        promise="expires within twice its window and a second; at most 128 bytes; no two tuples share one",
        scenarios=(keys.expiry, keys.collisions),
    ),
    Row(
        key="costs",
        fault='Costs -1, limit + 1, 2^53, 2^63, NaN, "1" and the like',
        promise="refused with an error that names the field; nothing changes",
        scenarios=(input.costs,),
    ),
    Row(
        key="description",
        fault="The OpenAPI description and every parser, fuzzed",
        promise="no 5xx, answers as described; a value or the promised error, and no secret told",
        scenarios=(
            Proof(
                tests=("tests/fuzz",),
                how="schemathesis sends what fits the description and what does not, to a service on a real Redis; "
                "hypothesis feeds every parser, and reads back what was written.",
                least=20,
            ),
        ),
    ),
    Row(
        key="spoofed",
        fault="X-Forwarded-For games, duplicate headers, an IPv6 /64 sweep, ::ffff:, //, %2F, trailing slash, HEAD, "
        "method override, host dot; forged tokens and keys",
        promise="no extra admission; nobody else's quota touched",
        scenarios=(
            Proof(
                tests=("tests/limits/identity", "tests/limits/test_hostile_requests.py"),
                how="Tables of hostile headers, tokens and keys, each with who is charged; hostile requests, byte by "
                "byte, through a real server and the whole gate.",
                least=1_900,
            ),
        ),
    ),
    Row(
        key="strangers",
        fault="5 million different identities against a Redis of 64 MB",
        promise="known accounts stay exact; the memory of a worker is flat; the counters of strangers are capped",
        scenarios=(floods.strangers,),
    ),
    Row(
        key="refused",
        fault="A flood of 100,000 requests on a key that is used up",
        promise="not one passes; fewer than 100 calls a second and worker reach Redis",
        scenarios=(floods.refused,),
    ),
    Row(
        key="secrets",
        fault="Secrets everywhere, a CRLF in any input",
        promise="never in logs, answers, Redis keys or tracebacks; a line of the log stays one",
        scenarios=(
            Proof(
                tests=("tests/test_secrets.py", "tests/test_logs.py"),
                how="An app on `onequota run` and the service, over a Redis with a password, logging all they can, are "
                "asked well, badly and so that they fail.",
                least=30,
            ),
            secrets.told,
        ),
    ),
    Row(
        key="api-keys",
        fault="API keys are guessed, weak, or written down",
        promise="at least 128 bits; a digest in the setting is enough, memory has a keyed one; found in constant time; "
        "a miss is limited by address",
        scenarios=(
            Proof(
                tests=("tests/test_callers.py",),
                how="The tests of callers: entropy, digests, scopes, misses by address, closed where others reach.",
                least=10,
            ),
        ),
    ),
    Row(
        key="doors",
        fault="Whoever reaches the port, and looks for admin routes, metrics, a dashboard",
        promise="there are none; what needs a key is closed without; never open on 0.0.0.0 by default",
        scenarios=(doors.closed,),
    ),
    Row(
        key="slow",
        fault="Slowloris, and bodies of 100 MB",
        promise="the others' p99 at most doubles; the memory of a worker is bounded",
        scenarios=(slow.attack,),
    ),
)
