"""The pages for operators: what they show is typed again, what they have people write is read."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncd.config import load
from tests.cli.test_cli import Desk, desk, folder
from tests.cli.test_every_day import Names, shown, typed
from tests.deploy.config_page import page
from tests.deploy.test_deploy import PROSE, named
from tests.deploy.test_kubernetes import KUBECTL, misshapen, needs_kubectl, title
from tests.deploy.vendors import NAMES, PORTS, serving

__all__ = ["desk", "folder"]

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FIRST_STEPS = {"hubspot-in-15-minutes.md": "hubspot", "salesforce.md": "salesforce"}


def yaml_blocks(file: Path) -> list[str]:
    found = re.findall(r"^( *)```yaml\n(.*?)^\1```$", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(text) for _, text in found]


WRITTEN = [(file, number, text) for file in PROSE for number, text in enumerate(yaml_blocks(file), start=1)]
KINDS = [(file, number, text, yaml.safe_load(text)) for file, number, text in WRITTEN]
TENANTS = [pytest.param(text, id=f"{named(file)}-{n}") for file, n, text, said in KINDS if "tenant" in said]
OBJECTS = [pytest.param(said, id=f"{named(file)}-{n}") for file, n, _, said in KINDS if "kind" in said]


# --- what people are told to write ----------------------------------------------------------------


@pytest.mark.parametrize("text", TENANTS)
def test_every_tenant_in_prose_can_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "nordhaus.yaml").write_text(text, encoding="utf-8")
    found = load(tmp_path)
    assert [str(problem) for problem in found.problems] == []
    assert [tenant.tenant for tenant in found.tenants] == ["nordhaus"]


@pytest.mark.parametrize("document", OBJECTS)
def test_every_object_of_kubernetes_in_prose_fits_its_schema(document: dict[str, Any]) -> None:
    if document["kind"] != "Kustomization":
        assert misshapen(document) == []


def test_there_is_something_to_read() -> None:
    assert len(TENANTS) > 5
    assert len(OBJECTS) > 1


@needs_kubectl
def test_the_overlay_that_people_are_told_to_write_builds(tmp_path: Path) -> None:
    """Beside a checkout; what it names is in force: its tenants, its image, its namespace."""
    (text,) = [
        text for file, _, text, said in KINDS if file.name == "kubernetes.md" and said.get("kind") == "Kustomization"
    ]
    (tmp_path / "syncd").symlink_to(ROOT)
    mine = tmp_path / "mine"
    (mine / "tenants").mkdir(parents=True)
    (mine / "kustomization.yaml").write_text(text, encoding="utf-8")
    for name in ("nordhaus", "granit"):
        (mine / "tenants" / f"{name}.yaml").write_text(f"tenant: {name}\n", encoding="utf-8")
    (mine / "config").mkdir()
    (mine / "config" / "syncd.yaml").write_text("workers: 8\n", encoding="utf-8")
    done = subprocess.run(  # noqa: S603 - a folder of our own
        [str(KUBECTL), "kustomize", str(mine)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = {title(each): each for each in yaml.safe_load_all(done.stdout)}
    assert set(found["ConfigMap syncd-tenants"]["data"]) == {"nordhaus.yaml", "granit.yaml"}
    (service,) = [each["data"] for name, each in found.items() if name.startswith("ConfigMap syncd-service-")]
    assert service == {"syncd.yaml": "workers: 8\n"}
    pod = found["Deployment syncd"]["spec"]["template"]["spec"]
    assert [each["image"] for each in pod["containers"]] == ["REGISTRY/syncd:0.1.0"]
    assert found["Deployment syncd"]["metadata"]["namespace"] == "syncd"


# --- what people are shown ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIRST_STEPS)
def test_the_first_steps_show_what_comes_out(
    name: str, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the page, one after the other, on the emulated vendors that it says how to start."""
    crm, file = FIRST_STEPS[name], DOCS / name
    (text,) = [each for each in yaml_blocks(file) if "127.0.0.1" in each]
    with serving(crm, desk.service.now, {}) as vendors:
        for vendor, url in vendors.urls.items():
            there = f"http://127.0.0.1:{PORTS[vendor]}"
            assert there in text
            text = text.replace(there, url)
        for variable, secret in vendors.secrets.items():
            monkeypatch.setenv(variable, secret)
        desk.folder.mkdir()
        (desk.folder / "nordhaus.yaml").write_text(text, encoding="utf-8")
        names, commands = Names(), list(shown(file.read_text(encoding="utf-8")))
        assert commands
        for each in commands:
            code, lines = typed(names.told(each.command))
            said = "\n".join(lines)
            assert code == each.code, f"$ {each.command}\nexits {code}:\n{said}"
            assert names.agree(each.lines, lines), f"$ {each.command}\nsays now:\n{said}"


def test_the_first_steps_ask_for_the_variables_that_the_vendors_print() -> None:
    text = "".join((DOCS / name).read_text(encoding="utf-8") for name in FIRST_STEPS)
    assert set(NAMES.values()) <= set(re.findall(r"\{env: ([A-Z_]+)\}", text))
    assert not set(NAMES.values()) & set(os.environ)


def test_the_page_of_keys_is_as_the_schemas_say() -> None:
    """Made anew by: python -m tests.deploy.config_page > docs/config.md."""
    assert (DOCS / "config.md").read_text(encoding="utf-8") == page()


def test_a_newcomer_finds_every_page_from_the_first_one() -> None:
    """README.md, or a page that it links, leads to each page of docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8") + (DOCS / "kubernetes.md").read_text(encoding="utf-8")
    text += (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    linked = {Path(target).name for target in re.findall(r"[\w/.-]+\.md", text)}
    assert {file.name for file in DOCS.glob("*.md")} <= linked
