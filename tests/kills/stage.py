"""One flow on one CRM, made ready once and then played from the same instant as often as is asked.

The world before the command is kept: the database as a template, the vendors' state as a copy,
the clock as a number. A first play without a kill tells which points the command passes and what
the world comes to in the end; every other play must end in that same world, killed wherever.
What is compared is told in names, never in ids, and of the vendors' own state, the dead records
included: so a record that was made twice shows even if one of the two went away again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Engine, Table, create_engine, func, select, text

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from connectors.salesforce.emulator import SalesforceEmulator
from syncd.core.mapping import same
from syncd.core.model import FIELDS, KINDS, Address, Record, Side
from syncd.state import schema as s
from syncd.state.lease import TTL_SECONDS, Lease
from syncd.state.postgres import PostgresRows
from syncd.state.store import Store
from syncd.testing.emulator import Emulator
from syncd.wiring import _open, run_pair
from tests.kills.flows import SETTINGS, Flow
from tests.kills.killer import Ended, Killer, SharedClock
from tests.stories.harness import MOST_RUNS, World

_serial = count()
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*")
#: What no two plays have in common: instants and versions.
_STAMPS: Final = re.compile(r"(?i)etag|uri|.*(created?|updated|modified|deleted)(date|utc)|SystemModstamp|deletedby.*")
_IDS: Final = re.compile(r"(?i)(.*_)?id(__c)?|[a-z]+Id|hs_merged_object_ids")
#: An emulator's own affairs, which are no part of the vendor's state.
_FRAME: Final = frozenset({"now", "lock", "log", "faults", "url", "post", "webhooks", "_server", "_thread"})
PAIR: Final = "story/{}"
_RELATIONS: Final = (
    ("contacts", "companies"), ("deals", "contacts"), ("deals", "companies"),
)  # fmt: skip

Rows = Mapping[str, Mapping[str, tuple[Mapping[str, Any], bool]]]
"""Collection -> id -> (what the vendor holds, whether it is dead)."""


# --- what both sides hold -----------------------------------------------------------------


def everything(emulator: Emulator) -> Rows:
    """All that a vendor holds, dead records too."""
    match emulator:
        case PropstreetEmulator():
            return {
                name: {row.id: (row.fields, row.deleted is not None) for row in shelf.rows.values()}
                for name, shelf in emulator._shelves.items()
            }
        case HubSpotEmulator():
            return {
                name: {str(id_): (thing.properties, thing.archived_at is not None) for id_, thing in things.items()}
                for name, things in emulator._things.items()
            }
        case SalesforceEmulator():
            return {
                name: {id_: (held.row, bool(held.row["IsDeleted"])) for id_, held in rows.items()}
                for name, rows in emulator._rows.items()
                if name in ("Account", "Contact", "Opportunity", "OpportunityContactRole")
            }
    raise AssertionError(emulator)


def _names(rows: Rows) -> dict[str, str]:
    """Ids -> what people call the records; a relation after its two ends."""
    found: dict[str, str] = {}
    for collection, held in rows.items():
        for id_, (row, _) in held.items():
            known = [row.get(key) for key in ("email", "Email", "name", "Name", "dealname", "lastname")]
            found[id_] = f"{collection}:{next((str(each) for each in known if each), '')}"
    for collection, held in rows.items():
        for id_, (row, _) in held.items():
            ends = [found[end] for key, end in sorted(row.items()) if key in _ENDS and end in found]
            if collection in ("links", "prospects", "OpportunityContactRole"):
                found[id_] = f"{collection}:{' '.join(ends)}"
    return found


_ENDS: Final = ("contactId", "companyId", "projectId", "ContactId", "OpportunityId")


def _told(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """A value without what differs from play to play: ids become names, instants a dot."""
    match value:
        case Mapping():
            return {
                name: _told(each, names, name)
                for name, each in sorted(value.items())
                if not _STAMPS.fullmatch(name) and each not in (None, "", [])
            }
        case list() | tuple() | set() | frozenset():
            return sorted((_told(each, names, key) for each in value), key=str)
        case str() if _IDS.fullmatch(key):
            return names.get(value, "?")
        case str() if _INSTANT.fullmatch(value):
            return "."
    return value


def _vendors(world: World) -> tuple[Counter[str], dict[str, str]]:
    """Both vendors' whole state in words, and the names of all ids."""
    hub, crm = everything(world.hub.emulator), everything(world.crm.emulator)
    names = _names(hub) | _names(crm)
    found: Counter[str] = Counter()
    for side, rows in (("propstreet", hub), ("crm", crm)):
        for collection, held in rows.items():
            for id_, (row, is_dead) in held.items():
                told = json.dumps(_told({**row, "id": id_}, names), sort_keys=True, default=str)
                found[f"{side} {collection}{' (dead)' * is_dead} {told}"] += 1
    if isinstance(world.crm.emulator, HubSpotEmulator):
        found.update(_bonds(world.crm.emulator, crm, names))
    return found, names


def _bonds(emulator: HubSpotEmulator, rows: Rows, names: Mapping[str, str]) -> Iterator[str]:
    for one, other in _RELATIONS:
        for id_, (_, is_dead) in rows[one].items():
            for end, labels in {} if is_dead else emulator.associations(one, id_, other).items():
                yield f"crm association {names[id_]} {names[str(end)]} {sorted(labels)}"


# --- the stage ----------------------------------------------------------------------------


class Databases:
    """Databases of one server, made as copies."""

    def __init__(self, url: str):
        before, _, query = url.partition("?")
        self._server, self._query = before.rsplit("/", 1)[0], query
        self._admin = create_engine(url, isolation_level="AUTOCOMMIT")

    def copy(self, template: str) -> str:
        """A new database like ``template``, which nobody may have open; returns its name."""
        name = f"kill_{os.getpid()}_{next(_serial)}"
        self._do(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop(self, name: str) -> None:
        self._do(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, name: str) -> str:
        return f"{self._server}/{name}" + (f"?{self._query}" if self._query else "")

    def close(self) -> None:
        self._admin.dispose()

    def _do(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(statement))


@dataclass(frozen=True, slots=True)
class End:
    """What a play came to: both vendors' state, and what the database says of it, all in names."""

    vendors: Counter[str]
    links: Counter[str]
    inbox: Counter[str]
    conflicts: Counter[str]
    holds: Counter[str]


class Stage:
    """A flow on a CRM, ready to be played."""

    def __init__(self, flow: Flow, crm: str, databases: Databases, template: str, folder: Path, killer: Killer):
        self.flow, self.crm = flow, crm
        self._databases, self._killer = databases, killer
        folder.mkdir(parents=True)
        self._clock = SharedClock(folder / "clock")
        self._ready = databases.copy(template)
        self._url = databases.url(self._ready)
        engine = create_engine(self._url)
        self.world = World(engine, folder, crm, KINDS, SETTINGS, self._clock)
        self._arguments = flow.prepare(self.world)
        self._forget_connections()
        engine.dispose()
        self._passed = self._clock.passed
        self._vendors = [(each, copy.deepcopy(_state(each))) for each in self._emulators()]
        self.passed, self.end = self._first_play()
        self._left: dict[str, str] = {}

    def close(self) -> None:
        self.world.close()
        self._databases.drop(self._ready)

    def counts(self) -> Counter[str]:
        """How often the command passes each point, with ``before`` and ``after``."""
        return Counter(self.passed)

    def play(self, *deaths: tuple[str, int]) -> None:
        """Kill the command at each of these in turn, (point, n-th passing); afterwards the promises hold."""
        with self._set(), self._told_where(str(deaths)):
            for point, nth in deaths:
                self._kill(point, nth)
            self._assert_not_ahead()
            self._recover()

    def play_once(self, point: str, nth: int) -> bool:
        """As ``play``, but a world that another death has left before recovers as it did then; True for a new one.

        Time and ids are the same in every play, so that two deaths between which nothing happened leave
        the same world to the last byte.
        """
        with self._set(), self._told_where(f"{point} {nth}"):
            self._kill(point, nth)
            self._assert_not_ahead()
            world = self._digest()
            is_new = world not in self._left
            if is_new:
                self._left[world] = "it did not recover"
                self._recover()
                self._left[world] = ""
            assert not self._left[world], self._left[world]
            return is_new

    def _kill(self, point: str, nth: int) -> None:
        killed = self._command(point=point, nth=nth)
        assert killed.code == -signal.SIGKILL, f"{point}: it ended with {killed.code}: {killed.err}"
        assert Counter(killed.passed)[point] == nth

    def _recover(self) -> None:
        again = self._command()
        assert again.code in self.flow.exits_again, f"given again it ended with {again.code}: {again.err}"
        self._finish(again)
        self._assert_at_rest()
        _assert_same(self.end, self._end())

    def _digest(self) -> str:
        """Everything that outlives the process, in one word."""
        digest = hashlib.sha256()
        for table in s.metadata.sorted_tables:
            digest.update("\n".join(sorted(map(repr, self._rows(table)))).encode())
        for emulator in self._emulators():
            for collection, rows in everything(emulator).items():
                digest.update(repr((collection, sorted(rows.items()))).encode())
        if isinstance(self.world.crm.emulator, HubSpotEmulator):
            digest.update(repr(self.world.crm.emulator._bonds).encode())
        return digest.hexdigest()

    # --- playing ----------------------------------------------------------------------

    def _first_play(self) -> tuple[Sequence[str], End]:
        with self._set(), self._told_where("nowhere"):
            ended = self._command()
            assert ended.code in self.flow.exits, f"it ended with {ended.code}: {ended.err}"
            self._finish(ended)
            self._assert_at_rest()
            return ended.passed, self._end()

    def _command(self, *, point: str = "", nth: int = 0) -> Ended:
        """The command, half a minute and more after whatever was before: a dead run's lease has lapsed by then."""
        self._clock.advance(TTL_SECONDS + 1)
        environment = {
            "SYNCD_DATABASE_URL": self._url,
            "SYNCD_CONFIG": str(self.world.folder / "tenants"),
        }
        return self._killer.run(self._arguments, environment, self._clock, point=point, nth=nth)

    def _finish(self, ended: Ended) -> None:
        """Approve what waits, then run until nothing is left to do."""
        if self.flow.is_halting:
            plan = json.loads(ended.out)[0]["plan"]
            result = run_pair(self.world.service, *self.world.subject, "apply", plan_id=plan)
            assert result.state == "done", result
        for _ in range(MOST_RUNS):
            last = self.world.run()
            if last.write_calls == 0:
                break
        else:
            last = self.world.run()
        assert (last.report.operations, last.write_calls) == (0, 0), f"still writing: {last.report}"

    @contextmanager
    def _set(self) -> Iterator[None]:
        """The world as it was before the command, with a database of its own."""
        name = self._databases.copy(self._ready)
        self._url = self._databases.url(name)
        for emulator, state in self._vendors:
            with emulator.lock:
                vars(emulator).update(copy.deepcopy(state))
                emulator.log.clear()
        self._clock.set(self._passed)
        engine = create_engine(self._url)
        self.world.service.engine = engine.execution_options(compiled_cache=_COMPILED)
        try:
            yield
        finally:
            self._forget_connections()
            engine.dispose()
            self._databases.drop(name)

    @contextmanager
    def _told_where(self, deaths: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as exc:
            raise AssertionError(f"{self.flow.name} {self.crm}, killed at {deaths}: {exc}") from exc

    def _emulators(self) -> tuple[Emulator, Emulator]:
        return self.world.hub.emulator, self.world.crm.emulator

    def _forget_connections(self) -> None:
        for opened in self.world.service._opened.values():
            opened.close()
        self.world.service._opened.clear()

    # --- the promises -----------------------------------------------------------------

    def _assert_not_ahead(self) -> None:
        """No watermark has passed a record that the state does not tell as the vendor holds it."""
        service = self.world.service
        opened = _open(service, *self.world.subject, is_dry=True)
        pair = PAIR.format(self.crm)
        store = Store(PostgresRows(service.engine, pair), Lease(pair, "", 0))
        for feed in self._rows(s.feed):
            if feed.watermark_at is None:
                continue
            side = Side(feed.side)
            addresses = self._addresses(side, feed.kind, feed.parent)
            truth = opened.connectors[side].read(feed.kind, addresses)
            passed = [row for row in truth.values() if row.modified_at and row.modified_at <= feed.watermark_at]
            known = store.sighted(side, feed.kind, [row.id for row in passed])
            for record in passed:
                _assert_known(feed, record, known.get(record.id))

    def _addresses(self, side: Side, kind: str, parent: str) -> list[Address]:
        people = self.world.hub if side is Side.LEFT else self.world.crm
        rows = everything(people.emulator).get(people.collections.get(kind, ""), {})
        return [
            Address(id_, parent or None)
            for id_, (row, is_dead) in rows.items()
            if not is_dead and (not parent or row.get("projectId") == parent)
        ]

    def _assert_at_rest(self) -> None:
        """Nothing is open: no operation on its way, no run, no plan; what was sent has an end that is told."""
        sent, settled = s.operation.c.sent_at, s.operation.c.settled_at
        left = {
            "operations on their way": self._count(s.operation, s.operation.c.state.in_(("intended", "sent"))),
            "operations sent and not settled": self._count(s.operation, sent.is_not(None), settled.is_(None)),
            "runs that go on": self._count(s.run, s.run.c.finished_at.is_(None)),
            "plans that wait": self._count(s.plan, s.plan.c.state == "open"),
            "plans being applied": self._count(s.plan, s.plan.c.state == "applying"),
            "plans without an end": self._count(s.plan, s.plan.c.ended_at.is_(None)),
        }
        assert not any(left.values()), f"still open: { {name: found for name, found in left.items() if found} }"

    def _end(self) -> End:
        vendors, names = _vendors(self.world)
        links = self._words(s.link, names, ("kind", "left_id", "right_id", "state", "reason"))
        # Where a kind can carry no mark, nobody reads whether it does.
        links += self._words(s.link, names, ("kind", "left_id", "is_marked"), s.link.c.kind.in_(self._marked()))
        inbox = self._words(s.sighting, names, ("side", "kind", "id", "state", "reason", "is_deleted"))
        lost = ("kind", "left_id", "right_id", "field", "left_value", "right_value", "decided", "winner")
        holds = self._words(s.hold, names, ("side", "kind", "record_id", "reason"))
        return End(vendors, links, inbox, self._words(s.conflict, names, lost), holds)

    def _marked(self) -> list[str]:
        """The kinds of which the CRM's records can carry a mark; asked after a run, as it must be."""
        opened = next(iter(self.world.service._opened.values()))
        kinds = opened.connectors[Side.RIGHT].capabilities().kinds
        return [kind for kind, can in kinds.items() if can.can_mark]

    def _words(
        self, table: Table, names: Mapping[str, str], columns: Iterable[str], *where: ColumnElement[bool]
    ) -> Counter[str]:
        found: Counter[str] = Counter()
        for row in self._rows(table, *where):
            cells = [str(row._mapping[name]) for name in columns]
            found[" ".join(_with_names(cell, names) for cell in cells)] += 1
        return found

    def _rows(self, table: Table, *where: ColumnElement[bool]) -> list[Any]:
        with self._engine.connect() as tx:
            return list(tx.execute(select(table).where(*where)))

    def _count(self, table: Table, *where: Any) -> int:
        with self._engine.connect() as tx:
            return int(tx.execute(select(func.count()).select_from(table).where(*where)).scalar_one())

    @property
    def _engine(self) -> Engine:
        return self.world.service.engine


_COMPILED: Final[dict[Any, Any]] = {}


def _state(emulator: Emulator) -> dict[str, Any]:
    return {name: value for name, value in vars(emulator).items() if name not in _FRAME}


def _with_names(cell: str, names: Mapping[str, str]) -> str:
    """A cell in which ids are names, also where two of them are joined to one."""
    return re.sub(r"[0-9A-Za-z]+", lambda found: names.get(found[0], found[0]), cell)


def _assert_known(feed: Any, record: Record, known: Record | None) -> None:
    assert known is not None, f"the {feed.side} {feed.kind} feed passed {record.id}, which nobody wrote down"
    types = FIELDS[feed.kind]
    told = [name for name in record.values if name in types and name in known.values]
    apart = [name for name in told if not same(types[name], record.values[name], known.values[name])]
    assert not apart, f"the {feed.side} {feed.kind} feed passed {record.id}, of which {apart} is not known"


def _assert_same(expected: End, found: End) -> None:
    for name in ("vendors", "links", "inbox", "conflicts", "holds"):
        one, other = getattr(expected, name), getattr(found, name)
        assert one == other, f"{name}: lacks {sorted((one - other).elements())}, has {sorted((other - one).elements())}"
