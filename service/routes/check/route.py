"""The route: from the request to its answer."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from service.callers import Caller, Callers, forbidden
from service.errors import QUOTA_EXCEEDED, InvalidInput, StoreUnavailable
from service.limits import Limiter
from service.limits.allowance import Allowance
from service.limits.decision import CHARGE, LOOK, Ask, Decision, Token, TokenAsk
from service.limits.passage import fault, problem_response
from service.limits.token import token
from service.routes.check.answer import answer
from service.routes.check.question import MOST_CHARGES, Question, inline, members
from service.routes.raw import Answered, ClientLeft, body_of, check_json, check_method, json_of, say
from service.settings import Settings

LARGEST_BODY_BYTES = 1 << 20
LARGE_BODY_BYTES = 1 << 13
"""From here on a body waits for its turn to be read."""

SMALL = 32
"""Checks that are decided at once, as one is."""

SLICE = 128
"""Charges, and checks, of a large body that are worked on in one turn: as many as one call to Redis takes."""

TURNS = 2
"""Large bodies that are worked on at once in a worker: one while the other waits for Redis. They take turns by the
slice, so that whoever asks for one decision waits for a slice or two, however many large bodies have come before."""


class Check:
    """The hot route.

    Args:
        limiter: Whose engine decides, and who knows addresses behind proxies.
        settings: `check_limit` guards the route per address.
        callers: Who may ask.
    """

    def __init__(self, limiter: Limiter, settings: Settings, callers: Callers) -> None:
        self._limiter = limiter
        self._engine = limiter.engine
        self._callers = callers
        self._guard = Allowance(limiter.engine, settings.check_limit, name="check", scope="r.check")
        self._turns = asyncio.Semaphore(TURNS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._answer(scope, receive)
        except Answered as other:
            await other.response(scope, receive, send)
        except (InvalidInput, StoreUnavailable) as error:
            await fault(error)(scope, receive, send)
        except ClientLeft:
            pass
        else:
            await say(send, body.encode())

    async def _answer(self, scope: Scope, receive: Receive) -> str:
        check_method(scope, "POST")
        headers = scope["headers"]
        caller = self._callers.of(headers)
        if caller is None:
            raise Answered(await self._callers.unknown(scope))
        address = self._limiter.addresses.of(scope)
        if not self._guard.take(address) and (refused := await self._guard.ask(address)) is not None:
            raise self._too_often(refused)
        content_type = idempotency_key = None
        for name, value in headers:
            if name == b"content-type":
                content_type = value
            elif name == b"idempotency-key":
                idempotency_key = value
        check_json(content_type)
        body = await body_of(receive, LARGEST_BODY_BYTES)
        once = None if idempotency_key is None else _Once(idempotency_key, body, caller)
        if len(body) < LARGE_BODY_BYTES:
            document = json_of(body)
        else:
            async with self._turns:
                document = json_of(body)
        checks = members(document)
        if checks is None:
            return answer(await self._decide(_question(document, caller), once))
        return f'{{"results":[{",".join(await self._many(checks, caller, once))}]}}'

    def _decide(self, question: Question, once: "_Once | None") -> "asyncio.Future[Decision]":
        charges, peek = question
        if once is None or peek:
            return self._engine.decide(Ask(charges, LOOK if peek else CHARGE))
        return self._engine.decide(TokenAsk(charges, once.next()))

    async def _many(self, checks: Sequence[Any], caller: Caller, once: "_Once | None") -> list[str]:
        """The answers to many questions, all of which are good."""
        turns = self._turns if len(checks) > SMALL else contextlib.nullcontext()
        questions: list[Question] = []
        for start in range(0, len(checks), SLICE):
            async with turns:
                for index, check in enumerate(checks[start : start + SLICE], start):
                    questions.append(_question(check, caller, f"checks[{index}]."))
        charges = sum(len(question.charges) for question in questions)
        if charges > MOST_CHARGES:
            raise InvalidInput("checks", f"{charges} limits in all; at most {MOST_CHARGES} at once")
        answers: list[str] = []
        for part in _slices(questions, alone=once is not None):
            async with turns:
                answers += map(answer, await _all([self._decide(question, once) for question in part]))
        return answers

    def _too_often(self, decision: Decision) -> Answered:
        response = problem_response(
            429,
            f"this address asks too often; try again in {decision.retry_after} s",
            type_=QUOTA_EXCEEDED,
            extra={"violated-policies": [standing.limit.name for standing in decision.exceeded]},
        )
        response.raw_headers[:] = self._limiter.write(response.raw_headers, decision)
        return Answered(response)


class _Once:
    """The tokens of a body with an Idempotency-Key, one for each of its questions that charges, in order.

    Whatever two bodies with one key ask, the first that charges has the same token in both, and is refused if the
    bodies differ. So it is decided before the others are.
    """

    def __init__(self, key: bytes, body: bytes, caller: Caller) -> None:
        self._key = key.decode("latin-1")
        self._body = body
        self._owner = f"check/{caller.name}"
        self._number = 0
        self.next()  # a key that cannot be used is refused whatever the body asks
        self._number = 0

    def next(self) -> Token:
        found = token(self._key, self._body, owner=f"{self._owner}/{self._number}")
        self._number += 1
        return found


def _question(document: Any, caller: Caller, at: str = "") -> Question:
    """What a member of the body asks. Raises InvalidInput, Answered (403)."""
    if caller.inline is None:
        raise Answered(forbidden(caller, None, at))
    return inline(document, caller.inline, at)


def _slices(questions: Sequence[Question], *, alone: bool) -> Iterator[Sequence[Question]]:
    """The questions in order, so many charges at once; if `alone`, all up to the first that charges are the first."""
    found: list[Question] = []
    room = SLICE
    for question in questions:
        if len(question.charges) > room and found:
            yield found
            found, room = [], SLICE
        found.append(question)
        room -= len(question.charges)
        if alone and not question.peek:
            alone, room = False, 0
    if found:
        yield found


async def _all(futures: "Sequence[asyncio.Future[Decision]]") -> list[Decision]:
    """All answers, or the first exception; then nobody waits for the others."""
    try:
        return [await future for future in futures]
    except BaseException:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # seen: else it is complained of
        raise
