"""What operators are given: files that Kubernetes takes, and prose that names what there is."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from syncd import __version__
from syncd.cli.commands import cli
from syncd.config import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
#: Below these are files that are no objects of Kubernetes: syncd's own, and rules for any Prometheus.
OTHERS = {"config", "observability", "tenants"}
MANIFESTS = sorted(file for file in DEPLOY.rglob("*.yaml") if not OTHERS & set(file.relative_to(DEPLOY).parts))
KUSTOMIZATIONS = sorted(DEPLOY.rglob("kustomization.yaml"))
PROSE = sorted(
    [
        *(ROOT / name for name in ("ARCHITECTURE.md", "CHANGELOG.md", "README.md")),
        *(ROOT / "docs").rglob("*.md"),
        *DEPLOY.rglob("*.md"),
        *(ROOT / "connectors").rglob("*.md"),
    ]
)


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


each_manifest = pytest.mark.parametrize("file", MANIFESTS, ids=named)
each_kustomization = pytest.mark.parametrize("file", KUSTOMIZATIONS, ids=named)
each_prose = pytest.mark.parametrize("file", PROSE, ids=named)


def documents(file: Path) -> list[Any]:
    return [each for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each is not None]


def mappings(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside of a document."""
    if isinstance(node, Mapping):
        yield node
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for child in children:
        yield from mappings(child)


def pods(file: Path) -> list[Mapping[str, Any]]:
    return [each for document in documents(file) for each in mappings(document) if "containers" in each]


def containers(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def in_shell(text: str) -> list[Sequence[str]]:
    """Our commands in a line of a shell, split, without the word ``syncd``."""
    return [shlex.split(each) for each in re.findall(r"(?:^|[;&|(])\s*syncd +([a-z][^;&|]*)", text)]


def in_prose(text: str) -> list[Sequence[str]]:
    """Our commands between backticks, and on lines of their own in blocks of code; of a terminal, those after a $."""
    plain, *rest = text.split("```")
    blocks, plains = rest[::2], [plain, *rest[1::2]]
    found = []
    for block in blocks:
        prompt = r"\$ +" if block.startswith("console\n") else r"(?:\$ +)?"
        found += re.findall(rf"^\s*{prompt}syncd +([a-z].*)$", block, re.MULTILINE)
    spans = [span for each in plains for span in re.findall(r"`([^`\n]+)`", each)]
    found += [each for span in spans for each in re.findall(r"\bsyncd +([a-z][^;&|]*)", span)]
    return [shlex.split(each, comments=True) for each in found]


def commands(file: Path) -> Iterator[Sequence[str]]:
    """What a manifest runs, without the word ``syncd``."""
    for pod in pods(file):
        for container in containers(pod):
            runs = [[*container.get("command", ["syncd"]), *container.get("args", [])]]
            runs += [each["exec"]["command"] for each in mappings(container) if "exec" in each]
            for run in runs:
                if run[0] == "syncd":
                    yield run[1:]
                else:
                    assert run[:2] == ["sh", "-c"], f"{named(file)} runs {run[0]}"
                    yield from in_shell(run[2])


def refused(words: Sequence[str]) -> str | None:
    """What is wrong with a command line, as far as names go; ``words`` come after ``syncd``."""
    command: click.Command = cli
    words = list(words)
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            return None if words == ["--help"] else "no command"
        name = words.pop(0)
        if name not in command.commands:
            return f"no command {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
    return f"{command.name} has no {unknown[0]}" if unknown else None


# --- Kubernetes -----------------------------------------------------------------------------------


@each_manifest
def test_every_manifest_is_a_named_object(file: Path) -> None:
    """Each document says what it is; all but a kustomization have a name and no namespace."""
    found = documents(file)
    assert found
    for document in found:
        assert document["apiVersion"]
        assert document["kind"]
        if document["kind"] not in ("Kustomization", "Component"):
            assert document["metadata"].get("name") or document["metadata"].get("generateName")
            assert "namespace" not in document["metadata"]


def test_there_are_manifests_to_look_at() -> None:
    assert {"Deployment", "Job", "ServiceAccount", "Secret", "Kustomization"} <= {
        document["kind"] for file in MANIFESTS for document in documents(file)
    }
    assert [command for file in MANIFESTS for command in commands(file)]


@each_manifest
def test_every_container_is_bound_as_tightly_as_it_can_be(file: Path) -> None:
    """No root, no writing to the image, no capabilities, the runtime's own filter of system calls, no token."""
    for pod in pods(file):
        whole = pod["securityContext"]
        assert whole["runAsNonRoot"] is True
        assert whole["runAsUser"] == whole["runAsGroup"] == 10001
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "syncd"
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@each_manifest
def test_every_container_says_what_it_needs(file: Path) -> None:
    """A request for CPU and memory and a limit on memory; what is mounted is a volume of its pod, /tmp among them."""
    for pod in pods(file):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in containers(pod):
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes
            assert "/tmp" in mounts  # noqa: S108 - where the pod may write


@each_manifest
def test_every_command_that_kubernetes_runs_exists(file: Path) -> None:
    for words in commands(file):
        assert refused(words) is None, f"{named(file)}: syncd {' '.join(words)}"


@each_kustomization
def test_a_kustomization_lists_only_files_that_exist(file: Path) -> None:
    (document,) = documents(file)
    generated = [name for each in document.get("configMapGenerator", []) for name in each.get("files", [])]
    patches = [each["path"] for each in document.get("patches", []) if "path" in each]
    for name in [*document.get("resources", []), *document.get("components", []), *generated, *patches]:
        assert (file.parent / name.rpartition("=")[2]).exists(), f"{named(file)} lists {name}"


@each_kustomization
def test_no_secret_is_applied_from_here(file: Path) -> None:
    """Secrets are named by reference: no kustomization makes one, or lists the example."""
    (document,) = documents(file)
    assert "secretGenerator" not in document
    for name in document.get("resources", []):
        if (file.parent / name).is_file():
            assert "Secret" not in [each["kind"] for each in documents(file.parent / name)]


def test_the_example_of_secrets_holds_keys_and_no_values() -> None:
    for document in documents(DEPLOY / "base" / "secret.example.yaml"):
        assert document["stringData"]
        assert not any(document["stringData"].values())
        assert "data" not in document


def test_every_secret_that_is_named_is_in_the_example() -> None:
    """By a pod as a variable or a volume, or by the example tenant as a file."""
    example = {each["metadata"]["name"]: set(each["stringData"]) for each in documents(_secrets())}
    for file in MANIFESTS:
        for each in (node for document in documents(file) for node in mappings(document)):
            if ref := each.get("secretKeyRef"):
                assert ref["key"] in example[ref["name"]]
            if isinstance(volume := each.get("secret"), Mapping):
                assert volume["secretName"] in example
    named_as_files = set(re.findall(r"/run/secrets/syncd/([a-z0-9-]+)", _tenant().read_text(encoding="utf-8")))
    assert named_as_files == example["syncd-tenants"]


def _secrets() -> Path:
    return DEPLOY / "base" / "secret.example.yaml"


def _tenant() -> Path:
    return DEPLOY / "base" / "tenants" / "nordhaus.yaml"


def test_the_example_tenant_is_a_tenant() -> None:
    found = load(_tenant().parent)
    assert not found.problems
    assert [tenant.tenant for tenant in found.tenants] == ["nordhaus"]


# --- the image ------------------------------------------------------------------------------------


def test_the_image_runs_without_root_and_starts_syncd() -> None:
    users = re.findall(r"^USER (.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert users[-1:] == ["10001:10001"]
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert json.loads(entrypoint) == ["syncd"]
    (default,) = re.findall(r"^CMD (.+)$", DOCKERFILE, flags=re.MULTILINE)
    assert refused(json.loads(default)) is None


def test_the_image_installs_nothing_without_a_hash_from_the_lock() -> None:
    """Every installation requires hashes, and every one takes them from the lock or a piece of it."""
    lines = DOCKERFILE.replace("\\\n", " ").splitlines()
    installs = [each for line in lines for each in line.split("&&") if " install " in each]
    assert installs
    for install in installs:
        assert "--require-hashes" in install
        assert "-c requirements.lock" in install or "-r pip.lock" in install


def test_the_image_is_given_all_that_it_copies() -> None:
    """What the build copies exists, and the list of what docker is sent lets it through."""
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in (name for names in copies for name in names):
        assert (ROOT / name).exists()
        assert f"!{name}" in sent


def test_every_image_is_of_this_release() -> None:
    """One tag of syncd everywhere: in the manifests, the kustomizations and the instructions."""
    texts = [file.read_text(encoding="utf-8") for file in (*MANIFESTS, *DEPLOY.rglob("*.md"), DEPLOY / "Dockerfile")]
    tags = {tag for text in texts for tag in re.findall(r"\bsyncd:(\d[\w.]*)", text)}
    tags |= {
        image["newTag"]
        for file in KUSTOMIZATIONS
        for document in documents(file)
        for image in document.get("images", [])
        if image["name"] == "syncd"
    }
    assert tags == {__version__}


# --- prose ----------------------------------------------------------------------------------------


@each_prose
def test_every_command_that_prose_names_exists(file: Path) -> None:
    for words in in_prose(file.read_text(encoding="utf-8")):
        assert refused(words) is None, f"{named(file)}: syncd {' '.join(words)}"


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert in_prose("syncd is `syncd plan A`:\n```\n$ syncd fly --far  # away\n```\n") == [
        ["fly", "--far"],
        ["plan", "A"],
    ]
    assert in_shell('true && syncd backfill "$T"; code=$?') == [["backfill", "$T"]]
    assert refused(["fly"]) == "no command fly"
    assert refused(["plan", "acme", "--far"]) == "plan has no --far"
    assert refused(["config", "mend"]) == "no command mend"
    assert refused(["check", "acme", "--fix"]) is None


def test_the_map_shows_every_file_there_is_and_no_other() -> None:
    """ARCHITECTURE.md has a line for each file of syncd, and for each that only one connector has."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = set(_shown(text.partition("## The map")[2].split("```")[1]))
    there = {str(file.relative_to(ROOT)) for file in (ROOT / "syncd").rglob("*.py") if file.name != "__init__.py"}
    there |= {str(file.relative_to(ROOT)) for file in (ROOT / "connectors").glob("*/[!_]*.py")}
    names = ("client.py", "fields.py", "connector.py", "emulator.py", "webhooks.py", "demo.py")
    common = {f"connectors/{name}" for name in names}
    lines = {name for name in shown if name.endswith(".py")}
    for name in there:
        parts = Path(name).parts
        assert name in lines or f"connectors/{parts[-1]}" in common & lines, f"the map has no line for {name}"
    for name in lines:
        is_common = name in common and len(list((ROOT / "connectors").glob(f"*/{Path(name).name}"))) > 1
        assert is_common or (ROOT / name).exists(), f"the map has a line for {name}, which is not there"


def _shown(map_: str) -> Iterator[str]:
    """The paths of a map whose folders are lines that end in a slash, with what is inside further in."""
    above: list[tuple[int, str]] = []
    for line in filter(str.strip, map_.splitlines()):
        indent = len(line) - len(line.lstrip())
        name = line.split()[0]
        above = [each for each in above if each[0] < indent]
        path = "".join(each[1] for each in above) + name
        if name.endswith("/"):
            above.append((indent, name))
        yield path


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "adr").glob("*.md")), ids=named)
def test_a_decision_is_told_as_context_decision_and_cost(file: Path) -> None:
    """One page, numbered as its file is."""
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(file.name[:4])}. ")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == ["Context", "Decision", "Cost"]
    assert len(text.splitlines()) <= 60


@each_prose
def test_every_link_in_prose_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8")):
        assert re.match(r"https?://", target) or (file.parent / target).exists(), f"{named(file)} points to {target}"
