"""The commands as a user types them: exit codes, what is shown, what is said when it cannot be done."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import httpx2 as httpx
import pytest
from running import command, environment, onequota

from service import cli

LIMITS = """\
domain: chat
descriptors:
  - key: user
    limits: "2/minute;500/day"
    descriptors:
      - {key: path, value: /login, limits: 1/minute}
  - {key: user, value: admin, rate_limit: {unlimited: true}}
"""
BAD = """\
domain: chat
descriptors:
  - key: user
    limit: 2/minute
  - key: user
    value_regex: "(a"
    limits: 2/fortnight
"""
APP = """\
from fastapi import FastAPI
from service.limits import Limiter
limiter = Limiter(lambda request: request.headers["x-user"], default_limits=["9/minute"])
app = FastAPI(openapi_url=None)
app.state.limiter = limiter
app.add_middleware(limiter.middleware)
@app.post("/chat")
@limiter.limit("2/minute;500/day")
async def chat(): ...
"""
KEY = "3e1f0a9c5b7d2468ace013579bdf8642"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("REDIS_URL", "ENVIRONMENT", "WEB_CONCURRENCY", *(n for n in os.environ if n.startswith("ONEQUOTA_"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "limits.yaml").write_text(LIMITS)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "oq_app.py").write_text(APP)
    yield tmp_path
    sys.modules.pop("oq_app", None)


@pytest.fixture
def oq(monkeypatch, capsys):
    """Types a command, in this process: (exit code, standard output, standard error)."""

    def type_it(*words):
        monkeypatch.setattr(sys, "argv", ["onequota", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return type_it


@pytest.fixture
def redis(redis_server, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return redis_server


def answer(result):
    code, out, err = result
    assert err == ""
    return code, json.loads(out)


def failed(result):
    """The one line of a command that could not do what it should."""
    code, out, err = result
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    return line.removeprefix("onequota: ")


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_exits_0_when_allowed_and_1_when_refused(oq, redis):
    words = ("check", "alice", "--limits", "2/minute;500/day")
    assert oq(*words)[:2] == (
        0,
        "allowed\n  2/minute      1 of 2 left  whole again in 1 min\n  500/day   499 of 500 left  whole again in 1 d\n",
    )
    code, said = answer(oq(*words, "--json"))
    assert (code, said["allowed"], said["limits"][0]["remaining"]) == (0, True, 0)
    code, out, err = oq(*words)
    assert (code, err) == (1, "")
    assert out.startswith("refused  try again in ")
    assert answer(oq(*words, "--json", "--peek"))[1]["limits"][1]["remaining"] == 498  # refusals cost nothing
    assert oq(*words, "--peek")[1].startswith("would be refused")


def test_check_counts_as_the_service_does(oq, redis):
    oq("check", "alice", "bob", "--limits", "9/minute", "--cost", "4")
    with onequota_service(redis) as url:
        code, said = answer(oq("check", "alice bob", "--limits", "9/minute", "--json", "--url", url, "--api-key", KEY))
    assert (code, said["limits"][0]["remaining"]) == (0, 4)


def test_check_of_a_domain_takes_entries_in_order(oq, redis):
    words = ("check", "--domain", "chat", "--limits-file", "limits.yaml", "--json")
    assert answer(oq(*words, "user=alice", "path=/login"))[1]["limits"][0]["name"] == "1/minute"
    assert answer(oq(*words, "user=alice", "path=/login"))[0] == 1
    assert answer(oq(*words, "path=/login", "user=alice")) == (0, {"allowed": True, "retry_after": None, "limits": []})
    code, said = answer(oq(*words, "user=bob", "+", "user=bob", "path=/login"))
    assert (code, [limit["name"] for limit in said["limits"]]) == (0, ["2/minute", "500/day", "1/minute"])
    assert answer(oq(*words, "user=admin"))[1]["limits"] == []


def test_check_says_that_waiting_does_not_help_where_a_rule_lets_nothing_pass(oq, redis, folder):
    (folder / "none.yaml").write_text(
        "domain: d\ndescriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: 0}}]"
    )
    code, out, _ = oq("check", "--domain", "d", "a=b", "--limits-file", "none.yaml")
    assert (code, out) == (1, "refused  a rule lets nothing pass; onequota explain says which\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["alice", "--limits", "2/minute"],
            "whom to ask? Pass --url http://HOST:PORT of a running service, or --redis",
        ),
        (["alice"], '--limits: by which limits? Pass --limits "10/minute", or --domain NAME'),
        (["--domain", "chat", "alice"], 'entries: "alice" is none: write KEY=VALUE, for example user=alice'),
        (["--domain", "chat", "user=a", "--limits", "1/day"], "--limits: --domain has its own limits: leave one out"),
        (
            ["a", "--limits", "1/day", "--url", "http://h", "--redis", "redis://h"],
            "--url asks a service, --redis a Redis",
        ),
        (["a", "--limits", "1/day", "--url", "h:8000"], "wanted the service's URL"),
        (
            ["a", "--limits", "1/day", "--redis", "http://k@h"],
            "http://***@h is no Redis: pass the URL of a service as --url",
        ),
        (["a", "--limits", "1/day", "--redis", "ftp://h"], "wanted redis://HOST:PORT/DB"),
        (["a", "--limits", "1/day", "--cost", "x"], "Invalid value for '--cost'"),
        (["--domain", "chat", "user=a", "--redis", "redis://h"], 'a Redis knows no limits of domain "chat"'),
        (
            ["--domain", "chat", "user=a", "--url", "http://h", "--limits-file", "limits.yaml"],
            "--limits-file goes with --domain and --redis: a service has its own",
        ),
        (["a", "--limits", "1/day", "--redis", "unix:///nowhere.sock"], "Redis is away"),
        (["a", "--limits", "1/day", "--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_check_that_cannot_be_done_exits_2_with_one_line(oq, words, says):
    assert says in failed(oq("check", *words))


def test_a_redis_that_is_away_is_one_line_for_whoever_types_it_too(tmp_path):
    """In a process of its own: here pytest would take what is logged."""
    words = command("check", "a", "--limits", "1/day", "--redis", "redis://127.0.0.1:1")
    done = subprocess.run(
        words, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    said = failed((done.returncode, done.stdout, done.stderr))
    assert said.startswith("Redis is away: ")


def test_check_names_what_is_wrong_with_a_value(oq, redis):
    assert failed(oq("check", "a", "--limits", "2/fortnight")).startswith(
        '--limits: limit "2/fortnight": unknown period'
    )
    assert (
        failed(oq("check", "a", "--limits", "2/minute", "--cost", "3"))
        == "cost: 3 is out of range; 2/minute takes 0 to 2"
    )
    said = failed(oq("check", "--domain", "chta", "user=a", "--limits-file", "limits.yaml"))
    assert said == '--domain: no "chta" in the limits file'


def test_check_asks_a_service_by_its_own_limits(oq, redis, folder):
    with onequota_service(redis, "--limits", "limits.yaml") as url:
        words = ("--domain", "chat", "user=alice", "--url", url, "--api-key", KEY, "--json")
        assert [answer(oq("check", *words))[0] for _ in range(3)] == [0, 0, 1]
        assert answer(oq("check", *words, "--peek"))[1]["limits"][1]["remaining"] == 498
        # and the same counters through their Redis, by the same file
        code, said = answer(oq("explain", *words[:3], "--redis", redis.url, "--limits-file", "limits.yaml", "--json"))
        assert (code, said["answer"]["limits"][0]["remaining"]) == (1, 0)
        words = ("explain", *words[:7], "--limits-file")
        assert "another catalog" not in oq(*words, "limits.yaml")[1]
        (folder / "newer.yaml").write_text(LIMITS.replace("2/minute", "9/minute"))
        code, out, _ = oq(*words, "newer.yaml")
        assert "→ 9/minute; 500/day" in out
        assert f"asked was a service with another catalog, {version(oq)}; this is its answer:\nwould be refused" in out


def test_the_limits_file_is_the_services_by_its_variable(oq, redis, monkeypatch):
    monkeypatch.setenv("ONEQUOTA_LIMITS", "limits.yaml")
    assert answer(oq("check", "--domain", "chat", "user=alice", "--json"))[1]["limits"][0]["remaining"] == 1
    assert answer(oq("explain", "--domain", "chat", "user=alice", "--json"))[1]["answer"]["limits"][0]["remaining"] == 1
    assert answer(oq("limits", "--json"))[1]["domains"]["chat"][0]["key"] == "user"


# ── explain ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_explain_of_a_domain_says_which_rule_and_why_without_charging(oq, redis):
    words = ("explain", "--domain", "chat", "user=alice", "--limits-file", "limits.yaml")
    code, out, _ = oq(*words)
    assert code == 0
    assert "✓  any value  limits.yaml:3:5" in out
    assert "→ 2/minute; 500/day  rule chat.user  limits.yaml:3:5" in out
    assert "2/minute      2 of 2 left  whole" in out
    assert not [line for line in out.splitlines() if line != line.rstrip()]
    for _ in range(2):
        oq("check", *words[1:])
    code, said = answer(oq(*words, "--json"))
    assert (code, said["answer"]["allowed"], said["answer"]["limits"][0]["remaining"]) == (1, False, 0)


def test_explain_needs_nobody_to_ask(oq):
    code, said = answer(oq("explain", "--domain", "chat", "user=x", "pth=y", "--limits-file", "limits.yaml", "--json"))
    [way] = said["descriptors"]
    assert (code, way["rule"], said["answer"]) == (0, None, None)
    assert way["steps"][1]["reason"] == 'no key "pth" within chat.user; did you mean "path"?'


def test_explain_of_an_app_traces_a_request(oq, redis):
    code, said = answer(oq("explain", "oq_app:app", "post", "/chat", "--key", "alice", "--json"))
    [told] = said["limiters"]
    assert (code, told["path"], told["endpoint"]) == (0, "/chat", "oq_app:chat")
    assert [(one["limits"], one["holds"]) for one in told["limits"]] == [
        (["2/minute", "500/day"], True),
        (["9/minute"], False),
    ]
    assert told["limits"][0]["answer"]["limits"][0]["remaining"] == 2
    out = oq("explain", "oq_app:app", "POST", "/chat", "--key", "alice")[1]
    assert "✗  9/minute           default: the route has limits of its own, which override the defaults" in out


def test_explain_and_limits_stand_where_the_app_counts(oq, redis):
    import asyncio

    from service.commands import routes

    app = routes.load("oq_app:app")

    async def visit():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://h") as client:
            return [(await client.post("/chat", headers={"x-user": "alice"})).status_code for _ in range(3)]

    assert asyncio.run(visit()) == [200, 200, 429]
    assert answer(oq("explain", "oq_app:app", "POST", "/chat", "--key", "alice", "--json"))[0] == 1
    code, out, _ = oq("limits", "oq_app:app", "--key", "alice")
    assert code == 0
    assert "├── POST    /chat  oq_app:chat" in out
    assert "2/minute      0 of 2 left  whole again in " in out
    assert oq("reset", "alice")[1].startswith("2 counters forgotten of alice")
    assert answer(oq("explain", "oq_app:app", "POST", "/chat", "--key", "alice", "--json"))[0] == 0


def test_explain_replays_a_log(oq, folder):
    lines = [f'192.0.2.1 - al [24/Nov/2025:17:00:{second:02} +0000] "GET / HTTP/1.1" 200 1' for second in range(5)]
    (folder / "access.log").write_text("\n".join(lines))
    code, out, err = oq("explain", "--replay", "access.log", "--limits", "limits.yaml")
    assert (code, err) == (1, "")
    assert "3 would have been refused (60.00 %), 5 met a limit" in out
    assert "line 3  2025-11-24 17:00:02  GET / from 192.0.2.1  chat.user, retry in 58 s" in out
    code, said = answer(oq("explain", "--replay", "access.log", "--limits", "limits.yaml", "--json"))
    assert (code, said["refused"], said["identities"]) == (1, 3, [{"counter": "user:al", "refused": 3}])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "explain: write MODULE:APP METHOD PATH, or --domain NAME KEY=VALUE…, or --replay LOG --limits FILE"),
        (["oq_app:app", "GET"], "write MODULE:APP METHOD PATH"),
        (["oq_app:app", "GET", "chat"], 'PATH: "chat" begins with no slash; write it as /chat'),
        (["oq_nowhere:app", "GET", "/"], 'app "oq_nowhere:app" cannot be loaded: no module "oq_nowhere"'),
        (["oq_app:app", "GET", "/", "--key", "a"], "counts in the memory of its own processes: set REDIS_URL"),
        (["--domain", "chat", "user=a"], "by which limits? Pass --limits-file FILE"),
        (["--domain", "chat", "--limits-file", "limits.yaml"], "entries: none given: write KEY=VALUE"),
        (["--domain", "chat", "user=a", "--limits-file", "none.yaml"], "none.yaml: cannot be read: No such file"),
        (["--replay", "access.log", "--limits", "limits.yaml"], "access.log: cannot be read: No such file"),
        (["--replay", "access.log"], "by which limits?"),
        (["--replay", "x", "--limits", "limits.yaml", "--descriptor", "user=shoe"], "fields are remote_address"),
    ],
)
def test_explain_that_cannot_be_done_exits_2_with_one_line(oq, words, says):
    assert says in failed(oq("explain", *words))


# ── limits, validate, reset, doctor ──────────────────────────────────────────────────────────────────────────────


def test_limits_of_a_file_stand_where_the_domain_counts(oq, redis):
    oq("check", "--domain", "chat", "user=bob", "--limits-file", "limits.yaml")
    out = oq("limits", "limits.yaml", "--key", "bob")[1]
    assert out.splitlines()[1:3] == [
        "├── user  any value  2/minute; 500/day  limits.yaml:3:5",
        "│   ├── 2/minute      1 of 2 left  whole again in 1 min",
    ]
    [user, admin] = answer(oq("limits", "limits.yaml", "--json"))[1]["domains"]["chat"]
    assert (user["limits"], user["answer"], admin["limits"]) == ("2/minute; 500/day", None, "unlimited")
    assert user["descriptors"][0]["limits"] == "1/minute"


def test_validate_tells_all_flaws_with_line_and_column(oq, folder):
    assert oq("validate", "limits.yaml")[:2] == (0, f"limits.yaml is good: 1 domain, 3 rules, version {version(oq)}\n")
    code, out, err = oq("validate", "bad.yaml")
    assert (code, err) == (1, "")
    assert [line.partition(": ")[0] for line in out.splitlines()] == [
        "bad.yaml:4:5", "bad.yaml:6:18", "bad.yaml:7:13", "3 flaws",
    ]  # fmt: skip
    code, said = answer(oq("validate", "bad.yaml", "--json"))
    assert (code, said["valid"], len(said["flaws"])) == (1, False, 3)
    assert said["flaws"][0]["sentence"].startswith('unknown key "limit" in a descriptor; did you mean "limits"?')
    assert failed(oq("validate", "none.yaml")) == "none.yaml: no such file or directory"
    (folder / "closed").mkdir()
    assert "there is no .yaml or .yml file in this directory" in oq("validate", "closed")[1]


def version(oq):
    return answer(oq("validate", "limits.yaml", "--json"))[1]["version"]


def test_reset_forgets_one_key_and_says_how_many_counters(oq, redis):
    for key in ("alice", "bob"):
        oq("check", key, "--limits", "2/minute;9/hour")
    assert answer(oq("reset", "alice", "--json")) == (0, {"key": "alice", "forgotten": 2})
    assert answer(oq("check", "bob", "--limits", "2/minute", "--peek", "--json"))[1]["limits"][0]["remaining"] == 1
    assert oq("reset", "alice")[1].startswith("0 counters forgotten of alice; is it the key as it was charged?")


def test_reset_needs_a_redis(oq, monkeypatch):
    monkeypatch.setenv("ONEQUOTA_URL", "http://h")
    assert failed(oq("reset", "alice")).startswith("in which Redis? Pass --redis URL, or set REDIS_URL")


def test_doctor_looks_at_redis_the_environment_the_service_and_the_app(oq, redis, monkeypatch):
    monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", "20000")  # a busy machine is no ill deployment
    with onequota_service(redis) as url:
        code, said = answer(oq("doctor", "oq_app:app", "--url", url, "--api-key", KEY, "--redis", redis.url, "--json"))
        found = {finding["about"]: finding["state"] for finding in said["findings"]}
        assert (code, said["bad"]) == (0, 0), said
        assert {"Redis", "latency", "service", "checks", "service's Redis", "keep-alive", "limiter"} <= set(found)
        code, said = answer(oq("doctor", "--url", url, "--json"))
        assert (code, [f["about"] for f in said["findings"] if f["state"] == "bad"]) == (1, ["API key"])
    with redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            monkeypatch.setenv("ONEQUOTA_KEEP_ALIVE_S", "5")
            code, out, _ = oq("doctor")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert code == 1
    assert "✗  Redis memory  Redis evicts keys when its memory is full (maxmemory-policy allkeys-lru)" in out
    assert "✗  keep-alive    5 s" in out
    assert out.endswith("2 things to mend\n")


def test_doctor_says_what_does_not_answer(oq, monkeypatch):
    monkeypatch.setenv("ONEQUOTA_WORKERS", "many")
    words = ("doctor", "--redis", "unix:///nowhere.sock", "--url", "http://127.0.0.1:1", "--json")
    code, said = answer(oq(*words))
    bad = {finding["about"]: finding["sentence"] for finding in said["findings"] if finding["state"] == "bad"}
    assert (code, set(bad)) == (1, {"environment", "Redis", "service"})
    assert bad["environment"].startswith('ONEQUOTA_WORKERS="many": wanted a whole number')
    assert bad["service"].startswith("http://127.0.0.1:1 is no onequota service")


# ── on the screen ────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def onequota_service(redis, *more):
    import pathlib

    variables = {"ONEQUOTA_API_KEYS": f"tests:{KEY}:*", "ONEQUOTA_REDIS_TIMEOUT_MS": "5000"}
    with onequota(
        pathlib.Path.cwd(), "serve", "--workers", "2", "--port", "0", "--redis", redis.url, *more, variables=variables
    ) as running:
        httpx.get(running.banner["url"] + "/health", timeout=60)  # until a worker serves
        yield running.banner["url"]


def terminal(*words, columns=80, until=None, **variables):
    """What a command says to a terminal; Ctrl-C when it has said `until`."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command(*words),
            env=environment(**variables, TERM="xterm", COLUMNS=str(columns)),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        os.close(theirs)
        said = b""
        deadline = time.monotonic() + 30
        with process:
            try:
                while select.select([ours], [], [], 0.2)[0] or process.poll() is None:
                    assert time.monotonic() < deadline, said
                    try:
                        said += os.read(ours, 65536)
                    except OSError:  # the other end is closed
                        break
                    if until is not None and until(said.decode(errors="ignore")):
                        process.send_signal(signal.SIGINT)
                        until = None
                code = process.wait(20)
            finally:
                process.kill()
        return code, said.decode()
    finally:
        os.close(ours)


def test_a_terminal_gets_colours_and_who_wants_none_does_not(redis):
    words = ("check", "alice", "--limits", "2/minute", "--peek", "--redis", redis.url)
    code, said = terminal(*words)
    assert (code, "\x1b[1;32mwould be allowed" in said) == (0, True)
    code, said = terminal(*words, NO_COLOR="1")
    assert (code, "would be allowed" in said, "\x1b[1;32m" in said) == (0, True, False)


def test_a_narrow_terminal_loses_nothing(redis):
    _, said = terminal("limits", "limits.yaml", "--key", "bob", "--redis", redis.url, columns=30, NO_COLOR="1")
    said = re.sub(r"\x1b\[\d*m", "", said)
    flat = "".join(character for character in said if character.isalnum())
    for part in ("2minute", "500day", "2of2left", "500of500left", "limitsyaml35", "unlimited"):
        assert part in flat, said
    assert max(map(len, said.splitlines())) <= 30


def test_watching_shows_the_same_in_place_until_ctrl_c(redis):
    words = ("check", "alice", "--limits", "2/minute", "--watch", "--every", "0.1", "--redis", redis.url)
    code, said = terminal(*words, until=lambda said: said.count("would be allowed") >= 3)
    assert code == 0
    assert "\x1b[1A" in said  # the cursor goes up again
    with redis.client() as client:
        assert client.dbsize() == 0  # looking spends nothing


def test_watching_for_a_program_is_a_line_each_time(redis):
    words = ("check", "alice", "--limits", "2/minute", "--watch", "--every", "0.1", "--json", "--redis", redis.url)
    with subprocess.Popen(command(*words), env=environment(), stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert [json.loads(line)["allowed"] for line in lines] == [True] * 3
