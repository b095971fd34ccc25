"""What the operator's page shows, and that each button does what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, select, update
from starlette.applications import Starlette
from structlog.testing import capture_logs

from syncd.config import Configuration, TenantConfig, load
from syncd.core.model import Side
from syncd.errors import HaltedError
from syncd.state import desk, history, holds, pairs, screen
from syncd.state import schema as s
from syncd.state.desk import Scope
from syncd.web import pages
from syncd.web.site import Site
from syncd.wiring import Service, run_pair
from tests.faults.harness import World as Emulated
from tests.faults.harness import world_of
from tests.web.visits import TOKENS, Browser, Office, Shown, office, with_tokens

pytestmark = pytest.mark.long

HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{ 7*7 }}"
LISTS = ("/", "/conflicts", "/conflicts?settled=1", "/reviews", "/dead-letters", "/excluded", "/runs", "/runs?all=1")
WEB = Path(pages.__file__).parent


@pytest.fixture
def here(engine: Engine, tmp_path: Path) -> Iterator[Office]:
    with office(engine, tmp_path) as found:
        yield found


def pair_row(here: Office) -> Any:
    with here.world.engine.connect() as tx:
        return tx.execute(select(s.pair)).one()


def contact(here: Office, first_name: str = "Anna", email: str = "anna@nordhaus.se") -> tuple[str, str]:
    """A contact that both sides know."""
    left = here.world.hub.add("contact", {"first_name": first_name, "email": email})
    here.world.settle()
    return left, here.world.links("contact")[left]


def apart(here: Office, left: str, right: str, one: str = "left", other: str = "right") -> None:
    """Both sides change the first name, to two things; the conflict waits."""
    here.world.hub.edit("contact", left, first_name=one)
    here.world.crm.edit("contact", right, first_name=other)
    here.world.clock.sleep(30)
    here.world.run()


def twins(here: Office) -> tuple[str, list[str]]:
    """A company of Propstreet that may be either of two of the CRM."""
    left = here.world.hub.add("company", {"name": "Nordhaus AB", "domain": "nordhaus.se"})
    rights = [here.world.crm.add("company", {"name": name, "domain": "nordhaus.se"}) for name in ("N one", "N two")]
    here.world.run()
    return left, rights


def halted(here: Office) -> str:
    """A pair whose first plan waits, as the daemon leaves it; the plan's id."""
    here.world.is_approved = False
    with pytest.raises(HaltedError) as caught:
        here.world.run()
    here.world.is_approved = True
    pairs.halt(here.world.engine, "t/crm", str(caught.value), caught.value.plan_id)
    return str(caught.value.plan_id)


def names(here: Office, left: str, right: str) -> tuple[object, object]:
    first = "first_name"
    return here.world.hub.get("contact", left).values[first], here.world.crm.get("contact", right).values[first]


# --- looking ------------------------------------------------------------------------------


def test_every_page_stands_with_an_empty_database(engine: Engine, tmp_path: Path) -> None:
    """Before the first tenant, and before its first run, there is something to read."""
    with with_tokens(tmp_path) as settings:
        service = Service(engine)
        site = Site(service, lambda: Configuration(()), lambda pair_id: None, settings)
        browser = Browser(Starlette(routes=pages.routes(site)))
    browser.sign_on(TOKENS["ops"])
    assert "No tenant yet" in browser.get("/").text
    for path in LISTS:
        assert browser.get(path).status == 200, path
    for path in ("/pairs/t/crm", "/runs/abc", "/plans/abc", "/records/t/crm/contact/crm:1", "/pairs/T%20/x"):
        assert browser.get(path).status == 404, path


def test_without_its_database_the_page_says_so(here: Office) -> None:
    """An answer with the usual headers, and no word of what could not be reached."""
    nowhere = create_engine(
        "postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nothing", connect_args={"connect_timeout": 1}
    )
    here.service.engine = nowhere
    with capture_logs() as logged:
        page = here.browser(None).get("/", Authorization=f"Bearer {TOKENS['ops']}")
    assert (page.status, "The database does not answer" in page.text) == (503, True)
    assert "hunter2" not in f"{page.answer.text} {[each['event'] for each in logged]}"
    assert page.answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_pair_that_never_ran_is_known_by_its_file(engine: Engine, here: Office) -> None:
    """Who has written a tenant's file finds it on the page, and can have it run."""
    with engine.begin() as tx:
        tx.execute(s.pair.delete())
    browser = here.browser()
    page = browser.get("/")
    assert "never ran" in page.text
    assert browser.press(browser.get(page.link("/pairs/")), "Run now").status == 200
    assert here.woken == ["t/crm"]


def test_pairs_stand_in_the_order_of_who_needs_somebody(here: Office) -> None:
    """What halted first, then what fails, then what is in step; each in one word and with its reason."""
    at = here.world.clock()
    with here.world.engine.begin() as tx:
        known: dict[str, dict[str, Any]] = {
            "a": {"approved_at": at},
            "b": {"approved_at": at, "halted_reason": "would delete 40 contact"},
            "c": {"approved_at": at},
            "d": {"approved_at": at, "paused_at": at},
            "e": {"halted_reason": "the first run of this pair waits for approval"},
            "f": {"approved_at": at},
        }
        for name, changes in known.items():
            values = {"tenant": "t", "name": name, "connector": "memory", "namespace": name, "config_hash": "1"}
            tx.execute(insert(s.pair).values(id=f"t/{name}", **values, **changes))
            run = {"pair": f"t/{name}", "reason": "run", "fence": 0, "started_at": at, "finished_at": at}
            state = "failed" if name == "c" else "done"
            tx.execute(insert(s.run).values(id=f"run-{name}", state=state, message="no route" if name == "c" else "",
                                            **run))  # fmt: skip
        tx.execute(insert(s.connection).values(
            pair="t/f", side="left", connector="propstreet", account_id="", resting_until=at.replace(hour=23),
        ))  # fmt: skip
    rows = {row["id"]: row for row in screen.standings(here.world.engine, Scope(), here.world.clock())}
    assert {id_: row["word"] for id_, row in rows.items()} == {
        "t/a": "in step", "t/b": "halted", "t/c": "failing", "t/crm": "never ran", "t/d": "paused",
        "t/e": "waits for approval", "t/f": "resting",
    }  # fmt: skip
    document = {"tenant": "t", "propstreet": {"auth": {"token": {"env": "X"}}}}
    listed = [{"name": name, "connector": "memory", "namespace": name, "auth": {"token": {"env": "X"}}}
              for name in ("crm", *"abcdef")]  # fmt: skip
    tenant = TenantConfig.model_validate({**document, "pairs": listed})
    here.configuration = Configuration((tenant,))
    page = here.browser().get("/")
    order = [each.removeprefix("/pairs/t/") for each in page.links() if each.startswith("/pairs/")]
    assert order == ["b", "e", "c", "crm", "f", "a", "d"]
    assert "3 of 7 pairs need you" in page.text
    assert "would delete 40 contact" in page.text
    assert "no route" in page.text


def test_a_pair_whose_last_good_run_is_long_ago_is_late(here: Office) -> None:
    """In step is what was true when somebody last looked; after ten intervals it is said when that was."""
    contact(here)
    browser = here.browser()
    with here.world.engine.begin() as tx:
        tx.execute(update(s.pair).values(approved_at=here.world.clock()))
    assert "in step" in browser.get("/").text
    here.world.clock.sleep(3_600)
    shown = browser.get("/").text
    assert "no run has ended well for a while" in shown


def test_what_has_not_changed_is_not_sent_again(here: Office) -> None:
    """The script asks every few seconds; where nothing happened, nothing on the screen can move."""
    left, right = contact(here)
    browser = here.browser()
    for path in ("/conflicts", "/pairs/t/crm", f"/records/t/crm/contact/propstreet:{left}"):
        tag = browser.get(path).answer.headers["etag"]
        again = browser.get(path, **{"If-None-Match": tag})
        assert (again.status, again.answer.content) == (304, b""), path
    tag = browser.get("/conflicts").answer.headers["etag"]
    apart(here, left, right)
    assert browser.get("/conflicts", **{"If-None-Match": tag}).status == 200


def test_a_record_tells_why_each_value_is_what_it_is(here: Office) -> None:
    """Both sides, what they last agreed on, and for one field who decided, in which run, replayed."""
    left, right = contact(here)
    here.world.hub.edit("contact", left, first_name="Annika")
    here.world.clock.sleep(30)
    here.world.run()
    browser = here.browser()
    page = browser.press(browser.get("/"), "Find", ref=f"contact/propstreet:{left}")
    assert page.answer.url.path == f"/records/t/crm/contact/propstreet:{left}"
    assert "Annika" in page.text
    assert f"crm:{right}" in page.text
    field = browser.get(f"/records/t/crm/contact/propstreet:{left}?field=first_name")
    assert "it was changed in Propstreet, and nobody had changed it in crm" in field.text
    assert "Decided again from what was kept of it, it comes out the same" in field.text
    run = browser.get([each for each in field.links() if each.startswith("/runs/")][-1])
    assert run.status == 200
    assert browser.get(f"/records/t/crm/contact/crm:{right}").status == 200
    assert browser.get(f"/records/t/crm/contact/propstreet:{left}?field=nothing").status == 404


def test_what_somebody_types_to_find_is_in_no_address_and_no_log(here: Office) -> None:
    """An e-mail address is no id; it is not known, and nobody reads it afterwards."""
    contact(here)
    browser = here.browser()
    with capture_logs() as logged:
        page = browser.press(browser.get("/"), "Find", ref="anna@nordhaus.se")
    assert page.status == 404
    assert "anna@nordhaus.se" not in f"{page.text} {page.answer.url} {logged}"


def test_an_id_that_several_records_have_is_asked_about(here: Office) -> None:
    """The page does not choose for anybody."""
    with here.world.engine.begin() as tx:
        for kind in ("company", "deal"):
            tx.execute(insert(s.sighting).values(pair="t/crm", side="left", kind=kind, id="77", values={}, facts={},
                                                 seen_at=here.world.clock()))  # fmt: skip
    browser = here.browser()
    page = browser.press(browser.get("/"), "Find", ref="77")
    paths = [each for each in page.links() if each.startswith("/records/")]
    assert paths == ["/records/t/crm/company/propstreet:77", "/records/t/crm/deal/propstreet:77"]
    assert [browser.get(path).status for path in paths] == [200, 200]


def walk(browser: Browser, path: str, keys: Callable[[Shown], list[str]]) -> tuple[list[str], int]:
    """All keys of a list, page by page as its links lead, and how many pages that took."""
    found: list[str] = []
    number = 0
    while True:
        page = browser.get(path)
        assert page.status == 200
        shown = keys(page)
        assert len(shown) <= screen.PAGE
        found += shown
        number += 1
        onward = [held["href"] for tag, held in page.tags if tag == "a" and held.get("rel") == "next"]
        if not onward:
            return found, number
        path = str(onward[0])


def row_keys(page: Shown) -> list[str]:
    return [str(held["data-key"]) for tag, held in page.tags if held.get("data-key")]


def test_a_long_list_is_read_a_page_at_a_time(here: Office) -> None:
    """Each row once, in the order of the command line, whichever of its sources it comes from."""
    at = here.world.clock()
    link = {"pair": "t/crm", "kind": "contact", "left_base": {}, "right_base": {}, "why": "x", "linked_at": at}
    seen = {"pair": "t/crm", "kind": "deal", "values": {}, "facts": {}, "seen_at": at, "reason": "closed there"}
    ids = [f"{number:03d}" for number in range(70)]
    with here.world.engine.begin() as tx:
        tx.execute(insert(s.link), [{**link, "left_id": id_, "right_id": id_, "state": "excluded", "reason": "gone",
                                     "left_facts": {}, "right_facts": {}} for id_ in ids])  # fmt: skip
        for side in Side:
            tx.execute(insert(s.sighting), [{**seen, "id": id_, "side": str(side), "state": "excluded"} for id_ in ids])
    holds.place(here.world.engine, "t/crm", "contact", Side.LEFT, ids[:30], reason="paused by a person", at=at)
    browser = here.browser()

    def paths(page: Shown) -> list[str]:
        return [each for each in page.links() if each.startswith("/records/")]

    found, number = walk(browser, "/excluded", paths)
    told = [pages._record_path(row) for row in desk.excluded(here.world.engine, Scope())]
    assert (found, number) == (told, 5)
    of_deals, _ = walk(browser, "/excluded?tenant=t&pair=crm&kind=deal", paths)
    assert of_deals == [each for each in told if "/deal/" in each]
    assert "140 closed there 70 gone 30 held still: paused by a person" in browser.get("/excluded").text


def test_runs_and_what_a_run_wrote_are_read_a_page_at_a_time(here: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that did nothing are passed over a window at a time, so that no page looks through a year."""
    for number in range(60):
        here.world.hub.add("contact", {"first_name": f"A{number}", "email": f"a{number}@x.se"})
    here.world.settle()
    at = here.world.clock()
    with here.world.engine.begin() as tx:
        run = {"pair": "t/crm", "reason": "run", "state": "done", "fence": 0, "finished_at": at, "message": ""}
        counts = {True: {"operations": 3, "linked": {"contact": 0}}, False: {"operations": 0, "linked": {"contact": 0}}}
        tx.execute(insert(s.run), [
            {**run, "id": f"run-{number:03d}", "started_at": at.replace(microsecond=number),
             "counts": counts[number % 10 == 0]}
            for number in range(300)
        ])  # fmt: skip
    monkeypatch.setattr(screen, "WINDOW", 40)
    browser = here.browser()
    busy, _ = walk(browser, "/runs", row_keys)
    assert [each for each in busy if each.startswith("run-")] == [f"run-{n:03d}" for n in range(290, -1, -10)]
    everything, _ = walk(browser, "/runs?tenant=t&pair=crm&all=1", row_keys)
    assert [each for each in everything if each.startswith("run-")] == [f"run-{n:03d}" for n in range(299, -1, -1)]
    with here.world.engine.connect() as tx:
        (big,) = {row.run for row in tx.execute(select(s.change_log)) if row.verb == "create"}
        count = len(set(tx.execute(select(s.change_log.c.right_id).where(s.change_log.c.run == big)).scalars()))
    deeds, number = walk(browser, f"/runs/{big}", row_keys)
    assert number > 1
    assert len(deeds) >= count == 60


@pytest.mark.parametrize("after", ["x", "W10", "WzAsImEiXQ", "WzksMV0", "WzAsMWUzMF0", "WzAsdHJ1ZV0", "~", "a" * 2_000])
@pytest.mark.parametrize("path", ["/excluded", "/conflicts", "/reviews", "/runs", "/dead-letters"])
def test_a_place_in_a_list_that_is_none_is_not_here(here: Office, path: str, after: str) -> None:
    """What comes back from a browser is believed when it has the shape of what was sent."""
    assert here.browser().get(f"{path}?after={after}").status in (200, 404)


@pytest.mark.parametrize("query", ["tenant=%00", "tenant=a/b", "pair=crm", "tenant=t&pair=..", "kind=person"])
def test_a_list_of_what_is_no_tenant_pair_or_kind_is_not_here(here: Office, query: str) -> None:
    """An address says which list, in names alone."""
    assert here.browser().get(f"/conflicts?{query}").status == 404


# --- acting -------------------------------------------------------------------------------


def test_a_first_plan_is_read_applied_and_followed(here: Office) -> None:
    """The plan stands there field by field; applying it is the approval; a worker does it, not the request."""
    left = here.world.hub.add("contact", {"first_name": "Anna", "email": "anna@nordhaus.se"})
    plan = halted(here)
    browser = here.browser()
    overview = browser.get("/")
    assert "waits for approval" in overview.text
    page = browser.get(overview.link("/plans/"))
    assert "create in crm" in page.text
    assert "anna@nordhaus.se" in page.text
    assert "waits for approval" in page.text
    done = browser.press(page, "Apply this plan")
    assert (done.answer.url.path, here.orders) == (f"/plans/{plan}", [("t/crm", "apply", plan)])
    assert here.world.crm.all("contact") == []
    here.work()
    assert left in here.world.links("contact")
    page = browser.get(f"/plans/{plan}")
    assert "applied" in page.text
    assert "Apply this plan" not in page.buttons()
    assert browser.press(done, "Apply this plan").status == 409
    assert here.orders == []


def test_a_plan_is_thrown_away(here: Office) -> None:
    """It is never applied, and the pair looks for itself again."""
    here.world.hub.add("contact", {"first_name": "Anna", "email": "anna@nordhaus.se"})
    plan = halted(here)
    browser = here.browser()
    page = browser.get(f"/plans/{plan}")
    assert "discarded" in browser.press(page, "Throw it away").text
    assert pair_row(here).halted_reason is None
    assert browser.press(page, "Throw it away").status == 409
    assert browser.press(page, "Apply this plan").status == 409


def test_a_halted_pair_is_let_go(here: Office) -> None:
    """Without the plan: the next run looks for itself, and no brake holds it."""
    here.world.hub.add("contact", {"first_name": "Anna", "email": "anna@nordhaus.se"})
    halted(here)
    browser = here.browser()
    page = browser.get("/pairs/t/crm")
    assert "the first run of this pair waits for approval" in page.text
    browser.press(page, "Let it go on")
    row = pair_row(here)
    assert (row.halted_reason, row.is_waived, here.woken) == (None, True, ["t/crm"])
    here.work()
    assert len(here.world.crm.all("contact")) == 1


def test_a_pair_is_paused_resumed_and_run_now(here: Office) -> None:
    """Each is one press, says that it was done, and leads back to the page."""
    browser = here.browser()
    paused = browser.press(browser.get("/pairs/t/crm"), "Pause")
    assert (paused.status, pair_row(here).paused_at is not None) == (200, True)
    assert "Nothing is lost" in paused.text
    assert "Run now" not in paused.buttons()
    resumed = browser.press(paused, "Resume")
    assert (pair_row(here).paused_at, here.woken) == (None, ["t/crm"])
    browser.press(resumed, "Run now")
    assert here.woken == ["t/crm", "t/crm"]


@pytest.mark.parametrize(
    ("button", "fields", "left", "right"),
    [
        ("Keep Propstreet’s", {}, "left", "left"),
        ("Keep crm’s", {}, "right", "right"),
        ("Use it", {"value": "  third "}, "third", "third"),
        ("Empty it on both sides", {}, None, None),
    ],
)
def test_a_conflict_is_settled(
    here: Office, button: str, fields: dict[str, str], left: str | None, right: str | None
) -> None:
    """Both values and the base stand side by side; the answer is carried out by the next run."""
    one, other = contact(here)
    apart(here, one, other)
    browser = here.browser()
    page = browser.get("/conflicts?tenant=t&pair=crm")
    for word in ("left", "right", "Anna", f"propstreet:{one}", f"crm:{other}", "first name", "somebody"):
        assert word in page.text
    done = browser.press(page, button, 0, **fields)
    assert (done.status, done.answer.url.path) == (200, "/conflicts")
    assert row_keys(done) == []
    here.work()
    assert names(here, one, other) == (left, right)
    assert "a person's word" in browser.get("/conflicts?settled=1").text
    assert browser.press(page, button, 0, **fields).status == 404


def test_an_answer_that_cannot_be_is_refused_with_the_reason(here: Office) -> None:
    """No third value is made of nothing, and an unknown word is none."""
    apart(here, *contact(here))
    browser = here.browser()
    page = browser.get("/conflicts")
    assert browser.press(page, "Use it", value=" ").status == 409
    assert browser.press(page, "Use it", answer="mine").status == 409
    (row,) = desk.conflicts(here.world.engine, Scope())
    assert row["settled_at"] is None


@pytest.mark.parametrize(
    ("button", "nth", "linked", "made"), [("Same", 1, 1, 2), ("Not this one", 0, 1, 2), ("Make a counterpart", 0, 2, 3)]
)
def test_a_review_is_answered(here: Office, button: str, nth: int, linked: int, made: int) -> None:
    """The record and its candidates stand side by side with all that they hold; an answer links, or keeps apart."""
    left, rights = twins(here)
    browser = here.browser()
    page = browser.get("/reviews")
    for word in ("Nordhaus AB", "N one", "N two", "same domain", *rights):
        assert word in page.text
    assert browser.press(page, button, nth).status == 200
    here.work()
    here.world.settle()
    link = here.world.links("company")[left]
    assert (link, len(here.world.crm.all("company"))) == ([*rights, link][linked], made)


def test_none_of_the_candidates_is_an_answer_too(here: Office) -> None:
    """Kept for good: the question is not asked again."""
    left, _ = twins(here)
    browser = here.browser()
    browser.press(browser.get("/reviews"), "None of these")
    here.work()
    assert [row for row in desk.reviews(here.world.engine, Scope()) if row["propstreet"] == left] == []


def test_dead_letters_are_tried_again_one_or_all(here: Office) -> None:
    """With the reason of who refused them; tried again by the next run."""
    for number in range(3):
        here.world.hub.add("contact", {"first_name": f"P{number}", "email": f"p{number}@x.se"})
    here.world.crm.refuses = lambda write: "INVALID_EMAIL: email"
    here.world.run()
    browser = here.browser()
    page = browser.get("/dead-letters?tenant=t&pair=crm")
    assert (len(row_keys(page)), page.text.count("INVALID_EMAIL: email")) == (3, 3)
    page = browser.press(page, "Try again")
    assert len(row_keys(page)) == 2
    here.world.crm.refuses = lambda write: None
    here.work()
    assert len(here.world.crm.all("contact")) == 1
    browser.press(browser.get("/dead-letters?tenant=t&pair=crm"), "Try all of this pair again")
    here.work()
    assert len(here.world.crm.all("contact")) == 3
    assert row_keys(browser.get("/dead-letters")) == []


def test_a_run_is_taken_back_by_a_plan_that_is_read_first(here: Office) -> None:
    """One press reads both sides and shows the plan; only applying that writes."""
    left, right = contact(here)
    here.world.hub.edit("contact", left, first_name="Wrong")
    here.world.clock.sleep(30)
    here.world.run()
    run = here.world.context_of_last_run.run_id
    browser = here.browser()
    page = browser.get(f"/runs/{run}")
    assert "Wrong" in page.text
    ordered = browser.press(page, "Show what would be taken back")
    assert (ordered.status, here.orders) == (200, [("t/crm", "undo", run)])
    here.work()
    page = browser.get(f"/runs/{run}")
    assert "The plan is made, and nothing is written yet" in page.text
    assert names(here, left, right) == ("Wrong", "Wrong")
    plan = browser.get(page.link("/plans/"))
    assert "Anna" in plan.text
    browser.press(plan, "Apply this plan")
    here.work()
    assert names(here, left, right) == ("Wrong", "Anna")
    assert "A plan that takes it back is applied" in browser.get(f"/runs/{run}").text


def test_a_record_is_held_still_and_let_go(here: Office) -> None:
    """Nothing is written for it until it is let go; then it catches up."""
    left, right = contact(here)
    browser = here.browser()
    path = f"/records/t/crm/contact/crm:{right}"
    held = browser.press(browser.get(path), "Hold it still")
    assert "paused by a person" in held.text
    here.world.hub.edit("contact", left, first_name="Later")
    here.world.clock.sleep(30)
    here.world.run()
    assert names(here, left, right) == ("Later", "Anna")
    browser.press(held, "Let it go on")
    here.work()
    assert names(here, left, right) == ("Later", "Later")


def test_two_records_are_kept_apart(here: Office) -> None:
    """The link ends with the next run, and both records stay."""
    left, right = contact(here)
    browser = here.browser()
    browser.press(browser.get(f"/records/t/crm/contact/propstreet:{left}"), "Keep them apart")
    here.work()
    assert here.world.links("contact") == {}
    assert names(here, left, right) == ("Anna", "Anna")
    assert "by a person’s word" in browser.get(f"/records/t/crm/contact/propstreet:{left}").text


def test_who_acted_is_in_the_log_and_what_was_decided_is_not(here: Office) -> None:
    """The name of the token, the action and ids; no value of a record, in no line of any page."""
    one, other = contact(here)
    apart(here, one, other, "Zqleft", "Zqright")
    browser = here.browser()
    with capture_logs() as logged:
        for path in (*LISTS, f"/records/t/crm/contact/crm:{other}?field=first_name"):
            browser.get(path)
        browser.press(browser.get("/conflicts"), "Use it", value="Zqthird")
    (told,) = [each for each in logged if each["event"] == "operator.acted"]
    assert (told["by"], told["action"], told["pair"]) == ("ops", "conflict.settled", "t/crm")
    assert "Zq" not in str(logged)


# --- the real daemon's runs behind it -----------------------------------------------------


@pytest.fixture
def emulated(engine: Engine, tmp_path: Path) -> Iterator[Emulated]:
    with world_of(engine, tmp_path, "hubspot") as world:
        yield world


def desk_of(world: Emulated, folder: Path) -> tuple[Browser, Callable[[], None]]:
    """The page of an emulated tenant, and what a worker does with the orders that came from it."""
    orders: list[tuple[Any, dict[str, Any]]] = []

    def order(pair_id: str, reason: Any, *, plan_id: str | None = None, run_id: str | None = None) -> None:
        asked = {"plan_id": plan_id} if reason == "apply" else {"undone": run_id, "is_dry": True}
        orders.append((reason, asked))

    def work() -> None:
        tenant, pair = world.config()
        while orders:
            reason, asked = orders.pop(0)
            if reason == "undo":
                asked["undone"] = history.find_run(world.service.engine, asked["undone"])
            world.clock.advance(30)
            run_pair(world.service, tenant, pair, reason, **asked)

    def wake(pair_id: str) -> None:
        orders.append(("run", {}))

    with with_tokens(folder) as settings:
        site = Site(world.service, lambda: load(world.folder), wake, settings, order=order)
    browser = Browser(Starlette(routes=pages.routes(site)))
    browser.sign_on(TOKENS["ops"])
    return browser, work


def test_from_the_first_plan_to_an_undone_run(emulated: Emulated, tmp_path: Path) -> None:
    """Approved, synced, edited, taken back: all from the page, with the runs that the daemon makes."""
    emulated.seed(contacts=2, deals=1)
    browser, work = desk_of(emulated, tmp_path)
    browser.press(browser.get("/pairs/nordhaus/hubspot"), "Run now")
    work()
    page = browser.get(browser.get("/").link("/plans/"))
    assert "Kv. Svalan 0" in page.text
    browser.press(page, "Apply this plan")
    work()
    emulated.settle()
    emulated.assert_in_step()
    overview = browser.get("/")
    assert "in step" in overview.text
    emulated.hub_rename("hub0@example.com", "Renamed")
    emulated.hub_rename("hub1@example.com", "Renamed")
    emulated.run()
    emulated.crm_rename("hub0@example.com", "Edited")
    runs = browser.get("/runs?tenant=nordhaus&pair=hubspot")
    newest = next(each for each in runs.links() if re.fullmatch(r"/runs/[0-9a-z]{32}", each))
    page = browser.get(newest)
    assert "Renamed" in page.text
    browser.press(page, "Show what would be taken back")
    work()
    page = browser.get(newest)
    assert "Left as it is: 1 edited since" in page.text
    plan = browser.get(page.link("/plans/"))
    assert "undo of run" in plan.text
    assert "Berg" in plan.text
    browser.press(plan, "Apply this plan")
    work()
    assert emulated.picture()["crm contact"]["hub1@example.com", "Hanna1", "Berg"] == 1
    assert emulated.picture()["propstreet contact"]["hub1@example.com", "Hanna1", "Renamed"] == 1


# --- what pages are made of ---------------------------------------------------------------


def crowded(here: Office) -> dict[str, str]:
    """A world whose every list has something in it, all called by a hostile name; the paths of all pages."""
    world = here.world
    left, right = contact(here, HOSTILE, "anna@nordhaus.se")
    apart(here, left, right, f"one {HOSTILE}", f"two {HOSTILE}")
    for name in ("one", "two"):
        world.crm.add("company", {"name": f"{name} {HOSTILE}", "domain": "nordhaus.se"})
    world.hub.add("company", {"name": HOSTILE, "domain": "nordhaus.se"})
    world.run()
    world.hub.add("contact", {"first_name": HOSTILE, "last_name": "dead", "email": "dead@x.se"})
    world.crm.refuses = lambda write: f"refused: {HOSTILE}"
    world.run()
    held = world.crm.add("contact", {"first_name": HOSTILE, "last_name": "held", "email": "held@x.se"})
    world.crm.refuses = lambda write: None
    world.run()
    holds.place(world.engine, "t/crm", "contact", Side.RIGHT, [held], reason=HOSTILE, at=world.clock())
    with world.engine.connect() as tx:
        run = tx.execute(select(s.change_log.c.run).where(s.change_log.c.new.is_not(None)).limit(1)).scalar_one()
    world.hub.add("contact", {"first_name": HOSTILE, "email": "new@x.se"})
    with suppress(HaltedError):
        world.run(reason="plan")
    pairs.halt(world.engine, "t/crm", f"halted: {HOSTILE}", world.plan_id)
    record = f"/records/t/crm/contact/propstreet:{left}"
    paths = {path: path for path in LISTS} | {
        "pair": "/pairs/t/crm", "run": f"/runs/{run}", "plan": f"/plans/{world.plan_id}", "record": record,
        "field": f"{record}?field=first_name",
    }  # fmt: skip
    del paths["/conflicts?settled=1"], paths["/runs?all=1"], paths["/runs"]
    return paths


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_values_are_shown_and_never_run(here: Office) -> None:
    """A name that is a script is read as its letters, on every page that shows it."""
    for path in crowded(here).values():
        page = here.browser().get(path)
        assert page.status == 200, path
        assert HOSTILE in page.text, path
        assert HOSTILE not in page.answer.text, path
        outline = _Outline()
        outline.feed(page.answer.text)
        assert [str(held.get("src")).partition("?")[0] for tag, held in outline.found if tag == "script"] == [
            "/static/syncd.js"
        ], path
        assert not [tag for tag, held in outline.found if tag == "img"], path
        for tag, held in outline.found:
            assert not [name for name in held if name.startswith("on") or name == "style"], (path, tag)
            assert tag not in ("style", "iframe", "base", "object"), path


def test_pages_can_be_read_without_eyes_and_used_without_a_mouse(here: Office) -> None:
    """One heading of the first rank, landmarks, labels for what is filled in, headings for what is in tables."""
    for path in [*crowded(here).values(), "/runs", "/nowhere-at-all/x"]:
        page = here.browser().get(path)
        if page.status == 404:
            continue
        tags = [tag for tag, _ in page.tags]
        ids = [held["id"] for _, held in page.tags if held.get("id")]
        assert (tags.count("h1"), tags.count("main"), tags.count("header") >= 1, tags.count("footer")) == (
            1, 1, True, 1,
        ), path  # fmt: skip
        assert len(ids) == len(set(ids)), path
        labelled = {held.get("for") for tag, held in page.tags if tag == "label"}
        filled = [held for tag, held in page.tags if tag == "input" and held.get("type") != "hidden"]
        assert {held.get("id") for held in filled} <= labelled, path
        assert all(held.get("scope") for tag, held in page.tags if tag == "th"), path
        assert dict(page.tags)["html"].get("lang") == "en"
        assert all(form.button for form in page.forms), path


def test_no_template_and_no_file_asks_anything_of_anybody_else() -> None:
    """What a page needs comes from this very service: no font, script or style of another host, none within a page."""
    files = sorted(each for folder in ("templates", "static") for each in (WEB / folder).iterdir())
    assert len(files) > 12
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//|@import|url\(", text), file
        assert not re.search(r"\son[a-z]+=|style=|<style|javascript:|\|\s*safe", text), file
    script = (WEB / "static" / "syncd.js").read_text(encoding="utf-8")
    assert not re.search(r"https?://|innerHTML|eval\(|localStorage|cookie", script)
    assert len(script.splitlines()) < 120


def test_the_whole_page_is_packed() -> None:
    """Templates and static files lie in the package itself, which the wheel takes whole."""
    assert (WEB / "templates" / "base.html").is_file()
    assert {each.name for each in (WEB / "static").iterdir()} == {"syncd.css", "syncd.js"}
