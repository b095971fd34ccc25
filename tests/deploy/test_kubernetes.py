"""The objects that Kubernetes is given: as files, and as an overlay builds them where kubectl is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError, ValidationError, latest_version, validate
from sqlalchemy import Engine, create_engine

from syncd.config import load_service
from syncd.state import migrate
from tests.deploy.test_deploy import DEPLOY, MANIFESTS, OTHERS, containers, documents, mappings, named, refused

#: The oldest release of Kubernetes that is promised, and the newest whose schema is here.
RELEASES = ("1.31", latest_version())
KUSTOMIZED = [DEPLOY / "base", *sorted(each for each in (DEPLOY / "overlays").iterdir() if each.is_dir())]
SECRETS = DEPLOY / "base" / "secret.example.yaml"
SERVICE = DEPLOY / "base" / "config" / "syncd.yaml"
KUBECTL = shutil.which("kubectl")
#: The kinds that are kustomize's own and never reach a cluster.
BUILDERS = ("Kustomization", "Component")

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH; the plain files are checked anyway")
each_kustomized = pytest.mark.parametrize("folder", KUSTOMIZED, ids=named)
each_manifest = pytest.mark.parametrize("file", MANIFESTS, ids=named)


@cache
def built(folder: Path) -> tuple[Any, ...]:
    """What ``kubectl kustomize`` makes of a folder; it asks no cluster."""
    done = subprocess.run(  # noqa: S603 - our own folders
        [str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return tuple(each for each in yaml.safe_load_all(done.stdout) if each is not None)


def objects(file: Path) -> list[Any]:
    return [each for each in documents(file) if each["kind"] not in BUILDERS]


def title(document: Mapping[str, Any]) -> str:
    return f"{document['kind']} {document['metadata'].get('name') or document['metadata']['generateName']}"


# --- the shape of each object ---------------------------------------------------------------------


def misshapen(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with one object, by Kubernetes' own schema, or by what its operator cannot do without."""
    if document["apiVersion"] == "monitoring.coreos.com/v1":
        return list(_unmonitored(document))
    found = []
    for release in RELEASES:
        try:
            validate(dict(document), release, strict=True)
        except (ValidationError, SchemaNotFoundError) as exc:
            found.append(f"{title(document)} in {release}: {exc.message}")
    return found


def _unmonitored(document: Mapping[str, Any]) -> Iterator[str]:
    spec, kind = document["spec"], document["kind"]
    if kind == "ServiceMonitor":
        if set(spec) - {"selector", "endpoints", "namespaceSelector"} or not spec["selector"]["matchLabels"]:
            yield "a ServiceMonitor selects services by their labels, and says no more than which endpoints"
        for each in spec["endpoints"]:
            if set(each) - {"port", "path", "interval", "scrapeTimeout", "scheme"} or not isinstance(each["port"], str):
                yield f"an endpoint has a port by name and a path: {each}"
    elif kind == "PrometheusRule":
        for group in spec["groups"]:
            if set(group) - {"name", "interval", "rules"} or not group["rules"]:
                yield f"a group has a name and rules: {group.get('name')}"
            for rule in group["rules"]:
                has_one_name = ("alert" in rule) != ("record" in rule)
                if not has_one_name or set(rule) - {"alert", "record", "expr", "for", "labels", "annotations"}:
                    yield f"a rule alerts or records, by an expression: {rule.get('alert') or rule.get('record')}"
                if "alert" in rule and not {"summary", "description"} <= set(rule["annotations"]):
                    yield f"{rule['alert']} does not say what it means and what to do"
                if rule["expr"].count("(") != rule["expr"].count(")"):
                    yield f"{rule.get('alert')}: its brackets do not match"
    else:
        yield f"no shape is known for {kind}"


@each_manifest
def test_every_object_fits_the_schema(file: Path) -> None:
    """Strictly, in the oldest release that is promised and in the newest that is known: no key is made up."""
    for document in objects(file):
        assert misshapen(document) == []


@needs_kubectl
@each_kustomized
def test_every_overlay_builds_objects_that_fit_the_schema(folder: Path) -> None:
    found = built(folder)
    assert len({title(each) for each in found}) == len(found) > 5
    for document in found:
        assert misshapen(document) == []


def test_a_key_that_does_not_exist_would_be_noticed() -> None:
    (account,) = documents(DEPLOY / "base" / "service-account.yaml")
    assert misshapen(account) == []
    assert misshapen({**account, "replicas": 3})
    (monitor,) = documents(DEPLOY / "components" / "monitoring" / "service-monitor.yaml")
    assert misshapen({**monitor, "spec": {**monitor["spec"], "endpoints": [{"port": 80}]}})


# --- what belongs together ------------------------------------------------------------------------


def pods(found: Any) -> list[tuple[str, Mapping[str, Any]]]:
    return [(title(each), node) for each in found for node in mappings(each) if "containers" in node]


def plain() -> list[Any]:
    return [document for file in MANIFESTS for document in objects(file)]


def maps(found: Any) -> dict[str, set[str]]:
    return {each["metadata"]["name"]: set(each["data"]) for each in found if each["kind"] == "ConfigMap"}


def generated() -> dict[str, set[str]]:
    """The ConfigMaps that kustomizations make, by the names that plain files call them by."""
    found: dict[str, set[str]] = {}
    for file in MANIFESTS:
        for document in documents(file):
            for each in document.get("configMapGenerator", []):
                found[each["name"]] = {Path(name).name for name in each["files"]}
    return found


def unmet(found: Any, known: Mapping[str, set[str]]) -> list[str]:
    """What pods refer to, by environment or by volume, and nobody makes."""
    secrets = {each["metadata"]["name"]: set(each["stringData"]) for each in documents(SECRETS)}
    lacks = []
    for whose, pod in pods(found):
        for node in mappings(pod):
            for there, ref in ((secrets, node.get("secretKeyRef")), (known, node.get("configMapKeyRef"))):
                if ref and ref["key"] not in there.get(ref["name"], set()):
                    lacks.append(f"{whose}: {ref['name']}/{ref['key']}")
            if isinstance(volume := node.get("secret"), Mapping) and volume["secretName"] not in secrets:
                lacks.append(f"{whose}: secret {volume['secretName']}")
            if isinstance(volume := node.get("configMap"), Mapping) and volume["name"] not in known:
                lacks.append(f"{whose}: config map {volume['name']}")
    return lacks


def test_everything_that_a_file_refers_to_is_made_somewhere() -> None:
    assert unmet(plain(), generated()) == []


@needs_kubectl
@each_kustomized
def test_everything_that_an_overlay_refers_to_is_in_it(folder: Path) -> None:
    """ConfigMaps by the very names that were built; secrets by the example of them."""
    found = built(folder)
    assert unmet(found, maps(found)) == []
    accounts = {each["metadata"]["name"] for each in found if each["kind"] == "ServiceAccount"}
    assert {pod["serviceAccountName"] for _, pod in pods(found)} <= accounts


def test_what_nobody_makes_would_be_noticed() -> None:
    pod = {"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "syncd-database", "key": "uri"}}}]}]}
    assert unmet([{"kind": "Pod", "metadata": {"name": "p"}, "spec": pod}], {}) == ["Pod p: syncd-database/uri"]


def _whole() -> list[Any]:
    """The largest set of objects, as files."""
    return [each for each in plain() if each["kind"] != "Secret"]


def test_every_selector_selects_pods_or_services_that_there_are() -> None:
    """Services, budgets, the network policy and spread constraints: a wrong label would select nothing, in silence."""
    found = _whole()
    templates = [
        each["metadata"]["labels"]
        for document in found
        for each in mappings(document)
        if "containers" in each.get("spec", {})
    ]
    services = [each["metadata"]["labels"] for each in found if each["kind"] == "Service"]
    for each in found:
        spec, kind = each.get("spec", {}), each["kind"]
        if (selector := spec.get("selector", spec.get("podSelector"))) is not None:
            wanted = selector.get("matchLabels", selector)
            among = services if kind == "ServiceMonitor" else templates
            assert wanted, title(each)
            assert any(wanted.items() <= labels.items() for labels in among), title(each)
        if kind == "Deployment":
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items()
            spreads = spec["template"]["spec"]["topologySpreadConstraints"]
            assert {one["topologyKey"] for one in spreads} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
            assert all(one["labelSelector"]["matchLabels"].items() <= labels.items() for one in spreads)


def test_every_deployment_has_a_budget_for_disruptions() -> None:
    found = _whole()
    budgets = [each["spec"]["selector"]["matchLabels"] for each in found if each["kind"] == "PodDisruptionBudget"]
    for each in found:
        if each["kind"] == "Deployment":
            assert each["spec"]["selector"]["matchLabels"] in budgets


# --- the service's own settings -------------------------------------------------------------------


def test_what_is_deployed_listens_where_probes_and_services_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One port in syncd.yaml, the container and the network policy; on all addresses: a probe comes from outside."""
    for name in ("SYNCD_CONFIG", "SYNCD_DATA_DIR", "SYNCD_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = load_service(SERVICE)
    assert settings.web.host == "0.0.0.0"  # noqa: S104 - inside of a container
    for document in _whole():
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            assert container["ports"] == [{"name": "http", "containerPort": settings.web.port}]
        if document["kind"] == "NetworkPolicy":
            (ingress,) = document["spec"]["ingress"]
            assert [each["port"] for each in ingress["ports"]] == [settings.web.port]
        if document["kind"] == "Service":
            assert [each["targetPort"] for each in document["spec"]["ports"]] == ["http"]


def test_a_pod_is_given_longer_than_its_service_takes_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause before it is told, the grace for runs in hand, and fifteen seconds for the web side to close."""
    monkeypatch.delenv("SYNCD_DATABASE_URL", raising=False)
    grace = load_service(SERVICE).grace.total_seconds()
    for document in _whole():
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]["spec"]
            before = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [""])
            pause = float(before[-1].removeprefix("sleep ") or 0)
            assert pod["terminationGracePeriodSeconds"] >= pause + grace + 15


def test_every_long_running_container_is_probed_three_ways() -> None:
    """Started and alive by /healthz, ready by /readyz: so a lost database takes a pod out, and kills none."""
    found = [each for each in _whole() if each["kind"] == "Deployment"]
    assert found
    for document in found:
        for container in document["spec"]["template"]["spec"]["containers"]:
            assert container["args"][0] == "serve"
            paths = {
                name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")
            }
            assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


@needs_kubectl
@each_kustomized
def test_what_is_built_runs_only_commands_that_exist(folder: Path) -> None:
    """Patches are built in: what an overlay makes of ``serve`` is what is checked here."""
    for whose, pod in pods(built(folder)):
        for container in containers(pod):
            if "command" not in container:
                assert refused(container["args"]) is None, whose


@needs_kubectl
def test_replicas_share_the_work_between_two_kinds_of_pods() -> None:
    """Of every part of the service there are at least two, and no pod ticks for itself alone."""
    counts: dict[str, int] = {}
    for each in built(DEPLOY / "overlays" / "replicas"):
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            for part in container["args"][1:]:
                counts[part] = counts.get(part, 0) + each["spec"]["replicas"]
    assert counts == {"--scheduler": 2, "--worker": 3, "--web": 5}


@needs_kubectl
@each_kustomized
def test_no_image_comes_from_an_address_of_ours(folder: Path) -> None:
    """The name alone: where it is kept, an overlay of the operator's says."""
    images = {container["image"] for _, pod in pods(built(folder)) for container in containers(pod)}
    assert len(images) == 1
    assert "/" not in images.pop()


def test_a_file_that_is_passed_over_is_meant_to_be() -> None:
    """What is not taken for an object of Kubernetes is a tenant's file, the service's, or rules."""
    others = {file for file in DEPLOY.rglob("*.yaml") if file not in MANIFESTS}
    assert others
    assert all(file.parent.name in OTHERS for file in others)


# --- the scripts that containers run ----------------------------------------------------------------


def script(file: Path, container: str) -> str:
    """What a shell is given in a container of this name."""
    found = [
        each["command"][2]
        for document in objects(file)
        for pod in mappings(document)
        if "containers" in pod
        for each in containers(pod)
        if each["name"] == container
    ]
    assert len(found) == 1
    return str(found[0])


def run_in_shell(text: str) -> subprocess.CompletedProcess[str]:
    """As the image would: with syncd and its Python on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(  # noqa: S603 - our own scripts
        ["sh", "-c", text],  # noqa: S607 - whichever shell there is
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PATH": path},
    )  # fmt: skip


def test_what_waits_for_the_tables_goes_on_once_they_are_there(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the init container repeats fails on a database without them, and makes none."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", empty_database)
    waits = script(DEPLOY / "base" / "deployment.yaml", "wait-for-tables")
    assert waits == script(DEPLOY / "overlays" / "replicas" / "worker.yaml", "wait-for-tables")
    asks = waits.removeprefix("until ").partition(";")[0]
    refused_once = run_in_shell(asks)
    assert refused_once.returncode == 2
    assert "run: syncd migrate" in refused_once.stderr
    engine = create_engine(empty_database)
    migrate.upgrade(engine)
    engine.dispose()
    assert run_in_shell(waits).returncode == 0


def test_an_audit_of_all_tenants_names_those_that_failed_and_leaves_none_out(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tenant ever ran, so that neither can be audited: the second one is tried all the same."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SYNCD_CONFIG", str(tmp_path))
    tenant = (DEPLOY / "base" / "tenants" / "nordhaus.yaml").read_text(encoding="utf-8")
    for name in ("granit", "nordhaus"):
        (tmp_path / f"{name}.yaml").write_text(tenant.replace("tenant: nordhaus", f"tenant: {name}"), encoding="utf-8")
    done = run_in_shell(script(DEPLOY / "base" / "audit-cronjob.yaml", "audit"))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "not clean: granit(2) nordhaus(2)"
