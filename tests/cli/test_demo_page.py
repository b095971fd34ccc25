"""The demo's page: what a visitor sees of both systems, and that each button does what it says, by the real daemon."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from syncd import demo
from syncd.config import load
from syncd.demo.page import LONGEST_VALUE, SHOWN
from syncd.state import migrate, screen
from syncd.testing import portfolio
from syncd.testing.portfolio import STAGE_IS_THEIRS, Cell
from syncd.web.gate import HEADERS
from syncd.web.paper import LONGEST_FORM
from syncd.wiring import Service, check_pair, database, run_pair
from tests.service.test_queue import until
from tests.web.visits import Form, Shown

pytestmark = pytest.mark.long

PATH = "/nordhaus/hubspot"
SMALL = partial(portfolio.make, projects=6, persons=16, firms=5, investors=8)
HOSTILE = "<script>alert(1)</script>'\"><img src=x onerror=alert(2)>{{ 7*7 }}"
FILES = Path(demo.__file__).parent


@dataclass
class House:
    """One tenant of the demo, in step, with the daemon and the page as ``syncd demo`` runs them."""

    engine: Engine
    world: demo.World
    address: str
    operators: tuple[str, str]

    def get(self, path: str = PATH, **headers: str) -> Shown:
        return Shown(httpx.get(self.address + path, headers=headers, timeout=30))

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Shown:
        """As a browser sends a form: with an Origin, and on to where the answer leads."""
        sent = {"Origin": self.address, **headers}
        return Shown(httpx.post(self.address + path, data=fields, headers=sent, follow_redirects=True, timeout=30))

    def press(self, form: Form, **fields: str) -> Shown:
        shown = self.post(form.action, {**form.fields, **fields})
        assert shown.status == 200, shown.text
        return shown

    def form(self, kind: str, id_: str, field: str, *sides: str, page: Shown | None = None) -> Form:
        """The form that edits one field of a record on one side, or on both at once."""
        named = {"kind": kind, "id": id_, "field": field}
        for form in (page or self.get()).forms:
            if {name: value for name, value in form.fields.items() if name not in ("propstreet", "crm")} == named and (
                form.fields.keys() - named.keys() == set(sides)
            ):
                return form
        raise AssertionError(f"no form edits {field} of {kind} {id_} in {sides}")

    def value(self, kind: str, id_: str, field: str, side: str) -> str:
        return self.form(kind, id_, field, side).fields[side]

    def employed(self) -> list[str]:
        """The contacts on the page who have a job title that travels."""
        return [each for each in ids(self.get(), "contact") if "job_title" in self.cells("contact", each, "propstreet")]

    def cells(self, kind: str, id_: str, side: str) -> dict[str, Cell]:
        """A record as its emulator holds it."""
        link = screen.links(self.engine, "nordhaus/hubspot", kind, [id_])[id_]
        system = self.world.emulators["nordhaus", "propstreet" if side == "propstreet" else "hubspot"]
        return {cell.field: cell for cell in system.shown(kind, link[side])}

    def until(self, *words: str) -> Shown:
        """The page, once it says all of this."""
        seen: list[Shown] = []

        def says() -> bool:
            seen[:] = [self.get()]
            return all(word in seen[0].text for word in words)

        until(says)
        return seen[0]


def ids(page: Shown, kind: str) -> list[str]:
    """The records of a kind on a page, as Propstreet knows them."""
    return list(dict.fromkeys(form.fields["id"] for form in page.forms if form.fields.get("kind") == kind))


@pytest.fixture(scope="module")
def house(module_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    service = Service(module_engine)
    world = demo.build(service, tmp_path_factory.mktemp("demo") / "tenants", 7, ("nordhaus",), SMALL)
    try:
        (tenant,) = load(world.folder).tenants
        check_pair(service, tenant, tenant.pairs[0], is_fixing=True)
        run_pair(service, tenant, tenant.pairs[0], "backfill")
        with demo.staying(service, world) as (_, address, operators):
            yield House(module_engine, world, address, operators)
    finally:
        world.close()
        service.close()


# --- looking ------------------------------------------------------------------------------


def test_both_sides_are_shown_as_their_emulators_hold_them(house: House) -> None:
    """Each value that can be edited stands on its own side, in that side's own form."""
    assert house.get("/").answer.headers["location"] == PATH
    page, counts = house.get(), {"propstreet": 0, "crm": 0}
    for kind in SHOWN:
        assert len(ids(page, kind)) > 1
        for id_, side in product(ids(page, kind), counts):
            for field, cell in house.cells(kind, id_, side).items():
                if field != "first_name" and not cell.closed and not cell.choices:
                    assert house.form(kind, id_, field, side, page=page).fields[side] == cell.value
                    counts[side] += 1
    assert min(counts.values()) > 10
    assert STAGE_IS_THEIRS in page.answer.text
    assert page.link(house.operators[0] + "/runs/")


def test_records_are_found_by_name_and_page_by_page(house: House) -> None:
    """What a page leaves out stands behind its link; an address that holds nonsense is no page."""
    page = house.get()
    first = ids(page, "contact")
    (more,) = [each for each in page.links() if "contacts=" in each]
    behind = ids(house.get(more), "contact")
    assert behind and not set(behind) & set(first)
    last_name = house.cells("contact", first[0], "propstreet")["last_name"].value
    assert first[0] in ids(house.get(f"{PATH}?find={last_name.lower()}"), "contact")
    assert "None of that name" in house.get(f"{PATH}?find=%25").text
    for path in ("/nobody/hubspot", "/nordhaus/nothing", f"{PATH}?contacts=x", "/static/nothing.js"):
        assert house.get(path).status == 404, path


def test_a_page_that_did_not_change_is_not_sent_again(house: House) -> None:
    """Who asks several times a second is mostly told that nothing is new."""
    until(lambda: house.get(**{"If-None-Match": house.get().answer.headers["etag"]}).status == 304)


# --- editing ------------------------------------------------------------------------------


def test_an_edit_travels_by_the_real_daemon_either_way(house: House) -> None:
    """Both are told by webhook; what arrived says so, and how long it took."""
    contact, deal = house.employed()[0], ids(house.get(), "deal")[0]
    house.press(house.form("contact", contact, "job_title", "crm"), crm="Partner")
    house.press(house.form("deal", deal, "amount", "propstreet"), propstreet="77.5")
    page = house.until("Partner", "arrived after")
    assert "edited" in page.text
    until(lambda: house.cells("contact", contact, "propstreet")["job_title"].value == "Partner")
    until(lambda: house.cells("deal", deal, "crm")["amount"].value == "77,500,000")
    assert house.value("contact", contact, "job_title", "propstreet") == "Partner"
    assert house.value("deal", deal, "amount", "crm") == "77,500,000"


def test_a_stage_goes_one_way(house: House) -> None:
    """It moves the CRM's deal, and the CRM's cannot be edited; a form that was made up edits nothing."""
    deal = next(
        each
        for each in ids(house.get(), "deal")
        if house.cells("deal", each, "propstreet")["stage"].value != "communicated"
    )
    before = house.cells("deal", deal, "crm")["stage"].value
    named = {"kind": "deal", "id": deal, "field": "stage"}
    assert STAGE_IS_THEIRS in house.post(f"{PATH}/edit", {**named, "crm": "closedwon"}).text
    assert house.cells("deal", deal, "crm")["stage"].value == before
    house.post(f"{PATH}/edit", {**named, "propstreet": "communicated"})
    until(lambda: house.cells("deal", deal, "crm")["stage"].value != before)


def test_what_means_the_same_is_not_written(house: House) -> None:
    """A phone number in another format is told apart from one on its way, and stays as it was typed."""
    contact = next(each for each in ids(house.get(), "contact") if house.cells("contact", each, "crm")["phone"].value)
    held = house.cells("contact", contact, "propstreet")["phone"].value
    house.press(house.form("contact", contact, "phone", "crm"), crm=f"{held[:3]} (0){held[3:5]} {held[5:]}")
    house.until("means the same")
    assert house.cells("contact", contact, "propstreet")["phone"].value == held


@pytest.mark.parametrize(("side", "raw"), [("crm", "many"), ("propstreet", "-1e9")])
def test_what_a_system_lets_nobody_enter_is_said_beside_the_value(house: House, side: str, raw: str) -> None:
    """And the value stays."""
    deal = ids(house.get(), "deal")[1]
    before = house.value("deal", deal, "amount", side)
    page = house.press(house.form("deal", deal, "amount", side), **{side: raw})
    assert "That is no amount" in page.text
    assert house.value("deal", deal, "amount", side) == before == house.cells("deal", deal, side)["amount"].value


def test_a_made_up_form_is_answered_with_words(house: House) -> None:
    """Nothing that is not on the page can be edited, settled, taken back or applied by its address."""
    contact = ids(house.get(), "contact")[0]
    named = {"kind": "contact", "id": contact, "field": "strategy"}
    assert "longer than" in house.post(f"{PATH}/edit", {**named, "crm": "x" * (LONGEST_VALUE + 1)}).text
    for verb, fields in (
        ("edit", {**named, "id": "999999", "crm": "x"}),
        ("edit", {**named, "id": "../1", "crm": "x"}),
        ("edit", {**named, "kind": "employment", "crm": "x"}),
        ("edit", {**named, "field": "email", "crm": "x"}),
        ("settle", {"conflict": "c999999", "answer": "crm"}),
        ("undo", {"run": "nothing"}),
        ("plans/apply", {"plan": "nothing"}),
        ("plans/burn", {"plan": "nothing"}),
    ):
        assert house.post(f"{PATH}/{verb}", fields).status == 404, (verb, fields)
    assert house.post(f"{PATH}/edit", {**named, "crm": "x" * LONGEST_FORM}).status == 413


def test_hostile_values_stay_text(house: House) -> None:
    """What somebody enters is shown as it is, on both sides and in what syncd says of it."""
    contact = house.employed()[1]
    house.press(house.form("contact", contact, "job_title", "crm"), crm=HOSTILE)
    until(lambda: house.cells("contact", contact, "propstreet")["job_title"].value == HOSTILE)
    page = house.until("What syncd did", HOSTILE)
    assert house.value("contact", contact, "job_title", "propstreet") == HOSTILE
    scripts = [held for tag, held in page.tags if tag == "script"]
    assert len(scripts) == 2 and all(str(held["src"]).startswith("/static/") for held in scripts)
    assert not any(name.startswith("on") for _, held in page.tags for name in held)
    assert "img" not in {tag for tag, _ in page.tags}


# --- deciding -----------------------------------------------------------------------------


def test_both_edited_at_once_become_a_conflict_that_a_button_settles(house: House) -> None:
    """No run comes between the two edits; the side that was chosen stands on both afterwards."""
    contact = ids(house.get(), "contact")[2]
    both = house.form("contact", contact, "strategy", "propstreet", "crm")
    assert both.fields["propstreet"] != both.fields["crm"]
    house.press(both)
    page = house.until("Keep Propstreet’s", "Keep HubSpot’s", "conflict")
    (keep,) = [form for form in page.forms if form.button == "Keep HubSpot’s"]
    assert house.value("contact", contact, "strategy", "propstreet") == both.fields["propstreet"]
    house.press(keep)
    until(lambda: house.cells("contact", contact, "propstreet")["strategy"].value == both.fields["crm"])
    assert house.cells("contact", contact, "crm")["strategy"].value == both.fields["crm"]
    page = house.until("settled")
    assert "Keep HubSpot’s" not in page.buttons()
    assert house.post(keep.action, keep.fields).status == 404  # settled once


def test_a_run_is_taken_back_once_its_plan_was_seen(house: House) -> None:
    """Undo writes nothing; applied, the value is back, and both sides stay apart. A discarded plan does nothing."""
    deal = ids(house.get(), "deal")[2]
    before = house.cells("deal", deal, "crm")["amount"].value
    house.press(house.form("deal", deal, "amount", "propstreet"), propstreet="33")
    until(lambda: house.cells("deal", deal, "crm")["amount"].value == "33,000,000")

    def undone(label: str) -> None:
        page = house.until("33000000")
        house.press(next(form for form in page.forms if form.button == "Undo"))
        page = house.until("This would be taken back")
        assert house.cells("deal", deal, "crm")["amount"].value == "33,000,000"
        (form,) = [form for form in page.forms if form.button == label]
        house.press(form)

    undone("Discard")
    house.until("A plan to take it back was discarded")
    undone("Apply")
    until(lambda: house.cells("deal", deal, "crm")["amount"].value == before)
    house.until("Taken back", "left apart")
    assert house.cells("deal", deal, "propstreet")["amount"].value == "33"


# --- the door -----------------------------------------------------------------------------


def test_another_host_or_origin_is_refused(house: House) -> None:
    """A name that was bound to this machine reads nothing, and a form of another page changes nothing."""
    contact = ids(house.get(), "contact")[0]
    form = house.form("contact", contact, "strategy", "crm")
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert house.post(form.action, {**form.fields, "crm": "theirs"}, **headers).status == 403, headers
    port = house.address.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
        assert house.get(Host=host).status == 400, host
        assert (
            house.post(form.action, {**form.fields, "crm": "theirs"}, Host=host, Origin=f"http://{host}").status == 400
        )
    assert house.get(Host=f"localhost:{port}").status == 200
    assert house.cells("contact", contact, "crm")["strategy"].value == form.fields["crm"]


def test_every_answer_has_the_operators_page_s_headers(house: House) -> None:
    """Nothing inline, nothing from elsewhere, in no frame."""
    for path in (PATH, "/nowhere/at-all"):
        held = house.get(path).answer.headers
        assert {name: held[name] for name in HEADERS} == HEADERS
        assert held["cache-control"] == "no-store"
    assert not {"style", "iframe"} & {tag for tag, _ in house.get().tags}


def test_nothing_is_loaded_from_elsewhere() -> None:
    """No address of another site stands in the page's own files, and no script or style in its templates."""
    for file in (*(FILES / "templates").iterdir(), *(FILES / "static").iterdir()):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"//[a-z0-9.-]+\.[a-z]{2,}|@import|url\(", text), file
        if file.suffix == ".html":
            assert not re.search(r"<style|\bstyle=|\bon[a-z]+=|<script(?![^>]* src=)", text), file


# --- the command --------------------------------------------------------------------------


def test_the_demo_says_first_where_both_systems_are_to_be_seen(empty_database: str, tmp_path: Path) -> None:
    """Then the operator's page and its token, then the way for other commands; stopped, everything ends."""
    told: list[str] = []
    answers: list[int] = []

    def sleep(seconds: float) -> None:
        if threading.current_thread() is threading.main_thread():
            answers.extend(httpx.get(url, follow_redirects=True).status_code for url in _urls(told[0], told[1]))
            raise KeyboardInterrupt

    service = Service(database(empty_database), sleep=sleep)
    migrate.upgrade(service.engine)
    world = demo.build(service, tmp_path / "tenants", 7, ("granit",), SMALL)
    try:
        demo.stay(service, world, 7, told.append)
    finally:
        world.close()
        service.close()
    assert told[0].strip().startswith("Both systems side by side: http://127.0.0.1:")
    assert told[1].startswith("The operator's page: ") and "token" in told[1]
    assert any("export SYNCD_CONFIG=" in line for line in told)
    assert answers == [200, 401] and told[-1].strip() == "Stopping ..."


def _urls(*lines: str) -> list[str]:
    return [re.findall(r"http://\S+", line)[0] for line in lines]
