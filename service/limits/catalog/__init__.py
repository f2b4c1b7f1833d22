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

docs/limits.md says what every key means, how a request is matched, and where this differs from Envoy's service.
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
