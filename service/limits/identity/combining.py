"""Resolvers put together, so that no two answers meet that mean different people.

`first_of` gives the answers of foreign functions a name, their place: without it whoever is called "203.0.113.7" there
would share the quota of that address. `both` writes the length of each part before it, so that "a" and "bc" are not
"ab" and "c".
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from starlette.requests import HTTPConnection

from service.errors import ConfigurationError, IdentityUnavailable
from service.limits.calling import wants
from service.limits.identity.address import client_address
from service.limits.identity.resolver import Answer, Resolver, Vouched, named, waits

KeyFunction = Callable[..., Any]


def first_of(*functions: KeyFunction) -> "FirstOf":
    """Key function: the first that tells who asks, such as `first_of(jwt_subject(), client_address)`.

    One that cannot tell now (the keys of tokens cannot be had) is passed over too; if nobody after it can, the answer
    is 503 instead of 401.

    Raises:
        ConfigurationError: None are given, or two of one name mean different people.
    """
    return FirstOf(functions)


def both(*functions: KeyFunction, name: str = "both") -> "Both":
    """Key function: all of them together are one identity, such as a user at an address; nobody if one finds nobody.

    Args:
        functions: At least one.
        name: What its identities begin with.

    Raises:
        ConfigurationError: None are given.
    """
    return Both(functions, named(name))


def vouched(function: KeyFunction) -> "OfTheApp":
    """Key function: the same; the app says that clients cannot choose its answers. See `Limiter(newcomers=...)`."""
    return OfTheApp(function)


class FirstOf(Resolver):
    """See `first_of`."""

    def __init__(self, functions: tuple[KeyFunction, ...]) -> None:
        members: list[KeyFunction] = []
        for function in functions:
            members += function.members if isinstance(function, FirstOf) else [function]
        _needs_some("first_of", members)
        means = [(member.name, member.means) for member in members if isinstance(member, Resolver)]
        for name, meant in means:
            if any(other == name and meant != what for other, what in means):
                raise ConfigurationError(
                    f'two resolvers of first_of are called "{name}" and mean different people; give one another name='
                )
        challenges = [getattr(member, "challenge", None) for member in members]
        self.name = "first_of"
        self.members: Sequence[KeyFunction] = members
        self.challenge = challenges[0] if all(challenges) else None
        self.needs_proxies = _needs_proxies(members)
        self.reads_body = _read_bodies(members)
        self._tags = [f"{place}/" if _foreign(member) else "" for place, member in enumerate(members, start=1)]

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        return self._from(0, connection, None)

    def _from(
        self, start: int, connection: HTTPConnection, failed: IdentityUnavailable | None
    ) -> Answer | Awaitable[Answer]:
        """The first answer from `start` on; an awaitable as soon as there is something to wait for."""
        for at in range(start, len(self.members)):
            try:
                answer = _called(self.members[at], connection)
            except IdentityUnavailable as error:
                failed = error
                continue
            if waits(answer):
                return self._after(answer, at, connection, failed)
            found = _told(answer, self._tags[at])
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None

    async def _after(
        self, waited: Awaitable[object], at: int, connection: HTTPConnection, failed: IdentityUnavailable | None
    ) -> Answer:
        found = None
        try:
            found = _told(await waited, self._tags[at])
        except IdentityUnavailable as error:
            failed = error
        if found is not None:
            return found
        rest: Any = self._from(at + 1, connection, failed)
        return await rest if waits(rest) else rest  # type: ignore[no-any-return]


class Both(Resolver):
    """See `both`."""

    def __init__(self, functions: tuple[KeyFunction, ...], name: str) -> None:
        _needs_some("both", functions)
        self.name = name
        self.means = (Both, *map(id, functions))
        self.reads_body = _read_bodies(functions)
        self._members = functions
        self.needs_proxies = _needs_proxies(functions)
        challenges = [getattr(function, "challenge", None) for function in functions]
        self.challenge = next((challenge for challenge in challenges if challenge), None)

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        parts: list[str] = []
        for function in self._members:
            answer = _called(function, connection)
            if waits(answer):
                return self._after(parts, answer, connection)
            if (part := _told(answer, "")) is None:
                return None
            parts.append(part)
        return self._joined(parts)

    async def _after(self, parts: list[str], waited: Awaitable[object], connection: HTTPConnection) -> Answer:
        """`parts`, then what is waited for, then the rest: one after the other, so that each is asked once."""
        if (part := _told(await waited, "")) is None:
            return None
        parts.append(part)
        for function in self._members[len(parts) :]:
            answer = _called(function, connection)
            if (part := _told(await answer if waits(answer) else answer, "")) is None:
                return None
            parts.append(part)
        return self._joined(parts)

    def _joined(self, parts: list[str]) -> str:
        text = f"{self.name}/" + "".join(f"{len(part)}:{part}" for part in parts)
        return Vouched(text) if all(isinstance(part, Vouched) for part in parts) else text


class OfTheApp(Resolver):
    """See `vouched`."""

    def __init__(self, function: KeyFunction) -> None:
        self.name = "vouched"
        self.means = (OfTheApp, id(function))
        self.function = function
        self.challenge = getattr(function, "challenge", None)
        self.needs_proxies = _needs_proxies([function])
        self.reads_body = _read_bodies([function])

    def __call__(self, connection: HTTPConnection) -> Answer | Awaitable[Answer]:
        answer = _called(self.function, connection)
        if waits(answer):
            return self._after(answer)
        return _vouched(answer)

    async def _after(self, waited: Awaitable[object]) -> Answer:
        return _vouched(await waited)


def _called(function: KeyFunction, connection: HTTPConnection) -> object:
    return function(connection) if wants(function) else function()


def _told(answer: object, tag: str) -> str | None:
    """An answer as text, behind its tag; None and False and "" are nobody."""
    if answer is None or answer is False or answer == "":
        return None
    if not tag:
        return answer if isinstance(answer, str) else str(answer)
    return Vouched(f"{tag}{answer}") if isinstance(answer, Vouched) else f"{tag}{answer}"


def _vouched(answer: object) -> str | None:
    found = _told(answer, "")
    return None if found is None else Vouched(found)


def _foreign(function: KeyFunction) -> bool:
    """Whether its answers may be called anything: also as another's."""
    return function is not client_address and (not isinstance(function, Resolver) or isinstance(function, OfTheApp))


def _needs_some(what: str, functions: Sequence[KeyFunction]) -> None:
    if not functions or not all(callable(function) for function in functions):
        raise ConfigurationError(f"identity.{what} takes key functions, such as {what}(identity.client_address)")


def _read_bodies(functions: Iterable[KeyFunction]) -> bool:
    return any(
        function is not client_address and getattr(function, "reads_body", True) and wants(function)
        for function in functions
    )


def _needs_proxies(functions: Iterable[KeyFunction]) -> bool:
    return any(getattr(function, "needs_proxies", False) for function in functions)
