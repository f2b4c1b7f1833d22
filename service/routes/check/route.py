"""The route: from the request to its answer."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.callers import Caller, Callers, forbidden
from service.errors import QUOTA_EXCEEDED, InvalidInput, StoreUnavailable
from service.limits import Limiter, policy
from service.limits.allowance import Allowance
from service.limits.catalog import Catalog, Live, Still
from service.limits.decision import CHARGE, Alike, Decision, Token, TokenAsk
from service.limits.engine import all_of
from service.limits.passage import fault, problem_response
from service.limits.policy import Verdict
from service.limits.token import token
from service.routes.check.answer import answer, answers, verdict_answer
from service.routes.check.question import MOST_CHARGES, Question, Run, by_domain, domain_of, inline, members
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
        live: The catalog.
    """

    def __init__(self, limiter: Limiter, settings: Settings, callers: Callers, live: Live | Still) -> None:
        self._limiter = limiter
        self._engine = limiter.engine
        self._callers = callers
        self._live = live
        crowd = limiter.access.crowd if limiter.access is not None else None
        self._guard = Allowance(limiter.engine, settings.check_limit, name="check", scope="r.check", crowd=crowd)
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
            raise Answered(too_often(self._limiter, refused))
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
        catalog = self._live.catalog  # one version for all of a body
        if checks is None:
            return await self._one(_question(document, caller, catalog), once)
        return f'{{"results":[{",".join(await self._many(checks, caller, catalog, once))}]}}'

    async def _one(self, question: Question, once: "_Once | None") -> str:
        if once is not None and not question.peek:
            if question.ask is not None:  # its own record is enough
                return _told(question, await self._engine.decide(TokenAsk(question.ask.charges, once.body)))
            await self._bind(once)
        return _told(question, await self._decide(question, once))

    async def _many(self, checks: Sequence[Any], caller: Caller, catalog: Catalog, once: "_Once | None") -> list[str]:
        """The answers to many questions, all of which are good."""
        turns = self._turns if len(checks) > SMALL else contextlib.nullcontext()
        asked: list[Question | Run] = []
        run: Run | None = None
        for start in range(0, len(checks), SLICE):
            async with turns:
                for index, check in enumerate(checks[start : start + SLICE], start):
                    if run is not None and run.takes(check):
                        continue
                    question = _question(check, caller, catalog, f"checks[{index}].")
                    run = _run(check, question, caller) if once is None else None
                    asked.append(run or question)
        charges = sum(each.charges for each in asked)
        if charges > MOST_CHARGES:
            raise InvalidInput("checks", f"{charges} limits in all; at most {MOST_CHARGES} at once")
        if once is not None and not all(isinstance(each, Question) and each.peek for each in asked):
            await self._bind(once)
        told: list[str] = []
        for part in _slices(asked):
            async with turns:
                found = await all_of([self._submit(each, once, number) for number, each in part])
                for (_, each), one in zip(part, found, strict=True):
                    if isinstance(each, Alike):
                        told += answers(one)
                    else:
                        told.append(_told(each, one))
        return told

    async def _bind(self, once: "_Once") -> None:
        """See that the key has not come with another body. Raises InvalidInput."""
        await self._engine.decide(TokenAsk([], once.body))

    def _decide(self, question: Question, once: "_Once | None", number: int = 0) -> "asyncio.Future[Any]":
        """A decision, or a verdict where a question to the engine is not all."""
        ask = question.ask
        if ask is None:
            assert question.planned is not None
            tokens = None if once is None else once.tokens(number)
            verdict = policy.decide(self._engine, question.planned, peek=question.peek, once=tokens)
            return asyncio.get_running_loop().create_task(verdict)
        if once is not None and ask.kind == CHARGE:
            ask = TokenAsk(ask.charges, once.tokens(number)(0))
        return self._engine.decide(ask)

    def _submit(self, asked: Question | Alike, once: "_Once | None", number: int) -> "asyncio.Future[Any]":
        if isinstance(asked, Alike):
            return self._engine.decide_alike(asked)
        return self._decide(asked, once, number)


def too_often(limiter: Limiter, refused: Decision) -> Response:
    """The answer to an address that asks too often."""
    response = problem_response(
        429,
        f"this address asks too often; try again in {refused.retry_after} s",
        type_=QUOTA_EXCEEDED,
        extra={"violated-policies": [standing.limit.name for standing in refused.exceeded]},
    )
    response.raw_headers[:] = limiter.write(response.raw_headers, refused)
    return response


def _question(document: Any, caller: Caller, catalog: Catalog, at: str = "") -> Question:
    """What a member of the body asks. Raises InvalidInput, Answered (403)."""
    domain = domain_of(document)
    if domain is None:
        if caller.inline is None:
            raise Answered(forbidden(caller, None, at))
        return inline(document, caller.inline, at)
    if domain and not caller.may(domain):  # before anything is told of it
        raise Answered(forbidden(caller, domain, at))
    return by_domain(document, catalog, time.time_ns() // 1000, at)


class _Once:
    """The tokens of a body that came with an Idempotency-Key.

    Attributes:
        body: The whole body's: with it a key is bound to its first body, and a single question is asked.
    """

    def __init__(self, key: bytes, body: bytes, caller: Caller) -> None:
        self._key = key.decode("latin-1")
        self._content = body
        self._owner = f"check/{caller.name}"
        self.body = token(self._key, body, owner=self._owner)

    def tokens(self, check: int) -> policy.Once:
        """Those of one of its checks."""

        def numbered(number: int) -> Token:
            return token(self._key, self._content, owner=f"{self._owner}/{check}.{number}")

        return numbered


def _told(question: Question, found: Decision | Verdict) -> str:
    if question.planned is None:
        assert isinstance(found, Decision)
        return answer(found)
    if isinstance(found, Decision):
        found = policy.verdict_of(question.planned, found)
    return verdict_answer(found, known=question.known)


def _run(document: Any, question: Question, caller: Caller) -> Run | None:
    """What may begin with this question; None = it is not one of many that are alike."""
    if question.planned is not None or question.charges != 1:
        return None
    assert caller.inline is not None
    return Run(document, question, caller.inline)


def _slices(asked: Sequence[Question | Run]) -> Iterator[list[tuple[int, Question | Alike]]]:
    """What is asked, with numbers, in order, so many charges at once."""
    found: list[tuple[int, Question | Alike]] = []
    room = SLICE
    for number, each in enumerate(asked):
        pieces = [each] if isinstance(each, Question) else each.pieces(SLICE)
        for piece in pieces:
            charges = piece.charges if isinstance(piece, Question) else piece.times
            if charges > room and found:
                yield found
                found, room = [], SLICE
            found.append((number, piece))
            room -= max(1, charges)
    if found:
        yield found
