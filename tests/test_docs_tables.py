"""The tables of docs/limits.md and docs/settings.md leave nothing out, and say what the code says."""

import re

import typer
import yaml
from running import ROOT
from test_docs import blocks

from service import cli
from service.limits.algorithms import KNOWN
from service.limits.catalog import PERIODS, UNITS_S, grammar
from service.limits.limit import ON_OUTAGE, PERIODS_S, Limit
from service.settings import Settings


def rows(page, head):
    """The cells of the rows of each table of a page whose head begins so."""
    tables, within = [], False
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith(head):
            tables.append([])
            within = True
        elif within and line.startswith("|"):
            if not line.startswith("|-"):
                cells = re.split(r"(?<!\\)\|", line)[1:-1]
                tables[-1].append([cell.strip().replace("\\|", "|") for cell in cells])
        else:
            within = False
    return tables


def words(cell):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


# ── docs/limits.md ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_key_of_a_limits_file_is_told_where_it_stands():
    told = [sorted(words(key)[0] for key, _ in table) for table in rows("limits.md", "| key |")]
    assert told == [sorted(keys) for keys in (grammar.DOMAIN, grammar.DESCRIPTOR, grammar.RATE_LIMIT)]


def test_every_key_is_used_in_the_example():
    def keys(node):
        if isinstance(node, dict):
            return set(node).union(*map(keys, node.values()))
        return set().union(*map(keys, node)) if isinstance(node, list) else set()

    used = set().union(*map(keys, yaml.safe_load_all(blocks("limits.md", "yaml")[0])))
    assert {*grammar.DOMAIN, *grammar.DESCRIPTOR, *grammar.RATE_LIMIT} - used == set()


def test_what_a_key_may_say_is_all_there():
    _, descriptor, rate_limit = [{words(key)[0]: cell for key, cell in table} for table in rows("limits.md", "| key |")]
    assert [word for word in re.findall(r"[a-z]+", descriptor["per"]) if word in UNITS_S] == list(PERIODS)
    assert [word for word in re.findall(r"[a-z]+", rate_limit["unit"]) if word in UNITS_S] == list(UNITS_S)
    assert sorted(words(descriptor["on_outage"])[:3]) == sorted(ON_OUTAGE)
    [algorithms] = rows("limits.md", "| `algorithm` | how")
    assert [words(name)[0] for name, _ in algorithms] == list(KNOWN)


def test_a_limit_string_means_what_the_page_says():
    [strings] = rows("limits.md", "| written | units |")
    for written, units, seconds in strings:
        limits = Limit.parse(words(written)[0])
        assert "; ".join(str(limit.amount) for limit in limits) == units
        assert "; ".join(str(limit.window_s) for limit in limits) == seconds
    text = (ROOT / "docs" / "limits.md").read_text()
    assert f"Periods are {', '.join([*PERIODS_S][:4])}, month (30 days) and year (360 days" in text


# ── docs/settings.md ─────────────────────────────────────────────────────────────────────────────────────────────────

SETTINGS = [row for table in rows("settings.md", "| variable |") for row in table]


def variables(field):
    alias = Settings.model_fields[field].validation_alias
    names = getattr(alias, "choices", [alias or f"ONEQUOTA_{field.upper()}"])
    return [str(name) for name in names]


def test_every_variable_is_told_with_its_default():
    def written(default):
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        return "\N{EN DASH}" if default in (None, ()) else f"`{text.lower()}`"

    wanted = {variables(name)[0]: written(field.default) for name, field in Settings.model_fields.items()}
    assert sorted((words(variable)[0], default) for variable, default, _, _ in SETTINGS) == sorted(wanted.items())


def test_a_variables_other_name_is_told_beside_it():
    told = {words(variable)[0]: words(meaning) for variable, _, _, meaning in SETTINGS}
    for name in Settings.model_fields:
        first, *others = variables(name)
        assert set(others) <= set(told[first]), name


def test_every_option_that_overrules_a_variable_is_told():
    names = {"redis": "redis_url"}
    options = {
        command: {names.get(option.name, option.name): option.opts[0] for option in made.params}
        for command, made in typer.main.get_command(cli.app).commands.items()
        if command in ("serve", "run")
    }

    def wanted(field):
        found = {command: of[field] for command, of in options.items() if field in of}
        return [*found.values()][:1] if len(found) == 2 else [f"{command} {opt}" for command, opt in found.items()]

    told = {words(variable)[0]: words(option) for variable, _, option, _ in SETTINGS}
    assert told == {variables(field)[0]: wanted(field) for field in Settings.model_fields}


def test_the_variables_that_are_no_settings_are_told_too():
    read = re.findall(r"\{PREFIX\}([A-Z_]+)", (ROOT / "service" / "settings.py").read_text())
    text = (ROOT / "docs" / "settings.md").read_text()
    assert {name for name in read if f"`ONEQUOTA_{name}`" not in text} == {"HANDOVER"}  # a process's word to itself
