"""The examples of docs/cli.md, docs/client.md and docs/limits.md, and of the README, do what they say."""

import os
import re
import subprocess
import sys

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from running import ROOT, environment, onequota

LANGUAGES = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The contents of a page's blocks in one language."""
    text = ((ROOT if page == "README.md" else ROOT / "docs") / page).read_text()
    return [body for found, body in LANGUAGES.findall(text) if found == language]


def settled(text):
    """Output without what differs from run to run: times, versions, where Redis is, blanks at the end of lines."""
    text = re.sub(r"\b(\d+ (d|h|min|s)\b ?)+", "TIME", text)
    text = re.sub(r'"(reset_after|retry_after)": \d+', r'"\1": TIME', text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "VERSION", text)
    text = re.sub(r"unix:///\S+?(?=  |$)", "unix:///REDIS", text, flags=re.MULTILINE)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.fixture
def folder(tmp_path, redis_server):
    """What docs/cli.md says is there."""
    [limits] = blocks("cli.md", "yaml")
    [main] = blocks("cli.md", "python")
    [log] = blocks("cli.md", "")
    (tmp_path / "limits.yaml").write_text(limits)
    (tmp_path / "main.py").write_text(main)
    (tmp_path / "access.log").write_text(log)
    return tmp_path


def run(command, cwd, **variables):
    return subprocess.run(
        command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=120, check=False
    )


def shown(page, folder, redis_url):
    """Types what a page's console blocks type, and compares what comes; how many commands there were."""
    command = folder / "bin" / "onequota"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m service.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    count = 0
    for block in blocks(page, "console"):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            typed, _, wanted = example.partition("\n")
            done = run(["bash", "-c", typed], folder, REDIS_URL=redis_url, PATH=path, LC_ALL="C.UTF-8")
            assert settled(done.stdout) == settled(wanted), (typed, done.stderr)
            assert done.stderr == ""
            count += 1
    return count


def test_the_commands_say_what_the_page_shows(folder, redis_server):
    assert shown("cli.md", folder, redis_server.url) == 14


def test_the_limits_file_is_read_matched_and_refused_as_the_page_shows(tmp_path, redis_server):
    for file in blocks("limits.md", "yaml"):
        (tmp_path / file.split()[1]).write_text(file)
    assert shown("limits.md", tmp_path, redis_server.url) == 7


def test_the_clients_examples_run(tmp_path, redis_server):
    [limits] = blocks("cli.md", "yaml")
    (tmp_path / "limits.yaml").write_text(limits)
    options = ("--workers", "2", "--port", "0", "--redis", redis_server.url, "--limits", "limits.yaml")
    examples = blocks("client.md", "python")
    assert len(examples) == 3
    with onequota(tmp_path, "serve", *options, variables={"ONEQUOTA_REDIS_TIMEOUT_MS": "5000"}) as running:
        url = running.banner["url"]
        httpx.get(url + "/health", timeout=60)  # until a worker serves
        for code in examples:
            assert "http://127.0.0.1:8000" in code
            here = code.replace('"http://127.0.0.1:8000"', f'"{url}"')
            done = run([sys.executable, "-W", "error", "-c", here], tmp_path)
            assert (done.returncode, done.stderr) == (0, "")


def test_the_slowapi_names_that_are_replaced_are_all_here():
    [change] = blocks("slowapi.md", "diff")
    names = {}
    for sign, line in re.findall(r"^([+-])(.*)$", change, re.MULTILINE):
        exec(line, names.setdefault(sign, {}))
    assert names["-"].keys() == names["+"].keys()
    assert len(names["+"]) == 8  # and the builtins


# ── every page ───────────────────────────────────────────────────────────────────────────────────────────────────────

PAGES = [page for page in sorted(ROOT.glob("**/*.md")) if not {".venv", "node_modules"} & set(page.parts)]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#]+)")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_a_page_links_to_is_there(page):
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert broken == []


def test_the_readmes_app_refuses_the_21st_message_as_shown(monkeypatch, redis_server):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("ONEQUOTA_REDIS_TIMEOUT_MS", "5000")
    [code] = blocks("README.md", "python")
    place = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), place)
    with TestClient(place["app"]) as client:
        assert client.get("/search", params={"text": "x"}).status_code == 200
        said = [client.post("/chat", json={}) for _ in range(21)]
    assert [response.status_code for response in said] == [200] * 20 + [429]
    [wanted] = [block for block in blocks("README.md", "") if block.startswith("HTTP/1.1 429")]
    head, _, body = wanted.partition("\n\n")
    seconds = re.compile(r"(?<=retry-after: )\d+|(?<=;t=)\d+|(?<=;r=)\d+|(?<= in )\d+")
    for line in head.splitlines()[1:]:
        name, _, _ = line.partition(": ")
        assert seconds.sub("N", f"{name}: {said[-1].headers[name]}") == seconds.sub("N", line)
    assert seconds.sub("N", said[-1].text) == seconds.sub("N", body.replace("\n ", "").strip())


def test_the_limits_file_of_the_readme_is_asked_as_shown(tmp_path, redis_server):
    [limits] = blocks("README.md", "yaml")
    (tmp_path / "limits.yaml").write_text(limits)
    text = (ROOT / "README.md").read_text()
    [(typed, wanted)] = re.findall(r"^\$ onequota (check .*?) +#.*\n((?:.+\n)+?)```", text, re.MULTILINE)
    arguments = [*typed.split(), "--limits-file", "limits.yaml"]
    done = run([sys.executable, "-m", "service.cli", *arguments], tmp_path, REDIS_URL=redis_server.url)
    assert settled(done.stdout) == settled(wanted), done.stderr


def test_the_curl_line_of_the_readme_is_answered(tmp_path, redis_server):
    options = ("--workers", "2", "--port", "0", "--redis", redis_server.url)
    lines = [
        line.removeprefix("$ ")
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.removeprefix("$ ").startswith("curl -s localhost:8000")
    ]
    assert len(lines) == 1
    with onequota(tmp_path, "serve", *options, variables={"ONEQUOTA_REDIS_TIMEOUT_MS": "5000"}) as running:
        place = running.banner["url"].removeprefix("http://")
        httpx.get(f"http://{place}/health", timeout=60)  # until a worker serves
        for line in lines:
            command = line.replace("localhost:8000", place) + " --fail-with-body"
            said = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
            assert (said.returncode, '"allowed":true' in said.stdout) == (0, True), (line, said.stdout)
