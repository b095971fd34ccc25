"""The demo's page: Propstreet and a CRM side by side, as their emulators hold them, and what syncd makes of edits.

It stands outside of the daemon: it edits the emulated systems as their users would, looks into syncd's
database, and asks of the daemon what the operator's page asks of it. Nobody signs on, since it listens
on this machine only; so a Host that names another is refused, and so is what no form of this page posted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock, RLock
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import urlencode

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from syncd.config import PairConfig, TenantConfig
from syncd.core.mapping import UnfitValueError
from syncd.core.merge import OnConflict
from syncd.core.model import Side, is_safe_id
from syncd.errors import AnswerError, NotFoundError, RefusedError, SyncdError
from syncd.state import desk, pairs, screen
from syncd.state.desk import Scope
from syncd.testing.portfolio import Cell, Seeded
from syncd.web.gate import HEADERS, Gate
from syncd.web.pages import TONES
from syncd.web.paper import Paper, form
from syncd.web.site import Site
from syncd.wiring import PROPSTREET

#: The kinds that are shown, and how many of each.
SHOWN: Final[Mapping[str, int]] = {"contact": 4, "deal": 4}
#: A first name is shown in front of the last one, and not by itself.
_UNSHOWN: Final = {"first_name"}
#: So many of the latest runs are shown, field by field if one wrote no more than that, and so much of a plan.
RUNS, WRITES, OPERATIONS = 5, 4, 8
#: So long it is said of a value that it was edited, or that it has arrived.
FRESH: Final = timedelta(seconds=30)
#: Where somebody looked so short a time ago, nobody else edits.
WATCHED: Final = timedelta(minutes=2)
LONGEST_VALUE: Final = 200
_SIDES: Final = {"propstreet": Side.LEFT, "crm": Side.RIGHT}
#: What is said of a value that did not arrive, but was written because somebody said so on this page.
_BY_WORD: Final = {"a person's word": "settled", "undo": "taken back"}
#: What both sides are offered to write at once.
_WORDS: Final = ("Logistik", "Bostäder", "Kontor", "Handel", "Hotell", "Lager")
_TONES: Final = {**TONES, "dead letter": "bad", "on its way": "good"}
_STATES: Final = {"in_step": "in step", "pending": "on its way", "conflict": "conflict", "dead": "dead letter"}


class System(Seeded, Protocol):
    """An emulated system, and the lock under which it takes one edit or request at a time."""

    lock: RLock


@dataclass(frozen=True, slots=True)
class Pair:
    """Two systems side by side. ``held``: by kind the fields in which a conflict waits for a person."""

    tenant: str
    name: str
    left: System
    right: System
    held: frozenset[tuple[str, str]]
    every_seconds: int
    is_told: bool

    @property
    def id(self) -> str:
        return f"{self.tenant}/{self.name}"

    def system(self, side: Side) -> System:
        return self.left if side is Side.LEFT else self.right


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a line: the value there, and what is to be said of it."""

    side: str
    cell: Cell | None
    mark: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One field of a linked record on both sides, and how they stand to each other."""

    field: str
    halves: tuple[Half, Half]
    word: str
    arrow: str
    conflict: Mapping[str, Any] | None
    offers: tuple[str, ...]
    """What both sides may write at once, where that makes a conflict; else nothing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A linked record."""

    kind: str
    propstreet: str
    crm: str
    names: tuple[str, str]
    state: str
    reason: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """What somebody entered on this page. ``refused``: why the system did not take it."""

    at: datetime
    refused: str = ""


Key: TypeAlias = tuple[str, str, str, str, Side]


@dataclass(slots=True)
class _Memory:
    """What was done on this page of late, and when who was looked at; for all who look at it."""

    edits: dict[Key, Edit] = field(default_factory=dict)
    ordered: dict[str, datetime] = field(default_factory=dict)
    """By the id of a run that is to be taken back, or of a plan that is to be applied."""
    seen: dict[str, datetime] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def note(self, key: Key, edit: Edit) -> None:
        with self.lock:
            self.edits[key] = edit

    def forget(self, before: datetime) -> None:
        with self.lock:
            self.edits = {key: edit for key, edit in self.edits.items() if edit.at >= before}


Answer: TypeAlias = Callable[[Request, Mapping[str, str]], Response]


class DemoPage:
    """The page of all pairs of the demo.

    ``systems`` by tenant and connector; ``told`` are the pairs whose two systems both send webhooks;
    ``operators`` is where the operator's page listens, and the token that opens it.
    """

    def __init__(
        self, site: Site, systems: Mapping[tuple[str, str], System], told: Collection[str], operators: tuple[str, str]
    ):
        self._site, self._systems, self._told, self._operators = site, systems, told, operators
        self._engine, self._now = site.service.engine, site.service.now
        self._gate = Gate(site.settings, site.service.now, site.service.new_id)
        self._paper = Paper("syncd.demo", tones=_TONES)
        self._memory = _Memory()
        self._limiter = CapacityLimiter(4)
        self._log = structlog.get_logger()
        self._since = self._now()

    def application(self) -> Starlette:
        of = "/{tenant}/{pair}"
        return Starlette(
            routes=[
                Route("/", self._door(self._first), methods=["GET"]),
                Route("/static/{name}", self._door(self._static), methods=["GET"]),
                Route(of, self._door(self._show), methods=["GET"]),
                Route(of + "/edit", self._door(self._edit), methods=["POST"]),
                Route(of + "/settle", self._door(self._settle), methods=["POST"]),
                Route(of + "/undo", self._door(self._undo), methods=["POST"]),
                Route(of + "/plans/{verb}", self._door(self._decide), methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        )

    def is_watched(self, tenant: str) -> bool:
        """Whether somebody looks at this tenant now, so that nobody else should edit there."""
        seen = self._memory.seen.get(tenant)
        return seen is not None and self._now() - seen < WATCHED

    # --- from a request to an answer ----------------------------------------------------

    def _door(self, answer: Answer) -> Callable[[Request], Any]:
        async def opened(request: Request) -> Response:
            posted = await form(request) if request.method == "POST" else {}
            return await to_thread.run_sync(self._answered, answer, request, posted, limiter=self._limiter)

        return opened

    def _answered(self, answer: Answer, request: Request, posted: Mapping[str, str] | None) -> Response:
        try:
            if request.method == "POST":
                self._gate.prove_here(request)
            if posted is None:
                raise RefusedError(413, "This form is too long.")
            response = answer(request, posted)
        except RefusedError as exc:
            response = self._sorry(exc.status, "No entry", str(exc))
        except NotFoundError as exc:
            response = self._sorry(404, "Not here", str(exc))
        except SyncdError as exc:
            response = self._sorry(409, "That does not go", str(exc))
        except SQLAlchemyError:
            self._log.exception("page.failed")
            response = self._sorry(503, "Nothing to show", "The database does not answer. Try again in a while.")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _sorry(self, status: int, title: str, words: str) -> Response:
        text = self._paper.text("sorry.html", visitor=None, is_live=False, title=title, words=words, back="/")
        return Response(text, status, media_type="text/html")

    def _first(self, request: Request, posted: Mapping[str, str]) -> Response:
        pair = next(iter(self._pairs()))
        return RedirectResponse(f"/{pair.id}", 303)

    def _static(self, request: Request, posted: Mapping[str, str]) -> Response:
        return self._paper.file(str(request.path_params["name"]))

    def _pairs(self) -> Iterator[Pair]:
        order = [name for name, connector in self._systems if connector == PROPSTREET]
        for tenant in sorted(self._site.tenants().tenants, key=lambda each: order.index(each.tenant)):
            for pair in tenant.pairs:
                left, right = ((tenant.tenant, name) for name in (PROPSTREET, pair.connector))
                yield Pair(
                    tenant.tenant, pair.name, self._systems[left], self._systems[right], _held(tenant, pair),
                    int(pair.every.total_seconds()), f"{tenant.tenant}/{pair.name}" in self._told,
                )  # fmt: skip

    def _pair(self, request: Request) -> Pair:
        asked = f"{request.path_params['tenant']}/{request.path_params['pair']}"
        for pair in self._pairs():
            if pair.id == asked:
                return pair
        raise NotFoundError("The demo has no such pair.")

    # --- looking ------------------------------------------------------------------------

    def _show(self, request: Request, posted: Mapping[str, str]) -> Response:
        pair, now = self._pair(request), self._now()
        self._memory.seen[pair.tenant] = now
        self._memory.forget(now - 10 * FRESH)
        asked = _asked(request)
        standing = next(iter(screen.standings(self._engine, Scope(pair.tenant, pair.name), now)), None)
        written = screen.written_since(self._engine, pair.id, max(self._since, now - FRESH))
        sections = []
        for kind in SHOWN:
            found = self._linked(pair, kind, asked)
            entries = self._entries(pair, kind, found.rows, written, standing, now)
            sections.append({"kind": kind, "entries": entries, "after": found.after})
        return self._paper.page(
            request, "demo.html", visitor=None, is_live=True, title=f"{pair.left.title} and {pair.right.title}",
            pair=pair, pairs=list(self._pairs()), sections=sections, standing=standing, runs=self._runs(pair),
            find=asked.get("find", ""), query=urlencode(asked), path=f"/{pair.id}", operators=self._operators,
            systems={"propstreet": pair.left.title, "crm": pair.right.title},
        )  # fmt: skip

    def _linked(self, pair: Pair, kind: str, asked: Mapping[str, str]) -> screen.Page:
        scope, find, after = Scope(pair.tenant, pair.name), asked.get("find", ""), asked.get(f"{kind}s")
        return screen.linked(self._engine, scope, kind, find, after, most=SHOWN[kind])

    def _entries(
        self, pair: Pair, kind: str, rows: list[screen.Document], written: list[screen.Document],
        standing: Mapping[str, Any] | None, now: datetime,
    ) -> list[Entry]:  # fmt: skip
        """The records of these links as both systems hold them now, and how syncd stands to them."""
        cells = {row["propstreet"]: self._cells(pair, kind, row) for row in rows}
        places: dict[str, list[str]] = {kind: [row["propstreet"] for row in rows]}
        for left, _ in cells.values():
            for cell in left.values():
                if cell.of is not None:
                    places.setdefault(cell.of[0], []).append(cell.of[1])
        links = {
            (of, id_): link
            for of, ids in places.items()
            for id_, link in screen.links(self._engine, pair.id, of, ids).items()
        }
        latest = standing["latest"] if standing is not None else None
        look = _Look(pair, links, written, self._memory.edits.copy(), latest, now)
        return [look.entry(kind, row, *cells[row["propstreet"]]) for row in rows]

    def _cells(self, pair: Pair, kind: str, row: Mapping[str, Any]) -> tuple[dict[str, Cell], dict[str, Cell]]:
        left, right = pair.left.shown(kind, row["propstreet"]), pair.right.shown(kind, row["crm"])
        return {cell.field: cell for cell in left}, {cell.field: cell for cell in right}

    def _runs(self, pair: Pair) -> list[screen.Document]:
        """The latest runs that did something, what each wrote, and how far taking it back has come."""
        rows = screen.runs(self._engine, Scope(pair.tenant, pair.name), None).rows
        told = [row for row in rows if row["reason"] != "undo" and row["state"] != "running"]
        return [self._run(pair, run) for run in told[:RUNS]]

    def _run(self, pair: Pair, run: screen.Document) -> screen.Document:
        records = sum(count for _, side, kinds in run["did"] if side is not None for _, count in kinds)
        wrote = screen.changes(self._engine, run["id"], None).rows if 0 < records <= WRITES else []
        attempt, plan_id = screen.undoing(self._engine, run) if records else (None, None)
        plan = screen.find_plan(self._engine, plan_id) if plan_id is not None else None
        ordered = self._memory.ordered
        if plan is not None:
            plan["operations"] = screen.operations(self._engine, plan["id"], None).rows[:OPERATIONS]
            plan["is_ordered"] = plan["state"] == "applying" or (plan["state"] == "open" and plan["id"] in ordered)
        is_reading = attempt is not None and attempt["state"] == "running"
        if run["id"] in ordered:
            is_reading |= attempt is None or attempt["started_at"] < ordered[run["id"]]
        return {
            **run, "pair": pair.right.title, "wrote": [row for row in wrote if row["field"]],
            "is_writing": records > 0, "attempt": attempt, "plan": plan, "is_reading": is_reading,
        }  # fmt: skip

    # --- acting -------------------------------------------------------------------------

    def _edit(self, request: Request, posted: Mapping[str, str]) -> Response:
        """One side enters a value, or both at once, so that no run comes between."""
        pair, kind, name = self._pair(request), posted.get("kind", ""), posted.get("field", "")
        link = self._link(pair, kind, posted.get("id", ""))
        entered = {side: _plain(posted[word]) for word, side in _SIDES.items() if word in posted}
        with ExitStack() as stack:
            for side in entered:
                stack.enter_context(pair.system(side).lock)
            for side, value in entered.items():
                self._enter(pair, link, name, side, value)
        return self._back(request, pair, f"{kind}-{link['propstreet']}")

    def _enter(self, pair: Pair, link: Mapping[str, Any], name: str, side: Side, value: str) -> None:
        system, id_ = pair.system(side), link["propstreet" if side is Side.LEFT else "crm"]
        cell = next((each for each in system.shown(link["kind"], id_) if each.field == name), None)
        if cell is None:
            raise NotFoundError("This record has no such field.")
        key = (pair.id, link["kind"], link["propstreet"], name, side)
        if cell.value == value:
            self._memory.edits.pop(key, None)
            return
        edit = Edit(self._now())
        try:
            if len(value) > LONGEST_VALUE:
                raise UnfitValueError(f"That is longer than the {LONGEST_VALUE} characters that this page takes.")
            system.retouch(link["kind"], id_, name, value)
        except UnfitValueError as exc:
            edit = Edit(edit.at, refused=str(exc))
        self._memory.note(key, edit)

    def _link(self, pair: Pair, kind: str, id_: str) -> screen.Document:
        found = screen.links(self._engine, pair.id, kind, [id_]) if kind in SHOWN and is_safe_id(id_) else {}
        if id_ not in found:
            raise NotFoundError("No two records are linked by this id.")
        return found[id_]

    def _settle(self, request: Request, posted: Mapping[str, str]) -> Response:
        pair, item, answer = self._pair(request), posted.get("conflict", ""), posted.get("answer", "")
        row = desk.find_conflict(self._engine, item)
        if row.pair != pair.id or answer not in _SIDES:
            raise AnswerError("Say which side's value stays.")
        desk.settle_conflict(self._engine, item, _SIDES[answer], self._now())
        self._site.wake(pair.id)
        return self._back(request, pair, posted.get("anchor", ""))

    def _undo(self, request: Request, posted: Mapping[str, str]) -> Response:
        pair = self._pair(request)
        run = screen.find_run(self._engine, posted.get("run", ""))
        if f"{run['tenant']}/{run['pair']}" != pair.id:
            raise NotFoundError("This pair has no such run.")
        self._memory.ordered[run["id"]] = self._now()
        self._site.order(pair.id, "undo", run_id=run["id"])
        return self._back(request, pair, f"run-{run['id']}")

    def _decide(self, request: Request, posted: Mapping[str, str]) -> Response:
        pair, verb = self._pair(request), request.path_params["verb"]
        plan = screen.find_plan(self._engine, posted.get("plan", ""))
        if f"{plan['tenant']}/{plan['pair']}" != pair.id or verb not in ("apply", "discard"):
            raise NotFoundError("This pair has no such plan.")
        if plan["state"] != "open":
            raise AnswerError(f"This plan is {plan['state']}: there is nothing left to decide.")
        if verb == "apply":
            self._memory.ordered[plan["id"]] = self._now()
            self._site.order(pair.id, "apply", plan_id=plan["id"])
        else:
            pairs.discard(self._engine, plan["id"], self._now())
        return self._back(request, pair, posted.get("anchor", ""))

    def _back(self, request: Request, pair: Pair, anchor: str) -> Response:
        query = urlencode(_asked(request))
        place = anchor if is_safe_id(anchor) else ""
        return RedirectResponse(f"/{pair.id}{'?' if query else ''}{query}{'#' if place else ''}{place}", 303)


@dataclass(frozen=True, slots=True)
class _Look:
    """All that one look at a pair needs to say how two records stand to each other."""

    pair: Pair
    links: Mapping[tuple[str, str], Mapping[str, Any]]
    written: list[screen.Document]
    edits: Mapping[Key, Edit]
    latest: Mapping[str, Any] | None
    now: datetime

    def entry(self, kind: str, row: Mapping[str, Any], left: Mapping[str, Cell], right: Mapping[str, Cell]) -> Entry:
        names = [name for name in dict.fromkeys([*left, *right]) if name not in _UNSHOWN]
        lines = tuple(self._line(kind, row, left.get(name), right.get(name), name) for name in names)
        state, reason = _STATES[row["state"]], row["reason"]
        if any(line.word == "conflict" for line in lines):
            state = "conflict"
        elif state == "in step" and any(line.word == "on its way" for line in lines):
            state = "on its way"
        called = (_called(left), _called(right))
        return Entry(kind, row["propstreet"], row["crm"], called, state, reason, lines)

    def _line(self, kind: str, row: Mapping[str, Any], left: Cell | None, right: Cell | None, name: str) -> Line:
        of = left.of if left is not None and left.of is not None else (kind, row["propstreet"])
        link = self.links.get(of)
        conflict = link["conflicts"].get(name) if link is not None else None
        word, arrow, marks = "in step", "=", {Side.LEFT: ("", ""), Side.RIGHT: ("", "")}
        if left is None or right is None or link is None:
            word, arrow = "on one side only", ""
        elif right.closed:
            word, arrow = "one way", "→"
        elif name in link["differs"]:
            word, arrow = "left apart", "≠"
        for side in (Side.LEFT, Side.RIGHT):
            way = "→" if side is Side.LEFT else "←"
            edit = self.edits.get((self.pair.id, kind, row["propstreet"], name, side))
            arrival = self._arrival(of, name, side.other)
            if edit is not None and edit.refused:
                marks[side] = ("refused", edit.refused)
            elif edit is not None and self.now - edit.at < FRESH:
                marks[side] = ("edited", "edited")
            if arrival is not None and arrival["rule"] in _BY_WORD:
                marks[side.other] = ("arrived", _BY_WORD[arrival["rule"]])
            elif arrival is not None:
                took = (arrival["at"] - edit.at).total_seconds() if edit is not None else -1.0
                word, arrow = "arrived", way
                marks[side.other] = ("arrived", f"arrived after {took:.1f} s" if took >= 0 else "arrived")
            elif edit is not None and not edit.refused and not conflict:
                if self._is_ahead(edit):
                    word, arrow = "on its way", way
                elif self.now - edit.at < FRESH and word == "in step":
                    word, arrow = "means the same", "="
        if conflict:
            word, arrow = "conflict", "≠"
        is_free = (kind, name) in self.pair.held and not conflict and left is not None and right is not None
        offers = tuple(each for each in _WORDS if each not in (left and left.value, right and right.value))[:2]
        return Line(
            name, (Half("propstreet", left, *marks[Side.LEFT]), Half("crm", right, *marks[Side.RIGHT])), word, arrow,
            conflict, offers if is_free else (),
        )  # fmt: skip

    def _arrival(self, of: tuple[str, str], name: str, side: Side) -> Mapping[str, Any] | None:
        """How the value of this side was written last, if that was a short time ago."""
        for each in reversed(self.written):
            if (each["kind"], each["propstreet"], each["field"]) == (*of, name) and _SIDES[each["side"]] is side:
                return each
        return None

    def _is_ahead(self, edit: Edit) -> bool:
        """Whether no run has looked since the edit and ended well."""
        return self.latest is None or self.latest["state"] != "done" or self.latest["started_at"] < edit.at


def _held(tenant: TenantConfig, pair: PairConfig) -> frozenset[tuple[str, str]]:
    rules = tenant.rules(pair)
    return frozenset(
        (kind, name)
        for kind in SHOWN
        if kind in rules
        for name, policy in rules[kind].policies.items()
        if policy.conflict is OnConflict.HOLD
    )


def _called(cells: Mapping[str, Cell]) -> str:
    parts = (cells[name].value for name in ("first_name", "last_name", "name") if name in cells)
    return " ".join(filter(None, parts))


def _asked(request: Request) -> dict[str, str]:
    """Which records an address asks for."""
    known = ("find", *(f"{kind}s" for kind in SHOWN))
    found = {name: request.query_params[name].strip()[:LONGEST_VALUE] for name in known if name in request.query_params}
    return {name: value for name, value in found.items() if value}


def _plain(entered: str) -> str:
    """What can be typed into a field."""
    return "".join(filter(str.isprintable, entered)).strip()
