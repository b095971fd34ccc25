"""``syncd erase`` and ``syncd prune`` as they are typed, against both CRMs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from sqlalchemy import Engine

from syncd.cli import commands
from tests.faults.harness import CRMS, World, world_of
from tests.privacy.canaries import found_in, populate, rows

WHO = "zqmail1@zqdomain.example"
_HERS = re.compile(r"(?i)zq(first|last|mail|linked|note|title|tag)1(?!\d)|911 55 01")


@pytest.fixture(params=CRMS)
def world(
    request: pytest.FixtureRequest, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setenv("SYNCD_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("SYNCD_CONFIG", str(tmp_path / "tenants"))
    with ExitStack() as stack:
        yield stack.enter_context(world_of(engine, tmp_path, request.param))
    structlog.reset_defaults()


def syncd(*arguments: str, answer: str = "") -> Any:
    return CliRunner().invoke(commands.cli, list(arguments), input=answer, catch_exceptions=False)


def told_of_her(engine: Engine) -> list[str]:
    """Rows that tell what only she is called; her neighbours have other numbers."""
    return [row[max(0, found.start() - 60) : found.end()] for _, row in rows(engine) for found in _HERS.finditer(row)]


def test_a_person_is_erased_and_the_sync_goes_on(world: World, engine: Engine) -> None:
    """Asked first, then done: nothing of her is left, a run writes nothing, and an edit of hers still arrives."""
    populate(world)
    world.first()
    assert told_of_her(engine)
    said = syncd("erase", world.tenant_name, WHO, "--dry-run", "--json")
    assert said.exit_code == 0 and '"dry_run": true' in said.stdout and told_of_her(engine)
    assert syncd("erase", world.tenant_name, WHO, answer="n\n").exit_code == 1
    assert told_of_her(engine)
    said = syncd("erase", world.tenant_name, WHO, answer="y\n")
    assert said.exit_code == 0 and "link" in said.output
    assert told_of_her(engine) == []
    (quiet,) = world.settle()
    assert quiet.write_calls == 0
    world.hub_rename(WHO, "Newname")
    world.settle()
    world.assert_in_step()
    # Her record was read anew: the job title that a connector asked to be given back with it is known again.
    assert [each for each in told_of_her(engine) if not each.endswith("Zqtitle1")] == []


def test_a_stranger_is_refused_without_being_named(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a person nor a tenant that is not known; exit code 2 comes from the entry point."""
    from syncd.errors import NotFoundError

    monkeypatch.setenv("SYNCD_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    with world_of(engine, tmp_path, "hubspot") as world:
        populate(world)
        world.first()
        for arguments in ((world.tenant_name, "zqnobody@zqdomain.example"), ("elsewhere", WHO)):
            with pytest.raises(NotFoundError) as refused:
                syncd("erase", *arguments, "--yes")
            assert found_in(str(refused.value)) == [] and "zqnobody" not in str(refused.value)
    structlog.reset_defaults()


def test_prune_says_what_it_forgets(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts by table; on an empty history nothing."""
    monkeypatch.setenv("SYNCD_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    assert "all pairs   would go: nothing" in syncd("prune", "--dry-run").stdout
    assert '"rows"' in syncd("prune", "--json").stdout
    structlog.reset_defaults()
