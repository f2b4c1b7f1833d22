"""Who is never let in, who always is, and that nobody gets onto the wrong list by the way it writes its address."""

import ipaddress

import pytest
from driving import Clock, Wire, client_of, gated, limiter_of, statuses
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient, WebSocketDenialResponse

from service.errors import ConfigurationError
from service.limits import Limiter, identity, keys
from service.limits.access.lists import Lists

DENY = ["203.0.113.0/24", "198.51.100.7", "2001:db8:bad::/48", "2001:db8::5", "jwt/mallory", "key/@evil corp"]
ALLOW = ["203.0.113.9", "2001:db8:bad:1::/64", "jwt/admin"]

ADDRESSES = [
    ("203.0.113.0", False),
    ("203.0.113.255", False),
    ("203.0.112.255", None),
    ("203.0.114.0", None),
    ("203.0.113.9", True),
    ("198.51.100.7", False),
    ("198.51.100.6", None),
    ("2001:db8:bad::1", False),
    ("2001:db8:bad:ffff::1", False),
    ("2001:db8:bae::1", None),
    ("2001:db8:bad:1::1", True),
    ("2001:db8::5", False),
    ("2001:db8::6", None),
    ("0.0.0.0", None),
    ("::", None),
    ("::cb00:7101", None),
]


@pytest.mark.parametrize(("address", "listed"), ADDRESSES)
def test_an_address_is_on_a_list_if_one_of_its_networks_is(address, listed):
    """To the bit; what is allowed goes before what is denied; IPv4 and IPv6 are different numbers."""
    assert Lists(DENY, ALLOW).address(ipaddress.ip_address(address)) is listed


def test_somebody_without_an_address_is_on_no_list():
    assert Lists(["0.0.0.0/0", "::/0"], []).address(None) is None


IDENTITIES = [
    ("jwt/mallory", False),
    ("key/@evil corp", False),
    ("jwt/admin", True),
    ("jwt/mallor", None),
    ("mallory", None),
]


@pytest.mark.parametrize(("who", "listed"), IDENTITIES)
def test_an_identity_is_on_a_list_as_key_functions_spell_it(who, listed):
    assert Lists(DENY, ALLOW).identity(keys.who(who)) is listed


def test_a_long_list_is_as_quick_as_a_short_one():
    """100,000 networks are as many look-ups as they have different lengths."""
    entries = [f"{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}.0/24" for n in range(100_000)]
    lists = Lists(entries, [])
    assert len(lists._denied._networks[4]) == 1
    assert lists.address(ipaddress.ip_address("1.134.159.7")) is False
    assert lists.address(ipaddress.ip_address("1.134.160.7")) is None


UNMEANT = [
    ("", "everybody is 0.0.0.0/0"),
    ("*", "everybody is 0.0.0.0/0"),
    ("203.0.113.0/33", "203.0.113.0/33"),
    ("203.0.113.7/24", "host bits"),
    ("203.0.113", "203.0.113"),
    ("203.0.113.256", "256"),
    ("203.0.113.07", "203.0.113.07"),
    ("2001:db8::/129", "2001:db8::/129"),
    ("2001:db8:::/48", "2001:db8"),
    ("::ffff:203.0.113.0/120", 'write "203.0.113.0/24"'),
    ("::ffff:203.0.113.7", 'write "203.0.113.7/32"'),
]


@pytest.mark.parametrize("name", ["deny", "allow"])
@pytest.mark.parametrize(("entry", "says"), UNMEANT)
def test_an_entry_that_cannot_be_meant_is_refused_at_start_up(name, entry, says):
    """A mistyped network must not become the name of a user who never comes."""
    with pytest.raises(ConfigurationError, match=f'^{name} "') as caught:
        limiter_of(**{name: [entry]})
    assert says in str(caught.value)


@pytest.fixture(params=["gate", "decorator", "dependency"])
def app_of(request):
    """An app whose / is limited to 1 an hour, with these options."""

    def make(handlers=None, **options):
        limiter = limiter_of(key_func=identity.client_address, **options)
        app = FastAPI(exception_handlers=handlers)
        app.state.limiter = limiter
        if request.param == "gate":
            gated(app, limiter)
        app.ran = []

        async def index():
            app.ran.append(1)
            return {}

        if request.param == "dependency":
            app.get("/", dependencies=[Depends(limiter.quota("1/hour"))])(index)
        else:
            app.get("/")(limiter.limit("1/hour")(index))
        return app

    return make


def get(app, peer, **headers):
    return TestClient(app, client=(peer, 1), raise_server_exceptions=False).get("/", headers=headers)


def test_whoever_is_denied_is_answered_403_and_nothing_runs_or_is_charged(app_of):
    app = app_of(deny=["203.0.113.0/24"])
    for _ in range(2):
        answer = get(app, "203.0.113.7")
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
        assert "retry-after" not in answer.headers
        assert answer.json()["title"] == "Forbidden"
    assert not app.ran
    assert app.state.limiter.engine.counters.decisions == 0
    assert get(app, "203.0.114.7").status_code == 200


def test_whoever_is_allowed_is_let_in_uncounted(app_of):
    """As often as it likes, and no call is made for it."""
    app = app_of(allow=["203.0.113.7"])
    answers = [get(app, "203.0.113.7") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert "ratelimit" not in answers[0].headers
    assert app.state.limiter.engine.counters.decisions == 0
    assert [get(app, "203.0.113.8").status_code for _ in range(2)] == [200, 429]


def test_behind_a_proxy_the_client_is_on_the_list_and_not_the_proxy(app_of):
    """Nor does a client get off it, or the proxy onto it, by what it writes."""
    app = app_of(deny=["203.0.113.0/24", "2001:db8::5"], trusted_proxies=["10.0.0.0/8"])
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "203.0.113.7"}).status_code == 403
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "8.8.8.8, 203.0.113.7"}).status_code == 403
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "::ffff:203.0.113.7"}).status_code == 403
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "[2001:db8::5]:80"}).status_code == 403
    assert get(app, "203.0.113.7", **{"x-forwarded-for": "8.8.8.8"}).status_code == 403
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "203.0.113.7, 8.8.8.8"}).status_code == 200
    assert get(app, "10.0.0.1", **{"x-forwarded-for": "2001:db8::6"}).status_code == 200


def test_an_apps_own_handler_answers_a_denial(app_of):
    """For 403, or for every HTTPException."""
    for kind in (403, HTTPException):
        app = app_of({kind: lambda _, error: JSONResponse({"no": error.status_code}, 403)}, deny=["203.0.113.7"])
        answer = get(app, "203.0.113.7")
        assert (answer.status_code, answer.json()) == (403, {"no": 403})


def test_the_environment_has_lists_too(app_of, monkeypatch):
    """ONEQUOTA_DENY and ONEQUOTA_ALLOW; what the code says goes before."""
    monkeypatch.setenv("ONEQUOTA_DENY", "203.0.113.0/24, 198.51.100.7")
    monkeypatch.setenv("ONEQUOTA_ALLOW", "203.0.113.9")
    app = app_of()
    assert [get(app, peer).status_code for peer in ("203.0.113.7", "198.51.100.7", "203.0.113.9")] == [403, 403, 200]
    assert get(app_of(deny=[]), "203.0.113.7").status_code == 200
    monkeypatch.setenv("ONEQUOTA_DENY", "203.0.113.0/33")
    with pytest.raises(ConfigurationError, match="deny"):
        app_of()


def by_user(request):
    return "user/" + request.headers["x-user"]


@pytest.mark.parametrize("options", [{}, {"cost": lambda: 1}], ids=["ready", "computed"])
def test_an_identity_may_be_denied_or_allowed(options):
    """As the key function tells it, wherever it comes from."""
    limiter = limiter_of(key_func=by_user, deny=["user/mallory"], allow=["user/admin"])
    app = gated(FastAPI(), limiter)
    app.get("/")(limiter.limit("1/hour", **options)(lambda: {}))
    client = client_of(app)
    assert statuses(client, "/", 2, headers={"x-user": "mallory"}) == [403, 403]
    assert statuses(client, "/", 3, headers={"x-user": "admin"}) == [200, 200, 200]
    assert statuses(client, "/", 2, headers={"x-user": "alice"}) == [200, 429]


def test_a_denial_holds_behind_the_middleware_for_routes_without_limits_too():
    """What does not exist, what is exempt, what is only asked for by a preflight."""
    limiter = limiter_of(key_func=identity.client_address, deny=["203.0.113.7"])
    app = gated(FastAPI(), limiter)

    @app.get("/free")
    @limiter.exempt
    async def free():
        return {}

    client = TestClient(app, client=("203.0.113.7", 1))
    assert [client.get(path).status_code for path in ("/free", "/none", "/docs")] == [403, 403, 403]
    preflight = {"origin": "https://a.example", "access-control-request-method": "GET"}
    assert client.options("/free", headers=preflight).status_code == 403
    assert TestClient(app, client=("203.0.113.8", 1)).get("/free").status_code == 200


def test_a_denial_carries_the_apps_cors_headers():
    """So that a browser shows the 403, and no riddle."""
    limiter = limiter_of(key_func=identity.client_address, deny=["203.0.113.7"])
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    gated(app, limiter)
    answer = TestClient(app, client=("203.0.113.7", 1)).get("/", headers={"origin": "https://a.example"})
    assert answer.status_code == 403
    assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_a_websocket_of_somebody_denied_is_not_accepted():
    limiter = limiter_of(key_func=identity.client_address, deny=["203.0.113.7"])
    app = gated(FastAPI(), limiter)

    @app.websocket("/ws")
    async def ws(socket):
        await socket.accept()

    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        TestClient(app, client=("203.0.113.7", 1)).websocket_connect("/ws"),
    ):
        pass
    assert caught.value.status_code == 403


async def test_a_denial_comes_before_the_body_and_before_the_key_function():
    """It costs next to nothing: no token is verified, no database asked."""
    asked = []
    limiter = limiter_of(Clock(), key_func=lambda request: asked.append(1) or "x", deny=["192.0.2.1"])
    app = gated(FastAPI(), limiter)
    app.post("/")(limiter.limit("1/hour")(lambda: {}))
    wire = await Wire(app, "/", method="POST", body=[b"x"]).run()
    assert (wire.status, wire.received, asked) == (403, 0, [])


def test_a_disabled_limiter_denies_nobody():
    """`enabled=False` is how tests and emergencies switch all of it off."""
    limiter = limiter_of(key_func=identity.client_address, deny=["203.0.113.7"], enabled=False)
    app = gated(FastAPI(), limiter)
    app.get("/")(lambda: {})
    assert TestClient(app, client=("203.0.113.7", 1)).get("/").status_code == 200


def test_a_limiter_without_any_of_it_has_no_access_to_ask():
    """What is off costs a request one comparison."""
    assert Limiter(identity.client_address, storage_uri="memory://").access is None
    assert limiter_of(deny=[], allow=[]).access is None
