"""What is killed: each flow is a world made ready by people's hands, and the command that then dies.

Small portfolios, so that each batch counts: two or three records of a kind, each kind each way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import select

from syncd.state import schema as s
from syncd.wiring import run_pair
from tests.stories.harness import BOTH_WAYS, World

#: Created and deleted each way wherever a tenant may say so.
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    kind: {"create": {"in_crm": True, "in_propstreet": True}, "deletes": BOTH_WAYS}
    for kind in ("company", "contact", "deal")
} | {kind: {"deletes": BOTH_WAYS} for kind in ("employment", "deal_contact")}


@dataclass(frozen=True, slots=True)
class Flow:
    """``prepare`` answers with the arguments of the command; ``exits`` are its codes when nothing kills it."""

    name: str
    told: str
    prepare: Callable[[World], Sequence[str]]
    exits: frozenset[int] = field(default=frozenset({0}))
    #: How the same command may end when it is given again after it was killed.
    exits_again: frozenset[int] = field(default=frozenset({0}))
    is_halting: bool = False
    """It ends in a plan that waits for a person, who then approves it."""


def _strangers(world: World) -> None:
    """Both sides have a portfolio, and one contact is known to both by its address alone."""
    hub, crm = world.hub, world.crm
    nordhaus = hub.add("company", name="Nordhaus AB", domain="nordhaus.se")
    granit = crm.add("company", name="Granit AB", domain="granit.se")
    anna = hub.add("contact", first_name="Anna", last_name="Berg", email="anna@nordhaus.se")
    hub.add("contact", first_name="Cia", last_name="Dahl", email="cia@vinga.se")
    bo = crm.add("contact", first_name="Bo", last_name="Ek", email="bo@granit.se")
    crm.add("contact", first_name="Cia", last_name="Dahl", email="cia@vinga.se", strategy="Kontor")
    hub.employ(anna, nordhaus, "CFO")
    crm.employ(bo, granit, "CEO")
    svalan = hub.add("deal", name="Kv. Svalan 4", amount=12_000_000)
    hub.invite(svalan, anna, classification="interested")
    ejdern = crm.add("deal", name="Kv. Ejdern 2", amount=7_000_000)
    crm.invite(ejdern, bo, "contacted")


def _acquainted(world: World) -> dict[str, tuple[str, str]]:
    """All that strangers had is known to both; returns (Propstreet id, CRM id) by a short name."""
    _strangers(world)
    world.meet()
    found = {}
    for name, kind, word in _KNOWN:
        (hub_id,) = [
            row["id"]
            for row in world.hub.emulator.all(world.hub.collections[kind])
            if word in (row.get("name"), row.get("email"))
        ]
        found[name] = (hub_id, world.crm.of(kind, hub_id))
    return found


_KNOWN: Final = (
    ("nordhaus", "company", "Nordhaus AB"), ("granit", "company", "Granit AB"),
    ("anna", "contact", "anna@nordhaus.se"), ("bo", "contact", "bo@granit.se"), ("cia", "contact", "cia@vinga.se"),
    ("svalan", "deal", "Kv. Svalan 4"), ("ejdern", "deal", "Kv. Ejdern 2"),
)  # fmt: skip
RUN: Final = ("run", "story", "--json")


def _link_of(world: World, contact: str) -> str:
    (found,) = [row["id"] for row in world.hub.emulator.all("links") if row["contactId"] == contact]
    return str(found)


def _prospect_of(world: World, deal: str, contact: str) -> str:
    rows = world.hub.emulator.all("prospects")
    (found,) = [row["id"] for row in rows if (row["projectId"], row.get("contactId")) == (deal, contact)]
    return str(found)


# --- the flows ----------------------------------------------------------------------------


def _backfill(world: World) -> Sequence[str]:
    _strangers(world)
    return ("backfill", "story", "--json")


def _first_plan(world: World) -> Sequence[str]:
    _strangers(world)
    return RUN


def _first_apply(world: World) -> Sequence[str]:
    _strangers(world)
    world.clock.advance(30)
    halted = run_pair(world.service, *world.subject, "run")
    assert halted.state == "halted", halted
    return ("apply", str(halted.plan_id), "--json")


def _to_crm(world: World) -> Sequence[str]:
    _edit_hub(world, _acquainted(world))
    return RUN


def _edit_hub(world: World, known: Mapping[str, tuple[str, str]]) -> None:
    hub = world.hub
    hub.edit("company", known["nordhaus"][0], strategy="Logistik")
    hub.edit("contact", known["anna"][0], first_name="Anna-Lena")
    hub.edit("contact", known["bo"][0], strategy="Bostad")
    hub.emulator.edit("links", _link_of(world, known["anna"][0]), {"jobTitle": "CEO"})
    hub.edit("deal", known["svalan"][0], name="Kv. Svalan 4 och 5")
    hub.emulator.classify(_prospect_of(world, known["svalan"][0], known["anna"][0]), "bidder")


def _to_propstreet(world: World) -> Sequence[str]:
    known, crm = _acquainted(world), world.crm
    crm.edit("company", known["granit"][1], strategy="Logistik")
    crm.edit("contact", known["anna"][1], first_name="Anna-Lena")
    crm.edit("contact", known["bo"][1], strategy="Bostad", title="Chair")
    crm.edit("deal", known["ejdern"][1], name="Kv. Ejdern 2 och 3", amount=8_000_000)
    crm.relabel(known["ejdern"][1], known["bo"][1], "bidder")
    return RUN


def _both_ways(world: World) -> Sequence[str]:
    """Every second edit meets one of the same field on the other side; the loser's value must be kept."""
    known, hub, crm = _acquainted(world), world.hub, world.crm
    hub.edit("contact", known["anna"][0], last_name="Berg-Ek", strategy="Kontor")
    crm.edit("contact", known["anna"][1], last_name="Ek-Berg")
    crm.edit("company", known["nordhaus"][1], strategy="Handel")
    hub.edit("company", known["nordhaus"][0], strategy="Logistik")
    hub.edit("deal", known["svalan"][0], name="Kv. Svalan 5")
    crm.edit("deal", known["svalan"][1], name="Kv. Svalan 6", amount=13_000_000)
    hub.emulator.classify(_prospect_of(world, known["svalan"][0], known["anna"][0]), "contacted")
    crm.relabel(known["svalan"][1], known["anna"][1], "bidder")
    return RUN


def _create_in_crm(world: World) -> Sequence[str]:
    known, hub = _acquainted(world), world.hub
    firm = hub.add("company", name="Vinga AB", domain="vinga.se")
    dan, eva = (
        hub.add("contact", first_name=name, last_name="Falk", email=f"{name.lower()}@vinga.se")
        for name in ("Dan", "Eva")
    )
    hub.employ(dan, firm, "CFO")
    hub.employ(known["cia"][0], firm, "CEO")
    deal = hub.add("deal", name="Kv. Gripen 2", amount=5_000_000)
    for contact in (dan, eva, known["anna"][0]):
        hub.invite(deal, contact, classification="interested")
    hub.invite(known["svalan"][0], eva)
    return RUN


def _create_in_propstreet(world: World) -> Sequence[str]:
    known, crm = _acquainted(world), world.crm
    firm = crm.add("company", name="Vinga AB", domain="vinga.se")
    dan, eva = (
        crm.add("contact", first_name=name, last_name="Falk", email=f"{name.lower()}@vinga.se")
        for name in ("Dan", "Eva")
    )
    crm.employ(dan, firm, "CFO")
    crm.employ(known["cia"][1], firm, "CEO")
    deal = crm.add("deal", name="Kv. Gripen 2", amount=5_000_000)
    for contact in (dan, eva, known["anna"][1]):
        crm.invite(deal, contact, "interested")
    crm.invite(known["svalan"][1], eva, "contacted")
    return RUN


def _delete_in_crm(world: World) -> Sequence[str]:
    known, hub = _acquainted(world), world.hub
    hub.archive("deal_contact", _prospect_of(world, known["ejdern"][0], known["bo"][0]))
    hub.archive("employment", _link_of(world, known["bo"][0]))
    hub.archive("deal", known["svalan"][0])
    hub.archive("contact", known["cia"][0])
    hub.archive("company", known["granit"][0])
    return RUN


def _delete_in_propstreet(world: World) -> Sequence[str]:
    known, crm = _acquainted(world), world.crm
    crm.take_off(known["ejdern"][1], known["bo"][1])
    crm.archive("deal", known["svalan"][1])
    crm.archive("contact", known["cia"][1])
    crm.archive("company", known["granit"][1])
    return RUN


def _merge(world: World) -> Sequence[str]:
    """A linked contact wins over a stray one, another loses to one; a linked company wins over a stray."""
    known, crm = _acquainted(world), world.crm
    strays = [crm.add("contact", last_name="Stray", email=f"stray{number}@x.se") for number in range(2)]
    firm = crm.add("company", name="Nordhaus Fastigheter AB", domain="nordhaus-fastigheter.se")
    crm.merge("contact", known["anna"][1], strays[0])
    crm.merge("contact", strays[1], known["bo"][1])
    crm.merge("company", known["nordhaus"][1], firm)
    return RUN


def _saved_plan(world: World) -> Sequence[str]:
    """A plan with an update, a create and a delete each way."""
    known, hub, crm = _acquainted(world), world.hub, world.crm
    _edit_hub(world, known)
    crm.edit("contact", known["cia"][1], last_name="Dahlin")
    dan = hub.add("contact", first_name="Dan", last_name="Falk", email="dan@vinga.se")
    hub.invite(known["svalan"][0], dan, classification="interested")
    eva = crm.add("contact", first_name="Eva", last_name="Falk", email="eva@vinga.se")
    crm.invite(known["svalan"][1], eva, "contacted")
    crm.take_off(known["ejdern"][1], known["bo"][1])
    world.clock.advance(30)
    planned = run_pair(world.service, *world.subject, "plan")
    assert planned.state == "done", planned
    return ("apply", str(planned.plan_id), "--json")


def _undo(world: World) -> Sequence[str]:
    """What is taken back is a run that wrote on both sides, and made a contact with a prospect and a company."""
    known, hub, crm = _acquainted(world), world.hub, world.crm
    _edit_hub(world, known)
    crm.edit("contact", known["cia"][1], last_name="Dahlin")
    crm.edit("company", known["granit"][1], strategy="Handel")
    dan = hub.add("contact", first_name="Dan", last_name="Falk", email="dan@vinga.se")
    hub.invite(known["svalan"][0], dan, classification="interested")
    hub.add("company", name="Vinga AB", domain="vinga.se")
    world.run()
    with world.engine.connect() as tx:
        run = tx.execute(select(s.run.c.id).order_by(s.run.c.started_at.desc()).limit(1)).scalar_one()
    return ("undo", run, "--yes", "--json")


FLOWS: Final[Mapping[str, Flow]] = {
    flow.name: flow
    for flow in (
        Flow("backfill", "a backfill of two portfolios that never met", _backfill),
        Flow("first-plan", "a first run, which ends in a plan that waits", _first_plan, frozenset({4}),
             frozenset({4}), is_halting=True),
        Flow("first-apply", "the first plan, approved", _first_apply, exits_again=frozenset({0, 1, 2})),
        Flow("to-crm", "edits in Propstreet, each kind", _to_crm),
        Flow("to-propstreet", "edits in the CRM, each kind", _to_propstreet),
        Flow("both-ways", "edits of the same fields on both sides", _both_ways),
        Flow("create-in-crm", "creates in the CRM, each kind", _create_in_crm),
        Flow("create-in-propstreet", "creates in Propstreet, each kind", _create_in_propstreet),
        Flow("delete-in-crm", "deletions in Propstreet, each kind", _delete_in_crm,
             frozenset({0, 3}), frozenset({0, 3})),
        Flow("delete-in-propstreet", "deletions in the CRM, each kind", _delete_in_propstreet,
             frozenset({0, 3}), frozenset({0, 3})),
        Flow("merge", "merges of two records in the CRM", _merge, frozenset({0, 3}), frozenset({0, 3})),
        Flow("saved-plan", "a saved plan, applied", _saved_plan, exits_again=frozenset({0, 1, 2})),
        Flow("undo", "a run, taken back", _undo, frozenset({0, 3}), frozenset({0, 3})),
    )
}  # fmt: skip
