"""The operator's page: what is in step, what is not and why, and what a person can do about it.

Rendered here and complete without a script; the script only asks for the same page again. Nothing
is decided in a request: answers are written down, and what takes a run is ordered from a worker.
Values are on these pages because showing them is what they are for; addresses hold ids alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

import structlog
from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from syncd.config import PairConfig, TenantConfig
from syncd.core.mapping import UnfitValueError, typed
from syncd.core.merge import Answer, Chosen
from syncd.core.model import FIELDS, KINDS, FieldType, Side, is_safe_id
from syncd.errors import AnswerError, NotFoundError, RefusedError, SyncdError
from syncd.state import answers, desk, explain, holds, pairs, screen
from syncd.state.desk import Scope
from syncd.state.explain import REPLAYED, RULES, Place
from syncd.web.gate import HEADERS, Gate, Visitor
from syncd.web.paper import Paper, form
from syncd.web.site import Site

#: Pages that are made at the same time; probes and webhooks have threads of their own.
AT_ONCE: Final = 4
#: Counting takes a while where there is much, so that all who look share one count for so long.
COUNT_SECONDS: Final = 5
#: Of a record's history so much is shown; syncd explain has all of it.
HISTORY: Final = 200
#: A pair whose last good run is older than this many of its intervals is late, but not before ten minutes.
LATE_INTERVALS: Final = 10
LATE: Final = timedelta(minutes=10)

#: What was done, said on the page to which a form leads.
SAID: Final = {
    "paused": "Paused. Nothing is lost: resume catches up.",
    "resumed": "It goes on with the next run, which was asked for.",
    "woken": "A run was asked for; it begins as soon as a worker is free.",
    "retried": "It is tried again by the next run, which was asked for.",
    "settled": "Kept. The next run carries it out.",
    "answered": "Kept for good. The next run carries it out.",
    "ordered": "Ordered. A worker carries the plan out; this page follows it.",
    "discarded": "The plan is thrown away. The pair looks for itself with its next run.",
    "undoing": "Ordered. Both sides are read again, then the plan shows up here. Nothing is written before you say so.",
    "held": "Held still, with its counterpart and what names it.",
    "let-go": "Let go. The next run catches up.",
    "apart": "Kept apart for good. Nothing is deleted; the next run ends the link.",
}
#: The most urgent first.
_URGENCY: Final = {
    "halted": 0, "waits for approval": 0, "failing": 1, "late": 2, "never ran": 4, "resting": 5, "in step": 6,
    "paused": 7, "switched off": 8, "no file": 9,
}  # fmt: skip
#: How good or bad a word is for who reads it.
TONES: Final = {
    "halted": "bad", "waits for approval": "warn", "failing": "bad", "late": "warn", "resting": "warn",
    "in step": "good", "running": "good", "done": "good", "failed": "bad", "abandoned": "bad", "open": "warn",
    "applying": "good", "applied": "good", "refused": "bad", "unfinished": "bad", "conflict": "warn", "dead": "bad",
    "pending": "warn", "review": "warn",
}  # fmt: skip
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PAIR: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ITEM: Final = re.compile(r"[cr][0-9]{1,18}")
_DEAD: Final = re.compile(r"l[0-9]{1,18}|s:(left|right):[a-z_]{1,20}:[A-Za-z0-9][A-Za-z0-9._:|~-]{0,254}")
_MARK: Final = re.compile(r"[A-Za-z0-9_-]{1,1000}")
#: A path of this site with its query: what a form may send somebody back to.
_BACK: Final = re.compile(r"/(?!/)[A-Za-z0-9/_:.|~%?&=-]{0,1500}")


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who was let in."""

    request: Request
    visitor: Visitor
    form: Mapping[str, str] = field(default_factory=dict)

    def part(self, name: str) -> str:
        """A part of the address. Raises NotFoundError for one that holds what no id does."""
        found = str(self.request.path_params[name])
        if not is_safe_id(found):
            raise NotFoundError("Nothing has such an address.")
        return found

    def asked(self, name: str) -> str | None:
        return self.request.query_params.get(name) or None


Page: TypeAlias = Callable[[Visit], Response]


def routes(site: Site) -> list[Route]:
    """Every address of the operator's page. Raises ConfigError where ``web.sign_on`` cannot work."""
    pages = _Pages(site)
    shown: dict[str, Page] = {
        "/": pages.overview,
        "/pairs/{tenant}/{pair}": pages.pair,
        "/conflicts": pages.conflicts,
        "/reviews": pages.reviews,
        "/dead-letters": pages.dead_letters,
        "/excluded": pages.excluded,
        "/runs": pages.runs,
        "/runs/{run}": pages.run,
        "/plans/{plan}": pages.plan,
        "/records/{tenant}/{pair}/{kind}/{ref}": pages.record,
    }
    acts: dict[str, Page] = {
        "/pairs/{tenant}/{pair}/{verb}": pages.act_on_pair,
        "/conflicts/{id}": pages.settle,
        "/reviews/{id}": pages.answer,
        "/dead-letters/retry": pages.retry,
        "/runs/{run}/undo": pages.undo,
        "/plans/{plan}/{verb}": pages.act_on_plan,
        "/records/{tenant}/{pair}/{kind}/{ref}/{verb}": pages.act_on_record,
    }
    return [
        *(Route(path, pages.endpoint(page), methods=["GET"]) for path, page in shown.items()),
        *(Route(path, pages.endpoint(page, is_act=True), methods=["POST"]) for path, page in acts.items()),
        Route("/search", pages.endpoint(pages.search), methods=["POST"]),
        Route("/sign-on", pages.door(pages.sign_on), methods=["POST"]),
        Route("/sign-off", pages.endpoint(pages.sign_off), methods=["POST"]),
        Route("/static/{name}", pages.door(pages.static), methods=["GET"]),
    ]


class _Pages:
    """All pages of one site, and what they share."""

    def __init__(self, site: Site):
        self._site = site
        self._service = site.service
        self._gate = Gate(site.settings, site.service.now, site.service.new_id)
        self._log = structlog.get_logger()
        self._limiter = CapacityLimiter(AT_ONCE)
        self._counted: tuple[datetime, dict[str, screen.Document]] | None = None
        self._paper = Paper(
            kinds=KINDS, tones=TONES, rules=RULES, replayed=REPLAYED, record_path=_record_path, list_path=_list_path,
        )  # fmt: skip

    # --- from a request to an answer ----------------------------------------------------

    def endpoint(self, page: Page, *, is_act: bool = False) -> Callable[[Request], Any]:
        """A page for who is let in; what is posted must come from a form of ours."""
        return self.door(partial(self._admitted, page, is_act))

    def door(self, answer: Callable[[Request, Mapping[str, str]], Response]) -> Callable[[Request], Any]:
        """A page for anybody, in a thread of its own; whatever happens inside of it becomes an answer."""

        async def opened(request: Request) -> Response:
            posted = await form(request) if request.method == "POST" else {}
            return await to_thread.run_sync(self._answered, answer, request, posted, limiter=self._limiter)

        return opened

    def _answered(
        self, answer: Callable[[Request, Mapping[str, str]], Response], request: Request, form: Mapping[str, str] | None
    ) -> Response:
        try:
            if form is None:
                raise RefusedError(413, "This form is too long.")
            response = answer(request, form)
        except RefusedError as exc:
            response = self._refused(request, exc)
        except NotFoundError as exc:
            response = self._sorry(request, 404, "Not here", str(exc))
        except SyncdError as exc:
            response = self._sorry(request, 409, "That does not go", str(exc))
        except SQLAlchemyError:
            self._log.exception("page.failed", path=_pattern(request))
            response = self._sorry(
                request, 503, "Nothing to show", "The database does not answer. Try again in a while."
            )
        except Exception:  # noqa: BLE001 - a bug of one page is told in the log and stops no other
            self._log.exception("page.failed", path=_pattern(request))
            response = self._sorry(request, 500, "A bug", "Something went wrong in here; the log has its traceback.")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _admitted(self, page: Page, is_act: bool, request: Request, form: Mapping[str, str]) -> Response:
        visitor = self._gate.admit(request)
        if request.method == "POST":
            self._gate.prove(request, visitor, form, is_act=is_act)
            self._counted = None
        visitor, secret = self._gate.with_forms(request, visitor)
        response = page(Visit(request, visitor, form))
        if secret is not None:
            self._gate.keep_forms(response, secret)
        return response

    def _refused(self, request: Request, exc: RefusedError) -> Response:
        if request.method == "POST" or exc.status != 401:
            self._log.warning("visitor.refused", status=exc.status, path=_pattern(request))
        if exc.status in (401, 429) and self._gate.takes_tokens:
            back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            back = "/" if request.method == "POST" or not _BACK.fullmatch(back) else back
            words = "" if request.method == "GET" and exc.status == 401 else str(exc)
            response = self._bare("sign_on.html", exc.status, title="Sign on", words=words, back=back)
        else:
            response = self._sorry(request, exc.status, "No entry", str(exc))
        if exc.status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="syncd"'
        if exc.pause_seconds is not None:
            response.headers["Retry-After"] = str(exc.pause_seconds)
        return response

    def _sorry(self, request: Request, status: int, title: str, words: str) -> Response:
        back = request.headers.get("referer", "").partition("//")[2].partition("/")[2]
        back = f"/{back}" if request.method == "POST" and _BACK.fullmatch(f"/{back}") else "/"
        return self._bare("sorry.html", status, title=title, words=words, back=back)

    def _bare(self, template: str, status: int, **context: Any) -> Response:
        text = self._paper.text(template, visitor=None, is_live=False, **context)
        return Response(text, status, media_type="text/html")

    def _page(self, visit: Visit, template: str, title: str, *, is_live: bool = True, **context: Any) -> Response:
        path = visit.request.url.path
        query = [(name, value) for name, value in visit.request.query_params.multi_items() if name != "said"]
        return self._paper.page(
            visit.request, template, visitor=visit.visitor, title=title, is_live=is_live, path=path,
            totals=self._totals(), back=path + (f"?{urlencode(query)}" if query else ""),
            said=SAID.get(visit.asked("said") or ""), **context,
        )  # fmt: skip

    def _done(self, visit: Visit, said: str, action: str, *, to: str | None = None, **about: str) -> Response:
        """What was done is in the log, and said on the page that the form stood on."""
        self._log.info("operator.acted", action=action, by=visit.visitor.name, **about)
        back = to or visit.form.get("back", "")
        back = back if _BACK.fullmatch(back) else "/"
        return RedirectResponse(f"{back}{'&' if '?' in back else '?'}said={said}", 303)

    # --- the door -----------------------------------------------------------------------

    def sign_on(self, request: Request, form: Mapping[str, str]) -> Response:
        back = form.get("back", "")
        there = back if _BACK.fullmatch(back) else "/"
        name, response = self._gate.sign_on(request, form.get("token", ""), lambda: RedirectResponse(there, 303))
        self._log.info("visitor.signed_on", name=name)
        return response

    def sign_off(self, visit: Visit) -> Response:
        response = RedirectResponse("/", 303)
        self._gate.sign_off(response)
        return response

    def static(self, request: Request, form: Mapping[str, str]) -> Response:
        return self._paper.file(str(request.path_params["name"]))

    # --- looking ------------------------------------------------------------------------

    def overview(self, visit: Visit) -> Response:
        rows = self._standings(Scope())
        waits = sum(row["word"] in ("halted", "waits for approval", "failing") for row in rows)
        title = (
            f"{waits} of {len(rows)} {'pairs' if len(rows) > 1 else 'pair'} {'need' if waits > 1 else 'needs'} you"
            if waits
            else "Overview"
        )
        problems = [str(each) for each in self._site.tenants().problems]
        return self._page(visit, "overview.html", title, rows=rows, problems=problems)

    def pair(self, visit: Visit) -> Response:
        scope, pair_id = self._pair_of(visit)
        found = self._standings(scope)
        if not found:
            raise NotFoundError(f"no pair {pair_id}")
        engine = self._service.engine
        return self._page(
            visit, "pair.html", pair_id, row=found[0], plans=screen.open_plans(engine, pair_id),
            runs=screen.runs(engine, scope, None).rows[:10],
        )  # fmt: skip

    def conflicts(self, visit: Visit) -> Response:
        is_open = visit.asked("settled") is None
        found = partial(screen.conflicts, is_open=is_open)
        return self._list(visit, "conflicts.html", "Conflicts", found, is_open=is_open, types=FIELDS)

    def reviews(self, visit: Visit) -> Response:
        return self._list(visit, "reviews.html", "Which are the same?", screen.reviews)

    def dead_letters(self, visit: Visit) -> Response:
        return self._list(visit, "dead_letters.html", "Dead letters", screen.dead_letters)

    def excluded(self, visit: Visit) -> Response:
        scope, kind, after = _asked_of(visit)
        reasons = screen.reasons(self._service.engine, scope, kind) if after is None else []
        # Counting reasons reads all of the list, which is too much to do every few seconds.
        return self._list(visit, "excluded.html", "Left out", screen.excluded, reasons=reasons, is_live=False)

    def _list(
        self, visit: Visit, template: str, title: str, found: Callable[..., screen.Page], **context: Any
    ) -> Response:
        scope, kind, after = _asked_of(visit)
        page = found(self._service.engine, scope, kind, after)
        return self._page(visit, template, title, page=page, scope=scope, kind=kind, is_first=after is None, **context)

    def runs(self, visit: Visit) -> Response:
        scope, _, after = _asked_of(visit)
        is_all = visit.asked("all") is not None
        page = screen.runs(self._service.engine, scope, after, is_all=is_all)
        return self._page(
            visit, "runs.html", "Runs", page=page, scope=scope, kind=None, is_all=is_all, is_first=after is None
        )

    def run(self, visit: Visit) -> Response:
        engine = self._service.engine
        run = screen.find_run(engine, visit.part("run"))
        _, _, after = _asked_of(visit)
        page = screen.changes(engine, run["id"], after)
        attempt, plan_id = screen.undoing(engine, run)
        plan = screen.find_plan(engine, plan_id) if plan_id is not None else None
        return self._page(
            visit, "run.html", f"Run {run['id'][:8]}", run=run, page=page, deeds=list(_by_record(page.rows)),
            attempt=attempt, plan=plan, is_first=after is None,
        )  # fmt: skip

    def plan(self, visit: Visit) -> Response:
        engine = self._service.engine
        plan = screen.find_plan(engine, visit.part("plan"))
        _, _, after = _asked_of(visit)
        page = screen.operations(engine, plan["id"], after)
        made_by = screen.find_run(engine, plan["run"]) if plan["run"] is not None else None
        return self._page(
            visit, "plan.html", f"Plan {plan['id'][:8]}", plan=plan, page=page, made_by=made_by, is_first=after is None
        )

    def record(self, visit: Visit) -> Response:
        place = self._place(visit)
        engine = self._service.engine
        found = explain.record(engine, place)
        if found["state"] == "gone" and not found["history"] and not found["conflicts"]:
            raise NotFoundError(f"{place} is not known here")
        name = visit.asked("field")
        told = explain.field(engine, place, name) if name is not None else None
        history: Any = found["history"]
        return self._page(
            visit, "record.html", str(place).partition(" of ")[0], it=found, place=place, field=name, story=told,
            history=list(reversed(history))[:HISTORY], is_cut=len(history) > HISTORY,
            called=screen.called(engine, place),
        )  # fmt: skip

    def search(self, visit: Visit) -> Response:
        """By POST, so that what somebody types by mistake is in no address and no log."""
        ref = visit.form.get("ref", "").strip()
        try:
            found = explain.find_all(self._service.engine, Scope(), ref)
        except NotFoundError:
            raise NotFoundError(
                "No record of this id is known. Write it as its system shows it: 4711, hubspot:4711, propstreet:88 "
                "or contact/hubspot:4711."
            ) from None
        if len(found) == 1:
            return RedirectResponse(_place_path(found[0]), 303)
        places = [(str(each), _place_path(each)) for each in found]
        return self._page(visit, "choices.html", "Which one?", is_live=False, places=places)

    # --- acting -------------------------------------------------------------------------

    def act_on_pair(self, visit: Visit) -> Response:
        scope, pair_id = self._pair_of(visit)
        engine, now, verb = self._service.engine, self._service.now(), visit.part("verb")
        if verb != "run":
            pairs.find(engine, pair_id)
        match verb:
            case "pause":
                pairs.pause(engine, pair_id, now)
                said = "paused"
            case "resume":
                pairs.resume(engine, pair_id, now)
                said = "resumed"
            case "retry":
                desk.retry(engine, scope, ())
                said = "retried"
            case "run":
                self._configured(pair_id)
                said = "woken"
            case _:
                raise NotFoundError(f"a pair cannot be told to {verb!r}")
        if verb != "pause":
            self._site.wake(pair_id)
        return self._done(visit, said, f"pair.{verb}", pair=pair_id)

    def retry(self, visit: Visit) -> Response:
        item = visit.form.get("id", "")
        tenant, pair = visit.form.get("tenant", ""), visit.form.get("pair", "")
        pair_id = f"{tenant}/{pair}"
        if not (_TENANT.fullmatch(tenant) and _PAIR.fullmatch(pair) and _DEAD.fullmatch(item)):
            raise NotFoundError("There is no such dead letter.")
        if not desk.retry(self._service.engine, Scope(tenant, pair), [item]):
            raise NotFoundError("This dead letter is tried again already, or gone.")
        self._site.wake(pair_id)
        return self._done(visit, "retried", "dead_letter.retried", pair=pair_id, item=item)

    def settle(self, visit: Visit) -> Response:
        engine, item = self._service.engine, _item(visit)
        row = desk.find_conflict(engine, item)
        words: dict[str, Answer] = {"propstreet": Side.LEFT, "crm": Side.RIGHT, "empty": Chosen(None)}
        answer = visit.form.get("answer", "")
        chosen = words[answer] if answer in words else _third(row, item, answer, visit.form.get("value", ""))
        desk.settle_conflict(engine, item, chosen, self._service.now())
        self._site.wake(row.pair)
        return self._done(visit, "settled", "conflict.settled", pair=row.pair, item=item, answer=answer)

    def answer(self, visit: Visit) -> Response:
        item = _item(visit)
        said, _, candidate = visit.form.get("answer", "").partition(" ")
        if said not in ("same", "never", "create") or (said == "same" and not candidate):
            raise AnswerError("Say which of the candidates is the same, which is not, or that a counterpart is made.")
        chosen = candidate if said != "create" and candidate else None
        pair_id = desk.answer_review(self._service.engine, item, said, chosen, self._service.now())
        self._site.wake(pair_id)
        return self._done(visit, "answered", "review.answered", pair=pair_id, item=item, answer=said)

    def act_on_plan(self, visit: Visit) -> Response:
        engine, verb = self._service.engine, visit.part("verb")
        plan = screen.find_plan(engine, visit.part("plan"))
        pair_id = f"{plan['tenant']}/{plan['pair']}"
        if plan["state"] not in ("open", "applying") or (verb == "discard" and plan["state"] != "open"):
            raise AnswerError(f"This plan is {plan['state']}: there is nothing left to decide.")
        match verb:
            case "apply":
                self._configured(pair_id)
                self._site.order(pair_id, "apply", plan_id=plan["id"])
                said = "ordered"
            case "discard":
                pairs.discard(engine, plan["id"], self._service.now())
                said = "discarded"
            case _:
                raise NotFoundError(f"a plan cannot be told to {verb!r}")
        return self._done(visit, said, f"plan.{verb}", to=f"/plans/{plan['id']}", pair=pair_id, plan=plan["id"])

    def undo(self, visit: Visit) -> Response:
        run = screen.find_run(self._service.engine, visit.part("run"))
        pair_id = f"{run['tenant']}/{run['pair']}"
        self._configured(pair_id)
        self._site.order(pair_id, "undo", run_id=run["id"])
        return self._done(visit, "undoing", "run.undo", to=f"/runs/{run['id']}", pair=pair_id, run=run["id"])

    def act_on_record(self, visit: Visit) -> Response:
        place, verb = self._place(visit), visit.part("verb")
        engine, now = self._service.engine, self._service.now()
        match verb:
            case "hold":
                holds.kind_of(engine, place.pair, place.side, place.id, place.kind)
                holds.place(
                    engine, place.pair, place.kind, place.side, [place.id], reason=holds.BY_PERSON, at=now
                )  # fmt: skip
                said = "held"
            case "let-go":
                holds.lift(engine, place.pair, place.kind, place.side, place.id)
                said = "let-go"
            case "apart":
                found = explain.record(engine, place)
                if found["linked"] is None:
                    raise AnswerError("This record is not linked to any other.")
                answers.keep_apart(
                    engine, place.pair, place.kind, str(found["propstreet"]), str(found["crm"]), now
                )  # fmt: skip
                said = "apart"
            case _:
                raise NotFoundError(f"a record cannot be told to {verb!r}")
        if verb != "hold":
            self._site.wake(place.pair)
        return self._done(
            visit, said, f"record.{verb}", to=_place_path(place), pair=place.pair, kind=place.kind, record=place.id
        )

    # --- shared -------------------------------------------------------------------------

    def _pair_of(self, visit: Visit) -> tuple[Scope, str]:
        tenant, pair = visit.part("tenant"), visit.part("pair")
        if not _TENANT.fullmatch(tenant) or not _PAIR.fullmatch(pair):
            raise NotFoundError("There is no such pair.")
        return Scope(tenant, pair), f"{tenant}/{pair}"

    def _place(self, visit: Visit) -> Place:
        _, pair_id = self._pair_of(visit)
        kind, (system, _, id_) = visit.part("kind"), visit.part("ref").partition(":")
        if kind not in KINDS or system not in ("propstreet", "crm") or not is_safe_id(id_):
            raise NotFoundError("A record's address ends in its kind and, say, propstreet:88 or crm:4711.")
        pairs.find(self._service.engine, pair_id)
        return Place(pair_id, kind, Side.LEFT if system == "propstreet" else Side.RIGHT, id_)

    def _configured(self, pair_id: str) -> tuple[TenantConfig, PairConfig]:
        """The pair as its tenant's file says. Raises NotFoundError where no file does."""
        found = self._files().get(pair_id)
        if found is None:
            raise NotFoundError(f"no usable file of a tenant names {pair_id} now, so that no worker can run it")
        return found

    def _files(self) -> dict[str, tuple[TenantConfig, PairConfig]]:
        return {f"{t.tenant}/{p.name}": (t, p) for t in self._site.tenants().tenants for p in t.pairs}

    def _standings(self, scope: Scope) -> list[screen.Document]:
        """Each pair of the database and of the files, the most urgent first."""
        now, files, counted = self._service.now(), self._files(), self._counts()
        rows = {row["id"]: row for row in screen.standings(self._service.engine, scope, now)}
        for pair_id, (tenant, pair) in files.items():
            if pair_id not in rows and scope in (Scope(), Scope(tenant.tenant, pair.name)):
                rows[pair_id] = _never(pair_id, tenant, pair)
        for row in rows.values():
            row |= _placed(row, files.get(row["id"]), counted.get(row["id"]), now)
        return sorted(rows.values(), key=lambda row: (row["urgency"], row["id"]))

    def _counts(self) -> dict[str, screen.Document]:
        now, known = self._service.now(), self._counted
        if known is None or not timedelta(0) <= now - known[0] < timedelta(seconds=COUNT_SECONDS):
            self._counted = known = (now, screen.counts(self._service.engine, Scope()))
        return known[1]

    def _totals(self) -> dict[str, int]:
        found = dict.fromkeys(("conflicts", "in_review", "dead_letters", "excluded"), 0)
        for pair in self._counts().values():
            for kind in pair["kinds"].values():
                found = {name: count + kind[name] for name, count in found.items()}
        return found


def _never(pair_id: str, tenant: TenantConfig, pair: PairConfig) -> screen.Document:
    """A pair that a file names and that never ran."""
    return {
        "id": pair_id, "tenant": tenant.tenant, "pair": pair.name, "connector": pair.connector, "word": "never ran",
        "reason": "", "is_known": False, "is_running": False, "is_approved": False, "halted": None, "plan": None,
        "paused_at": None, "resting_until": None, "good_at": None, "latest": None,
    }  # fmt: skip


def _placed(
    row: screen.Document, file: tuple[TenantConfig, PairConfig] | None, counted: screen.Document | None, now: datetime
) -> screen.Document:
    """What a pair's file and its counts add to how it stands."""
    counted = counted or {"kinds": {}, "waiting": 0, "waiting_since": None}
    names = ("linked", "in_step", "conflicts", "in_review", "dead_letters", "excluded", "settling", "held")
    totals = {name: sum(kind[name] for kind in counted["kinds"].values()) for name in names}
    word, reason, every = row["word"], row["reason"], None
    if file is None:
        word, reason = "no file", "no usable file of a tenant names it now, so nothing runs"
    elif not file[0].enabled:
        word, reason = "switched off", "the tenant's file says enabled: false"
    else:
        every = file[1].every
        longest = max(every * LATE_INTERVALS, LATE)
        if word == "in step" and row["good_at"] is not None and now - row["good_at"] > longest:
            word, reason = "late", "no run has ended well for a while"
    needs = totals["conflicts"] + totals["in_review"] + totals["dead_letters"]
    urgency = 3 if _URGENCY[word] > 3 and needs and word not in ("switched off", "no file") else _URGENCY[word]
    return {**counted, "totals": totals, "word": word, "reason": reason, "every": every, "urgency": urgency}


def _asked_of(visit: Visit) -> tuple[Scope, str | None, str | None]:
    """Which pairs, which kind and which page an address asks for. Raises NotFoundError for what is none."""
    tenant, pair, kind, after = (visit.asked(name) for name in ("tenant", "pair", "kind", "after"))
    is_known = (
        (tenant is None or _TENANT.fullmatch(tenant))
        and (pair is None or (tenant is not None and _PAIR.fullmatch(pair)))
        and (kind is None or kind in KINDS)
        and (after is None or _MARK.fullmatch(after))
    )
    if not is_known:
        raise NotFoundError("There is no such list.")
    return Scope(tenant, pair), kind, after


def _item(visit: Visit) -> str:
    if not _ITEM.fullmatch(found := visit.part("id")):
        raise NotFoundError("Nothing that waits has such an id.")
    return found


def _third(row: Any, item: str, answer: str, raw: str) -> Chosen:
    """A third value as its field holds it. Raises AnswerError with what the field takes."""
    if answer != "value" or not row.field:
        raise AnswerError(f"{item}: keep Propstreet's value or the other one.")
    if FIELDS[row.kind][row.field] is FieldType.ENUMERATION:
        raise AnswerError(f"{item}: which words go there, the other system knows: syncd resolve {item} --value WORD")
    try:
        value = typed(row.kind, row.field, raw)
    except UnfitValueError as exc:
        raise AnswerError(f"{item}: {exc}") from exc
    if value is None:
        raise AnswerError(f"{item}: write a value, or empty the field on both sides.")
    return Chosen(value)


def _by_record(rows: list[screen.Document]) -> Iterator[list[screen.Document]]:
    """What was written, record by record."""
    for _, lines in groupby(
        rows, key=lambda row: (row["kind"], row["side"], row["verb"], row["propstreet"], row["crm"])
    ):
        yield list(lines)


def _pattern(request: Request) -> str:
    """Which page it is, without the ids in its address."""
    route = request.scope.get("route")
    return str(getattr(route, "path", ""))


# --- what templates ask -------------------------------------------------------------------


def _record_path(row: Mapping[str, Any], side: str | None = None) -> str:
    """Where a record is shown, by Propstreet's id if it has one."""
    side = side or ("propstreet" if row["propstreet"] is not None else "crm")
    ref = quote(f"{side}:{row[side]}", safe=":|~")
    return f"/records/{row['tenant']}/{row['pair']}/{row['kind']}/{ref}"


def _place_path(place: Place) -> str:
    tenant, _, pair = place.pair.partition("/")
    side = "propstreet" if place.side is Side.LEFT else "crm"
    return _record_path({"tenant": tenant, "pair": pair, "kind": place.kind, side: place.id}, side)


def _list_path(name: str, **query: str | None) -> str:
    given = {key: value for key, value in query.items() if value is not None}
    return f"/{name}?{urlencode(given)}" if given else f"/{name}"
