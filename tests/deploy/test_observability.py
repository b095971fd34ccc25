"""The dashboard and the alerts ask for metrics that there are, and the manual has a section for each alert."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, Final

import click
import pytest
import yaml

from syncd.cli.commands import cli
from syncd.state.gauges import STANDINGS

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / "deploy" / "observability"
MANUAL: Final = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
DASHBOARD: Final[dict[str, Any]] = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
RULES: Final[list[dict[str, Any]]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
#: As the manual tells them, which a test of /metrics compares with what there is.
METRICS: Final = {
    name: set(re.findall(r"`(\w+)`", labels))
    for name, labels in re.findall(r"^\| `(syncd_\w+)` \|[^|]*\|([^|]*)\|", MANUAL, re.MULTILINE)
}
#: What Prometheus adds to each series, and to a histogram's.
ADDED: Final = {"instance", "job", "le"}
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def named(expr: str) -> set[str]:
    """The metrics of an expression; a histogram's parts by the name of the whole."""
    return {re.sub(r"(?<=_seconds)_(bucket|count|sum)$", "", name) for name in re.findall(r"\bsyncd_\w+", expr)}


def labels_of(expr: str) -> set[str]:
    """The labels that an expression groups by, or selects."""
    groups = re.findall(r"\bby \(([^)]*)\)", expr)
    selections = re.findall(r"\{([^}]*)\}", expr)
    found = {name.strip() for group in groups for name in group.split(",")}
    return found | {name for each in selections for name in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", each)}


def prove(expr: str) -> None:
    """It names metrics that there are, with labels and states that they have."""
    found = named(expr)
    assert found, expr
    assert found <= set(METRICS), found - set(METRICS)
    known = set.union(*(METRICS[name] for name in found)) | ADDED
    assert labels_of(expr) <= known, labels_of(expr) - known
    for said in re.findall(r'syncd_pair_state\{[^}]*state(?:=~|!~|=)"([^"]*)"', expr):
        assert set(said.split("|")) <= set(STANDINGS), said
    assert expr.count("(") == expr.count(")")


def panels() -> list[dict[str, Any]]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def test_the_dashboard_can_be_imported() -> None:
    """Into any Grafana: the source of data is chosen there; ids are unique, and no panel lies on another."""
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    ids = [each["id"] for each in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for each in DASHBOARD["panels"]:
        at = each["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, each["title"]
        taken |= cells


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        prove(target["expr"])
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        groups = re.findall(r"\bby \(([^)]*)\)", target["expr"])
        assert legend <= {name.strip() for group in groups for name in group.split(",")}, panel["title"]


def test_the_dashboard_shows_every_metric() -> None:
    """But for those that alerts alone need."""
    shown = set().union(*(named(target["expr"]) for panel in panels() for target in panel["targets"]))
    assert set(METRICS) - shown == {"syncd_interval_seconds", "syncd_tenants"}


@each_rule
def test_every_alert_asks_for_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    """Its labels in the text are those of its result; the commands in it exist."""
    prove(rule["expr"])
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "manual"}
    groups = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    given = {name.strip() for group in groups for name in group.split(",")}
    for text in (notes["summary"], notes["description"]):
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= given
    commands = re.findall(r"\bsyncd ([a-z-]+(?: (?:[A-Z]+|--[a-z]+|\{\{[^}]*\}\}|check))*)", notes["description"])
    for words in commands:
        assert exists(shlex.split(words.replace("{{", "'").replace("}}", "'"))), words
    assert commands or "kubectl" in notes["description"]


def exists(words: list[str]) -> bool:
    command: click.Command | None = cli
    for word in words:
        if isinstance(command, click.Group):
            command = command.commands.get(word)
    known = {option for each in command.params for option in each.opts} if command is not None else set()
    return command is not None and {word for word in words if word.startswith("--")} <= known


@each_rule
def test_every_alert_has_its_section_in_the_manual(rule: dict[str, Any]) -> None:
    assert rule["annotations"]["manual"] == f"docs/metrics.md, section {rule['alert']}"
    assert f"\n### {rule['alert']}\n\n" in MANUAL


def test_the_manual_has_no_section_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^### (\w+)$", MANUAL, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_kubernetes_is_given_the_same_alerts() -> None:
    """The object for the Prometheus operator holds each of them word for word, beside the deployment's own."""
    folder = FOLDER.parent / "components" / "monitoring"
    groups = yaml.safe_load((folder / "prometheus-rule.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
    given = [rule for group in groups for rule in group["rules"]]
    assert given[-len(RULES) :] == RULES
    assert len({rule["alert"] for rule in given}) == len(given)
