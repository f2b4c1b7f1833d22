"""A catalog: text in, frozen values out; then, which rule a request's descriptor matches. Pure."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from service.limits.catalog.faults import Enough, Faults, InvalidCatalog, Place
from service.limits.catalog.limiting import Known
from service.limits.catalog.nodes import Reader, decoded, documents, let_go
from service.limits.catalog.reading import Reading
from service.limits.catalog.rules import Descriptor, Domain, Entry, Match, Rule

LARGEST_BYTES = 64 * 2**20
"""Of all files of a catalog together."""

_ALIASED = 100_000
"""Mappings that aliases may add to those that are written."""


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """All domains.

    Attributes:
        domains: By name, in file order.
        version: Of the content: 12 hexadecimal digits; equal bytes, equal version.
    """

    domains: Mapping[str, Domain]
    version: str

    def walk(self, domain: str, entries: Iterable[Entry]) -> tuple[Descriptor, ...]:
        """The descriptors that match the entries one after the other, as far as there are some.

        Each entry is decided for itself and for good, as Envoy's service does it: where an exact value leads to a
        place without children, the descriptor without value beside it is not tried.
        """
        steps: list[Descriptor] = []
        found = self.domains.get(domain)
        if found is None:
            return ()
        level = found.index
        for key, value in entries:
            branch = level.get(key)
            if branch is None:
                break
            step = branch.exact.get(value)
            if step is None:
                step = branch.other(value)
                if step is None:
                    break
            steps.append(step)
            level = step.index
        return tuple(steps)

    def match(self, domain: str, entries: Sequence[Entry]) -> Match | None:
        """The rule for one descriptor of a request; None = nothing limits it.

        Nothing does where the domain is unknown, where the entries lead to no rule, and where they go on behind one:
        a descriptor matches at its own depth only.
        """
        steps = self.walk(domain, entries)
        if not steps or len(steps) != len(entries) or (rule := steps[-1].rule) is None:
            return None
        if any(step.share_threshold for step in steps):
            pairs = zip(entries, steps, strict=True)
            return Match(
                rule, tuple((key, step.value if step.share_threshold else value) for (key, value), step in pairs), steps
            )
        return Match(rule, tuple(entries), steps)

    def match_all(self, domain: str, descriptors: Iterable[Sequence[Entry]]) -> tuple[Match | None, ...]:
        """The rules for all descriptors of a request, in their order; None also for a rule that another one replaces.

        A rule that is unlimited replaces too, but is not replaced; two that name each other both go.
        """
        found = [self.match(domain, entries) for entries in descriptors]
        replaced = {name for match in found if match is not None for name in match.rule.replaces}
        if not replaced:
            return tuple(found)
        return tuple(
            None if match is not None and match.rule.name in replaced and not match.rule.unlimited else match
            for match in found
        )

    def rules(self) -> Iterator[Rule]:
        """All rules, in file order."""
        for domain in self.domains.values():
            yield from domain.rules()


def parse(text: str | bytes, file: str = "limits.yaml") -> Catalog:
    """The catalog of one text. Raises InvalidCatalog, in which `file` is how it is called."""
    return parse_all([(file, text)])


def parse_all(sources: Sequence[tuple[str, str | bytes]]) -> Catalog:
    """The catalog of several files, (name, content) each. Raises InvalidCatalog naming all that is wrong."""
    size = sum(len(content) for _, content in sources)
    if size > LARGEST_BYTES:
        raise InvalidCatalog.at(Place(sources[0][0]), f"more than {LARGEST_BYTES} bytes, the most a catalog has")
    faults = Faults()
    domains: dict[str, Domain] = {}
    known: Known = {}
    try:
        for file, content in sources:
            for domain in _read(file, content, faults, known):
                if (first := domains.setdefault(domain.name, domain)) is not domain:
                    faults.add(domain.place, f'a second domain "{domain.name}"; the first is at {first.place}')
    except Enough:
        pass
    faults.check([file for file, _ in sources])
    return Catalog(domains, version_of(content for _, content in sources))


def _read(file: str, content: str | bytes, faults: Faults, known: Known) -> Iterator[Domain]:
    try:
        found = documents(decoded(content, file), file)
        if not found.roots:
            faults.add(Place(file, 1, 1), "the file is empty; wanted domain and descriptors")
        reading = Reading(Reader(file, faults, found.nodes + _ALIASED), known)
        for root in found.roots:
            domain = reading.domain(root)
            if domain is not None:
                yield domain
        let_go(found.roots)
    except InvalidCatalog as error:  # of this file; the others are read all the same
        for flaw in error.flaws:
            faults.add(*flaw)


def version_of(contents: Iterable[str | bytes]) -> str:
    """The version of a catalog with these files, whatever they are called."""
    digest = hashlib.blake2b(digest_size=6)
    for content in contents:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
