"""Who asks, told by keys, proxies and combinations: never by two names that meet, never by the client's word alone."""

import asyncio
import itertools

import pytest
from driving import client_of, gated, limiter_of, statuses
from fastapi import FastAPI, Request
from issuing import SECRET, asking, issued, told

from service.errors import ConfigurationError, IdentityUnavailable
from service.limits import identity
from service.limits.identity import Vouched

PROXIED = identity.header("X-User")


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv("ONEQUOTA_IDENTITY_SECRET", SECRET)


def unavailable(request):
    raise IdentityUnavailable("the keys of tokens cannot be had")


async def unavailable_later(request):
    raise IdentityUnavailable("the keys of tokens cannot be had")


# ── API keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_api_key_is_a_digest_that_depends_on_the_secret(monkeypatch):
    """Whoever reads Redis, but not the secret, can try no keys on what he finds there."""
    by_bearer, by_header = identity.api_key(), identity.api_key("x-api-key")
    one = await told(by_bearer, asking(authorization="Bearer k3y"))
    assert one == await told(by_header, asking(x_api_key="k3y")) == f"key/{identity.digest('k3y')}"
    monkeypatch.setenv("ONEQUOTA_IDENTITY_SECRET", SECRET + "2")
    assert await told(identity.api_key("x-api-key"), asking(x_api_key="k3y")) != one
    assert len(one) == len("key/") + 22


@pytest.mark.parametrize("secret", [None, "", "x" * 15])
def test_api_keys_without_a_secret_are_refused_at_start_up(monkeypatch, secret):
    monkeypatch.setenv("ONEQUOTA_IDENTITY_SECRET", secret or "")
    with pytest.raises(ConfigurationError, match="secret") as caught:
        identity.api_key()
    assert not secret or secret not in str(caught.value)
    identity.api_key(secret="x" * 16)


async def awaited(key):
    await asyncio.sleep(0)
    return {"alices": "alice", "good": True}.get(key, False)


KNOWN = [
    (lambda key: key == "good", {"good": "key/DIGEST", "bad": None}),
    (
        {"alices": "alice", "hers too": "alice"}.get,
        {"alices": "key/@alice", "hers too": "key/@alice", "x": None},
    ),
    (lambda key: 7, {"any": "key/@7"}),
    (awaited, {"good": "key/DIGEST", "alices": "key/@alice", "bad": None}),
    (lambda key: "", {"any": None}),
]


@pytest.mark.parametrize(("known", "answers"), KNOWN, ids=["true or false", "accounts", "numbers", "async", "empty"])
async def test_known_tells_which_keys_there_are_and_whose(known, answers):
    """A function of the key, also a coroutine function; what it names is vouched for."""
    resolver = identity.api_key("x-api-key", known=known)
    for key, who in answers.items():
        expected = who and who.replace("DIGEST", identity.digest(key))
        answer = await told(resolver, asking(x_api_key=key))
        assert answer == expected
        assert answer is None or isinstance(answer, Vouched)


async def test_a_key_nobody_knows_is_a_claim():
    """Without `known` each is somebody, but nobody vouches for it."""
    answer = await told(identity.api_key("x-api-key"), asking(x_api_key="whatever"))
    assert answer is not None
    assert not isinstance(answer, Vouched)


def test_no_account_can_be_called_like_the_digest_of_a_key():
    """Accounts have an @: an account that names itself after a digest shares nothing with that key."""
    mark = identity.digest("good")
    accounts = identity.api_key("x-api-key", known=lambda key: mark)
    keys = identity.api_key("x-api-key", known=lambda key: True)
    assert accounts(asking(x_api_key="good")) != keys(asking(x_api_key="good"))


def test_no_secret_and_no_key_is_in_a_repr():
    """Resolvers are shown in errors."""
    for resolver in (identity.api_key(secret=SECRET), identity.jwt_subject(secret=SECRET), PROXIED):
        assert SECRET not in repr(resolver) + str(vars(resolver).get("means"))
        assert repr(resolver).startswith("identity.")


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


HEADERS = [
    # peer, lines of x-user, who
    ("10.0.0.1", "alice", "x-user/alice"),
    ("10.0.0.1", "  alice ", "x-user/alice"),
    ("10.0.0.1", "al ice", "x-user/al ice"),
    ("10.0.0.1", "203.0.113.7", "x-user/203.0.113.7"),
    ("10.0.0.1", "caf\xe9", "x-user/caf\xe9"),
    ("10.0.0.1", "x" * 1024, "x-user/" + "x" * 1024),
    ("10.0.0.1", "x" * 1025, None),
    ("10.0.0.1", "", None),
    ("10.0.0.1", "  ", None),
    ("10.0.0.1", [], None),
    ("10.0.0.1", ["alice", "alice"], None),
    ("10.0.0.1", ["alice", "bob"], None),
    ("10.0.0.1", ["", "bob"], None),
    ("::ffff:10.0.0.1", "alice", "x-user/alice"),
    ("203.0.113.7", "alice", None),
    ("11.0.0.1", "alice", None),
    ("fd00::1", "alice", None),
    ("testclient", "alice", None),
]


@pytest.mark.parametrize(("peer", "value", "who"), HEADERS)
def test_a_header_is_believed_from_trusted_proxies_only_and_only_if_it_is_one(peer, value, who):
    """What comes twice may be the client's word beside the proxy's."""
    connection = asking(peer, x_user=value)
    connection.scope[identity.ADDRESSES] = identity.Addresses(["10.0.0.0/8"])
    answer = PROXIED(connection)
    assert answer == who
    assert answer is None or isinstance(answer, Vouched)


def test_a_trusted_proxy_behind_another_does_not_make_its_client_trusted():
    """The peer counts, not the addresses it tells of."""
    connection = asking("203.0.113.7", x_forwarded_for="10.0.0.1", x_user="alice")
    connection.scope[identity.ADDRESSES] = identity.Addresses(["10.0.0.0/8"])
    assert PROXIED(connection) is None


@pytest.mark.parametrize(
    "wrap", [lambda f: f, identity.vouched, lambda f: identity.first_of(f, identity.client_address)]
)
def test_a_header_without_any_trusted_proxy_is_refused_at_start_up(wrap):
    """It could never tell anybody."""
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        limiter_of(key_func=wrap(PROXIED), default_limits=["1/minute"], trusted_proxies=[])
    limiter_of(key_func=wrap(PROXIED), default_limits=["1/minute"], trusted_proxies=["10.0.0.0/8"])


@pytest.mark.parametrize("name", ["", "x user", "x:user", "x\r\n", "é", "x(user)"])
def test_what_is_no_header_name_is_refused(name):
    with pytest.raises(ConfigurationError, match="name of a header"):
        identity.header(name)


@pytest.mark.parametrize("name", ["", "Key", "a/b", "1", "a:b", "x" * 33, "a b", "-a"])
def test_what_no_identity_can_begin_with_is_refused(name):
    with pytest.raises(ConfigurationError, match="identity name"):
        identity.api_key(name=name)


# ── combinations ─────────────────────────────────────────────────────────────────────────────────────────────────────


def said(value):
    """A resolver of the user's own that answers this."""
    return lambda request: value


def said_later(value):
    async def function(request):
        await asyncio.sleep(0)
        return value

    return function


FIRST = [
    ([None, "bob"], "2/bob"),
    (["alice", "bob"], "1/alice"),
    (["", "bob"], "2/bob"),
    ([False, None, 7], "3/7"),
    ([0], "1/0"),
    ([None, None], None),
]


@pytest.mark.parametrize(("answers", "who"), FIRST)
@pytest.mark.parametrize("how", [said, said_later])
async def test_the_first_that_tells_is_who_asks(answers, who, how):
    """Sync and async; a foreign function's answers bear its place."""
    assert await told(identity.first_of(*map(how, answers)), asking()) == who


async def test_nobody_is_asked_twice_nor_after_somebody_has_told():
    calls = []

    def asked(name, answer):
        async def later(request):
            calls.append(name)
            return answer

        return later

    first = identity.first_of(asked("a", None), lambda: None, asked("b", "bob"), asked("c", "carol"))
    assert await told(first, asking()) == "3/bob"
    assert calls == ["a", "b"]
    calls.clear()
    assert await told(identity.both(asked("a", "x"), lambda: "y", asked("b", "z")), asking()) == "both/1:x1:y1:z"
    assert calls == ["a", "b"]


async def test_a_token_then_a_key_then_the_address():
    """The usual chain: what is not there or does not hold falls to the next."""
    chain = identity.first_of(
        identity.jwt_subject(secret=SECRET),
        identity.api_key("x-api-key", known={identity.digest("k")}),
        identity.client_address,
    )
    token = issued(sub="alice")
    assert await told(chain, asking(authorization=f"Bearer {token}", x_api_key="k")) == "jwt/alice"
    assert await told(chain, asking(authorization=f"Bearer {token}x", x_api_key="k")) == f"key/{identity.digest('k')}"
    assert await told(chain, asking(authorization=f"Bearer {token}x", x_api_key="x")) == "203.0.113.7"
    assert await told(chain, asking()) == "203.0.113.7"


def test_no_answer_of_one_resolver_can_pass_for_another_resolvers():
    """Users called like an address, accounts called like a user, functions that answer anything: all are apart."""
    words = [
        "203.0.113.7",
        "jwt/alice",
        "key/x",
        "x-user/alice",
        "1/alice",
        "2/alice",
        "alice",
        "local",
        "2001:db8::/64",
        "both/1:a",
    ]
    ways = {
        ("address", "203.0.113.7"): "203.0.113.7",
        ("address", "2001:db8::/64"): "2001:db8::/64",
        ("address", "local"): "local",
    }
    for place, word in itertools.product((1, 2), words):
        functions = [said(None)] * (place - 1) + [said(word)]
        ways[f"function {place}", word] = identity.first_of(*functions)(asking())
    for word in words:
        ways["jwt", word] = identity.first_of(identity.jwt_subject(secret=SECRET))(
            asking(authorization=f"Bearer {issued(sub=word)}")
        )
        ways["account", word] = identity.first_of(identity.api_key("x", known=lambda _, word=word: word))(asking(x="k"))
        ways["both", word] = identity.first_of(identity.both(said(word)))(asking())
    assert len(set(ways.values())) == len(ways)


PARTS = [
    "",
    "a",
    "b",
    "ab",
    "bc",
    "abc",
    "1:a",
    "a1:b",
    "11:",
    ":",
    "1",
    "1:",
    "2:ab",
    "both/",
    "a/b",
    "é",
    "𝄞",
    "\x00",
]


def test_both_is_never_ambiguous():
    """ "a" and "bc" are not "ab" and "c", for any parts, two or three of them."""
    parts = [part for part in PARTS if part]
    tuples = [*itertools.product(parts, repeat=2), *itertools.product(parts, repeat=3), *((part,) for part in parts)]
    assert len({identity.both(*map(said, found))(asking()) for found in tuples}) == len(tuples)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("how", [said, said_later])
async def test_both_is_nobody_if_one_finds_nobody(at, how):
    parts = ["a", "b", "c"]
    parts[at] = None
    assert await told(identity.both(*map(how, parts)), asking()) is None


async def test_what_is_vouched_for_stays_so_and_nothing_becomes_so():
    """first_of passes it on; both is vouched for if all of it is; `vouched` is the app's word."""
    sure, claim = identity.vouched(said("alice")), said("bob")
    cases = [
        (sure, "alice", True),
        (identity.vouched(said_later("alice")), "alice", True),
        (identity.vouched(said(None)), None, False),
        (identity.first_of(sure), "1/alice", True),
        (identity.first_of(claim), "1/bob", False),
        (identity.first_of(claim, sure), "1/bob", False),
        (identity.both(sure, sure), "both/5:alice5:alice", True),
        (identity.both(sure, claim), "both/5:alice3:bob", False),
    ]
    for resolver, who, is_vouched in cases:
        answer = await told(resolver, asking())
        assert (answer, isinstance(answer, Vouched)) == (who, is_vouched)


def test_two_resolvers_of_one_name_that_mean_different_people_are_refused():
    """Two projects' users are called jwt/… both: the same id is not the same user."""
    one, other = (identity.jwt_subject(secret=SECRET, issuer=issuer) for issuer in ("https://a", "https://b"))
    with pytest.raises(ConfigurationError, match='"jwt"'):
        identity.first_of(one, other)
    with pytest.raises(ConfigurationError, match='"jwt"'):
        identity.first_of(identity.first_of(one), other)
    with pytest.raises(ConfigurationError, match='"key"'):
        identity.first_of(identity.header("x-key", name="key"), identity.api_key())
    with pytest.raises(ConfigurationError, match='"both"'):
        identity.first_of(identity.both(said(1)), identity.both(said(2)))
    identity.first_of(one, identity.jwt_subject(secret=SECRET, issuer="https://b", name="other"))
    identity.first_of(identity.api_key(), identity.api_key("x-api-key"))


@pytest.mark.parametrize("make", [identity.first_of, identity.both])
@pytest.mark.parametrize("functions", [(), ("alice",), (None,)])
def test_a_combination_of_nothing_is_refused(make, functions):
    with pytest.raises(ConfigurationError, match="key functions"):
        make(*functions)


UNAVAILABLE = [
    # who cannot tell, who can, and what comes of it
    ([unavailable, said("bob")], "2/bob"),
    ([unavailable_later, said("bob")], "2/bob"),
    ([said(None), unavailable_later, said_later("bob")], "3/bob"),
    ([said("alice"), unavailable], "1/alice"),
    ([unavailable], IdentityUnavailable),
    ([unavailable, said(None)], IdentityUnavailable),
    ([unavailable_later, said_later(None)], IdentityUnavailable),
]


@pytest.mark.parametrize(("functions", "outcome"), UNAVAILABLE)
async def test_one_that_cannot_tell_now_is_passed_over(functions, outcome):
    """The next one tells; if none can, nobody says "you are nobody" to somebody with a good token."""
    resolver = identity.first_of(*functions)
    if isinstance(outcome, str):
        assert await told(resolver, asking()) == outcome
        return
    with pytest.raises(outcome):
        await told(resolver, asking())


# ── through the limiter ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=[True, False], ids=["gate", "no-gate"])
def app_of(request):
    """An app with one limited route: 1 a minute for whoever `key_func` says."""

    def make(key_func, **options):
        limiter = limiter_of(key_func=key_func, **options)
        app = FastAPI()
        app.state.limiter = limiter
        if request.param:
            gated(app, limiter)

        @app.get("/")
        @limiter.limit("1/minute")
        async def index():
            return {}

        return client_of(app)

    return make


def bearing(**more):
    return {"authorization": f"Bearer {issued(**more)}"}


def test_each_user_has_a_quota_of_its_own_wherever_it_comes_from(app_of):
    """Two tokens of one user are one user; another user is another."""
    client = app_of(identity.jwt_subject(secret=SECRET))
    assert statuses(client, "/", 1, headers=bearing(sub="alice")) == [200]
    assert statuses(client, "/", 2, headers=bearing(sub="alice", session="2")) == [429, 429]
    assert statuses(client, "/", 2, headers=bearing(sub="bob")) == [200, 429]


CHALLENGES = [
    (lambda: identity.jwt_subject(secret=SECRET), "Bearer"),
    (lambda: identity.api_key(known={}), "Bearer"),
    (lambda: identity.api_key("x-api-key", known={}), 'ApiKey header="x-api-key"'),
    (lambda: identity.first_of(identity.jwt_subject(secret=SECRET), identity.api_key("x-api-key", known={})), "Bearer"),
    (lambda: identity.both(identity.client_address, identity.jwt_subject(secret=SECRET)), "Bearer"),
    (lambda: identity.vouched(identity.api_key(known={})), "Bearer"),
]


@pytest.mark.parametrize(("make", "challenge"), CHALLENGES)
def test_without_a_credential_that_holds_the_answer_is_401_and_nothing_is_charged(app_of, make, challenge):
    """As often as it is tried; the answer says what was wanted (RFC 9110, 11.6.1), not what was wrong."""
    client = app_of(make())
    for headers in ({}, {"authorization": "Bearer x.y.z"}, {"authorization": f"Bearer {issued(exp=1)}"}):
        for _ in range(2):
            answer = client.get("/", headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == challenge
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.json()["errors"][0]["field"] == "key"


def test_where_no_credential_would_have_helped_the_answer_is_400(app_of):
    """A header that the proxy did not set."""
    client = app_of(PROXIED, trusted_proxies=["10.0.0.0/8"])
    answer = client.get("/", headers={"x-user": "alice"})
    assert answer.status_code == 400
    assert "www-authenticate" not in answer.headers


def test_a_token_that_does_not_hold_is_charged_to_the_address_it_came_from(app_of):
    """A flood of forged tokens is one client's flood."""
    client = app_of(identity.first_of(identity.jwt_subject(secret=SECRET), identity.client_address))
    forged = [client.get("/", headers={"authorization": f"Bearer {issued('x' * 40, sub=f'u{n}')}"}) for n in range(5)]
    assert [answer.status_code for answer in forged] == [200, 429, 429, 429, 429]
    assert client.get("/", headers=bearing()).status_code == 200


def test_while_the_keys_of_tokens_cannot_be_had_the_answer_is_503(app_of):
    """Not 401: a client would throw a good token away."""
    answer = app_of(identity.first_of(unavailable)).get("/")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["type"].endswith("temporary-reduced-capacity")


@pytest.mark.parametrize("key_func", [said_later("alice"), identity.first_of(said_later("alice"))])
def test_async_key_functions_count_like_others(app_of, key_func):
    assert statuses(app_of(key_func), "/", 2) == [200, 429]


async def by_body(request: Request):
    return (await request.json())["user"]


@pytest.mark.parametrize(
    "key_func", [by_body, identity.first_of(by_body), identity.both(by_body), identity.vouched(by_body)]
)
def test_a_combination_may_read_the_body_as_its_parts_may(key_func):
    """The endpoint gets it again."""
    limiter = limiter_of(key_func=key_func)
    app = gated(FastAPI(), limiter)

    @app.post("/")
    @limiter.limit("1/minute")
    async def index(request: Request):
        return await request.json()

    client = client_of(app)
    answers = [client.post("/", json={"user": user}) for user in ("alice", "bob", "alice")]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].json() == {"user": "alice"}


def test_resolvers_of_ours_do_not_make_the_gate_keep_bodies():
    """They read headers only: a body passes untouched, and the way is the short one."""
    chain = identity.first_of(identity.jwt_subject(secret=SECRET), identity.api_key(), identity.client_address)
    for key_func in (chain, identity.api_key(), identity.both(chain, identity.client_address), identity.vouched(chain)):
        limiter = limiter_of(key_func=key_func, default_limits=["1/minute"])
        plan = limiter.plan_at(None, "GET")
        assert plan.ready is not None
        assert not plan.reads
