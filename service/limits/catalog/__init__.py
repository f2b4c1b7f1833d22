"""The catalog: limits by name, in a YAML file that reads like the configuration of Envoy's rate-limit service.

    domain: chat                     # a domain a document; several documents a file; or a directory of files
    atomic: true                     # all descriptors of a request pass, or none is charged; false = each by itself
    descriptors:
      - key: user                    # any user, each with a counter of his own
        limits: "20/minute;500/day"
      - key: user
        value: alice                 # but alice
        rate_limit: {unit: minute, requests_per_unit: 100}
        descriptors:                 # within: for the entries user, model
          - key: model
            requests: 1000000
            per: month
            align: calendar
            timezone: Europe/Berlin
            cost_unit: tokens

A request names a domain and, in each descriptor, entries (key, value) in order. Each entry leads one level down, to:

    | order | written                     | matches                                     | of several              |
    | 1     | value: alice                | that value                                  | there can be but one    |
    | 2     | value: files/*              | `*` stands for any text, none included      | the first in the file   |
    | 3     | value_cidr: 10.0.0.0/8      | an address in it, or a network within it    | the smallest network    |
    | 4     | value_regex: v[0-9]+        | if all of the value matches                 | the first in the file   |
    | 5     | no value                    | any value                                   | there can be but one    |

Regular expressions are RE2's: linear in the value, so no backreferences and no looking around; `.` is any character.
The way is not gone twice: what an entry led to stays. The rule is that of the last descriptor, if it has one; a request
with more or fewer entries than a rule has levels does not match it. Networks and regular expressions have keys of their
own because `10.0.0.0/8` and `/api/` are values that Envoy sends.

What a descriptor may say, beside `key`, one of the above and `descriptors`:

    | rate_limit: unit, requests_per_unit | second, minute, hour, day, week, month (30 days), year (365 days); in  |
    |                                     | fixed windows aligned to the epoch; 0 = nothing passes                 |
    | rate_limit: unlimited               | everything passes                                                      |
    | limits: "20/minute;500/day"         | instead; windows begin with the first request                          |
    | requests, per, align: calendar,     | instead, or beside limits: an hour, day, week (from Monday), month or  |
    |     timezone (UTC)                  | year of a time zone                                                    |
    | algorithm, burst                    | with rate_limit or limits; as for `Limiter.limit`                      |
    |                                     | algorithm: concurrency makes "3/minute" 3 at once, each held for a     |
    |                                     | minute unless renewed: `POST /v1/leases`; a check only looks           |
    | name, replaces: [{name: ...}]       | in rate_limit, or beside ours: within one request, rules of these      |
    |                                     | names do not count where this one matches                              |
    | share_threshold                     | all values that match (2 to 4 above) share one counter                 |
    | shadow_mode                         | counted, never refused                                                 |
    | quota_mode                          | of a request's descriptors with it, one that passes is enough          |
    | detailed_metric, value_to_metric    | read as Envoy's service reads them; `Match.metric` is the name         |
    | on_outage: allow, deny, local       | what is answered while Redis is away                                   |
    | cost_unit: tokens                   | what a unit is, for people                                             |
    | metadata                            | anything                                                               |

Of a directory its `*.yaml` and `*.yml` are read, by name, no hidden ones and no directories within. Anchors, aliases
and `<<` work. Nothing unknown, nothing twice; what is wrong is told with file, line and column.

Where this differs from Envoy's service: key and value are kept apart (there, key `a_b` is also key `a` with value `b`);
a `*` in a key is refused; `requests_per_unit` must be written, and goes to 10^9; a key in the wrong place is refused,
not ignored.
"""

from service.limits.catalog.calendar import PERIODS, Calendar
from service.limits.catalog.catalog import LARGEST_BYTES, Catalog, parse, parse_all
from service.limits.catalog.faults import MOST_FLAWS, Flaw, InvalidCatalog, Place
from service.limits.catalog.kept import Kept
from service.limits.catalog.live import Live, Still, load
from service.limits.catalog.rules import UNITS_S, Descriptor, Domain, Entry, Match, Rule

__all__ = [
    "LARGEST_BYTES",
    "MOST_FLAWS",
    "PERIODS",
    "UNITS_S",
    "Calendar",
    "Catalog",
    "Descriptor",
    "Domain",
    "Entry",
    "Flaw",
    "InvalidCatalog",
    "Kept",
    "Live",
    "Match",
    "Place",
    "Rule",
    "Still",
    "load",
    "parse",
    "parse_all",
]
