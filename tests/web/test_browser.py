"""The operator's page in a real browser: what somebody sees there, presses and types, and what must never happen.

One browser and one daemon for all of these tests; each test has a tenant of its own, between emulators.
Nothing is waited for by the clock: the page's own is put forward instead.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, ViewportSize, expect, sync_playwright
from sqlalchemy import Engine, select

from connectors.hubspot.emulator import HubSpotEmulator
from connectors.propstreet.emulator import PropstreetEmulator
from syncd.config import ServiceConfig
from syncd.serve import Parts, running
from syncd.state import pairs
from syncd.state import schema as s
from syncd.wiring import Result, Service, run_pair
from tests.faults.harness import Pair, crm_emulator, started
from tests.service.test_queue import until
from tests.web.visits import TOKENS, with_tokens

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

#: Where pictures of every page go, if anybody wants them: ``make screenshots``.
PICTURES: Final = os.environ.get("SCREENSHOTS")
WIDTHS: Final = (360, 768, 1280)
PICTURED: Final = (390, 1280)
HOLD: Final = {"kinds": {"contact": {"fields": {"last_name": {"policy": "both", "conflict": "hold"}}}}}
LONG: Final = "Fastighetsutvecklingsaktiebolaget" * 3
#: Fields and buttons that somebody can reach, in the order in which they stand.
REACHABLE: Final = "a[href], button, input:not([type=hidden]), summary, [tabindex='0']"


# --- who is there -------------------------------------------------------------------------


@dataclass
class House:
    """The daemon, and the tenants that the tests bring."""

    folder: Path
    service: Service
    stack: ExitStack
    url: str = ""
    sessions: dict[str, Any] = field(default_factory=dict)

    def tenant(self, name: str, connector: str = "hubspot", **more: Any) -> Pair:
        """A tenant with running emulators, and a file that the daemon finds."""
        left, right = PropstreetEmulator(now=self.service.now), crm_emulator(connector, self.service.now)
        self.stack.enter_context(started(left, right))
        return Pair(name, connector, self.folder, left, right, {**HOLD, **more})

    def run(self, pair: Pair, reason: Any = "run") -> Result:
        tenant, config = pair.config()
        return run_pair(self.service, tenant, config, reason)

    def in_step(self, name: str, *, contacts: int = 2, deals: int = 0) -> Pair:
        """A tenant of which everything has arrived."""
        pair = self.tenant(name)
        pair.seed(contacts=contacts, deals=deals)
        assert self.run(pair, "backfill").state == "done"
        self.run(pair)
        pair.assert_in_step()
        return pair

    def latest(self, table: Any, pair: Pair) -> Any:
        query = select(table).where(table.c.pair == f"{pair.tenant_name}/{pair.connector}")
        with self.service.engine.connect() as tx:
            return tx.execute(query.order_by((table.c.started_at if table is s.run else table.c.id).desc())).first()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def house(module_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The daemon without its schedule, so that nothing runs but what somebody asked for."""
    home = tmp_path_factory.mktemp("house")
    service = Service(module_engine, workers=2)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    with ExitStack() as stack:
        web = stack.enter_context(with_tokens(home, port=port))
        found = House(home / "tenants", service, stack)
        found.tenant("first-of-all")  # no daemon starts without a tenant
        settings, parts = ServiceConfig(web=web), Parts(scheduler=False)
        daemon = stack.enter_context(running(service, found.folder, settings, parts, over=threading.Event()))
        found.url = str(daemon.url)
        yield found
    service.close()
    structlog.reset_defaults()


@contextmanager
def somebody(chromium: Browser, house: House, name: str | None = "ops", *, refused: int = 0) -> Iterator[Page]:
    """Somebody at a browser, signed on by this token; ``refused`` is a status that a page of theirs may have.

    Nothing is asked of any other host, and nothing goes wrong in the page: that is proved at the end.
    """
    context = chromium.new_context(
        base_url=house.url, reduced_motion="reduce", service_workers="block",
        storage_state=_session(chromium, house, name) if name else None,
    )  # fmt: skip
    abroad: list[str] = []
    wrong: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (refused and f"status of {refused}" in message.text):
            wrong.append(message.text)

    context.on("request", lambda asked: None if _is_ours(asked.url, house) else abroad.append(asked.url))
    context.on("console", told)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.clock.install()
    expect.set_options(timeout=60_000)
    yield context.new_page()
    context.close()
    assert (abroad, wrong) == ([], [])


def _is_ours(url: str, house: House) -> bool:
    return url.startswith((f"{house.url}/", "data:"))


def _session(chromium: Browser, house: House, name: str) -> Any:
    """What a browser keeps of having signed on once."""
    if name not in house.sessions:
        context = chromium.new_context(base_url=house.url)
        _sign_on(context.new_page(), TOKENS[name])
        house.sessions[name] = context.storage_state()
        context.close()
    return house.sessions[name]


def _sign_on(page: Page, token: str) -> None:
    if page.url == "about:blank":
        page.goto("/")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign on").click()


@pytest.fixture
def operator(chromium: Browser, house: House) -> Iterator[Page]:
    with somebody(chromium, house) as page:
        yield page


def shown(page: Page, what: Locator) -> None:
    """Wait for news that the page fetches by itself; its clock is put forward, so that nobody sits there."""

    def is_there() -> bool:
        page.clock.fast_forward(3_000)
        return what.first.is_visible()

    until(is_there)


def press(page: Page, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def last_names(pair: Pair, email: str = "hub0@example.com") -> tuple[str, str]:
    """What Propstreet and HubSpot hold."""
    assert isinstance(pair.crm, HubSpotEmulator)
    (left,) = [each["lastName"] for each in pair.hub.all("contacts") if each.get("email") == email]
    (right,) = [each["lastname"] for each in pair.crm.all("contacts").values() if each.get("email") == email]
    return str(left), str(right)


def apart(
    house: House, pair: Pair, email: str = "hub0@example.com", here: str = "Storm", there: str = "Strand"
) -> None:
    """Both sides name one person anew, and the next run finds that they disagree."""
    pair.hub_rename(email, here)
    pair.crm_rename(email, there)
    house.run(pair)


# --- what somebody does -------------------------------------------------------------------


def test_sign_on_is_refused_without_and_with_a_wrong_token_and_let_in_with_the_right_one(
    chromium: Browser, house: House
) -> None:
    """Whoever followed a link stands on its page afterwards; the browser keeps no token that a script could read."""
    with somebody(chromium, house, None, refused=401) as page:
        page.goto("/runs")
        expect(page.get_by_label("Token")).to_be_focused()
        press(page, "Sign on")
        assert page.get_by_label("Token").evaluate("each => each.validity.valueMissing")
        _sign_on(page, "a-token-that-nobody-gave-away-0123")
        expect(page.get_by_role("alert")).to_have_text("This token is not known here.")
        _sign_on(page, TOKENS["ops"])
        expect(page.get_by_text("ops, operator")).to_be_visible()
        assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
        press(page, "Sign off")
        expect(page.get_by_label("Token")).to_be_visible()


def test_after_sign_on_the_page_that_was_asked_for_is_there(chromium: Browser, house: House) -> None:
    with somebody(chromium, house, None, refused=401) as page:
        page.goto("/runs?all=1")
        _sign_on(page, TOKENS["ops"])
        page.wait_for_url("**/runs?all=1")


def test_a_first_plan_is_read_field_by_field_and_approved_by_a_click(operator: Page, house: House) -> None:
    """From the overview to the plan, to a pair in step: the worker does it, and the page follows by itself."""
    pair = house.tenant("beginner")
    pair.seed(contacts=2, deals=1)
    house.run(pair)
    operator.goto("/")
    operator.locator("tr", has_text="beginner").get_by_role("link", name="Read the plan").click()
    deed = operator.locator("article", has_text="Hanna0").first
    expect(deed).to_contain_text("create in hubspot")
    for words in ("first name", "Hanna0", "last name", "Berg", "hub0@example.com"):
        expect(deed).to_contain_text(words)
    press(operator, "Apply this plan")
    expect(operator.get_by_role("status").first).to_contain_text("A worker carries the plan out")
    shown(operator, operator.locator("main .state", has_text="applied"))
    expect(operator.get_by_role("button", name="Apply this plan")).to_have_count(0)
    pair.assert_in_step()
    operator.goto(f"/pairs/beginner/{pair.connector}")
    expect(operator.locator("main .state").first).to_have_text("in step")


@pytest.mark.parametrize(("label", "value"), [("Keep Propstreet’s", "Storm"), ("Keep hubspot’s", "Strand")])
def test_a_conflict_is_settled_by_a_click_and_both_sides_hold_what_was_chosen(
    operator: Page, house: House, label: str, value: str
) -> None:
    pair = house.in_step(f"chooser-{value.lower()}")
    apart(house, pair)
    operator.goto(f"/conflicts?tenant={pair.tenant_name}")
    item = operator.locator("article.item")
    for words in ("last name", "Storm", "Berg", "Strand"):
        expect(item).to_contain_text(words)
    press(operator, label)
    expect(operator.get_by_role("status").first).to_contain_text("Kept")
    expect(item).to_have_count(0)
    until(lambda: last_names(pair) == (value, value))


def test_a_run_is_taken_back_by_a_click_once_its_plan_was_read(operator: Page, house: House) -> None:
    """Nothing is written before somebody has seen what would be."""
    pair = house.in_step("regretful")
    pair.hub_rename("hub0@example.com", "Storm")
    house.run(pair)
    assert last_names(pair) == ("Storm", "Storm")
    operator.goto(f"/runs/{house.latest(s.run, pair).id}")
    press(operator, "Show what would be taken back")
    shown(operator, operator.get_by_role("link", name="Read the plan"))
    assert last_names(pair) == ("Storm", "Storm")
    operator.get_by_role("link", name="Read the plan").click()
    expect(operator.locator("article", has_text="last name")).to_contain_text("Storm→ Berg")
    press(operator, "Apply this plan")
    shown(operator, operator.locator("main .state", has_text="applied"))
    assert last_names(pair)[1] == "Berg"


def test_a_pair_is_paused_and_resumed(operator: Page, house: House) -> None:
    """What was edited meanwhile arrives with the run that resuming asks for."""
    pair = house.in_step("sleeper")
    operator.goto("/pairs/sleeper/hubspot")
    press(operator, "Pause")
    expect(operator.locator("main .state").first).to_have_text("paused")
    expect(operator.get_by_role("button", name="Run now")).to_have_count(0)
    pair.hub_rename("hub0@example.com", "Storm")
    press(operator, "Resume")
    expect(operator.locator("main .state").first).to_have_text("in step")
    until(lambda: last_names(pair) == ("Storm", "Storm"))


def test_news_shows_up_by_itself_and_takes_nothing_out_of_somebodys_hands(operator: Page, house: House) -> None:
    """A half-filled field, its caret, the focus and what was opened stay; the page is never loaded again."""
    pair = house.in_step("writer")
    apart(house, pair)
    operator.goto("/conflicts?tenant=writer")
    operator.evaluate("window.isTheSame = true")
    operator.get_by_text("Another value, or none").click()
    value = operator.get_by_label("Value for both")
    value.press_sequentially("Stor")
    value.press("ArrowLeft")
    apart(house, pair, "hub1@example.com", "Lind", "Lund")
    shown(operator, operator.get_by_text("Lund"))
    expect(operator.locator("article.item")).to_have_count(2)
    where = "const it = document.activeElement; return [it.value, it.selectionStart, window.isTheSame]"
    assert operator.evaluate(f"() => {{ {where} }}") == ["Stor", 3, True]
    operator.keyboard.type("s")
    assert operator.evaluate("document.activeElement.value") == "Stosr"


def test_where_the_service_is_gone_the_page_says_so_until_it_is_back(chromium: Browser, house: House) -> None:
    """What somebody looks at is old then."""
    with somebody(chromium, house, refused=503) as page:
        page.goto("/")
        page.route("**/*", lambda route: route.fulfill(status=503, body=""))
        gone = page.locator("#unreachable")
        shown(page, gone)
        page.unroute("**/*")

        def is_back() -> bool:
            page.clock.fast_forward(3_000)
            return gone.is_hidden()

        until(is_back)


# --- by the keyboard ----------------------------------------------------------------------


FOCUS: Final = f"""() => {{
  const it = document.activeElement, box = it.getBoundingClientRect(), style = getComputedStyle(it);
  return {{
    place: [...document.querySelectorAll("{REACHABLE}")].indexOf(it), tag: it.tagName, id: it.id,
    isSeen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0
      && box.right > 0 && box.left < innerWidth && box.bottom > 0 && box.top < innerHeight,
  }};
}}"""
#: The numbers of those that are there to be seen.
VISIBLE: Final = """all => all.flatMap((each, at) => {
  const box = each.getBoundingClientRect();
  return each.checkVisibility({ visibilityProperty: true }) && box.width && box.height ? [at] : [];
})"""


def tab_to(page: Page, is_it: Callable[[dict[str, Any]], bool], *, most: int = 200) -> list[dict[str, Any]]:
    """Press Tab until something has the focus; all that had it on the way."""
    stops: list[dict[str, Any]] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stops.append(page.evaluate(FOCUS))
        if is_it(stops[-1]):
            return stops
    raise AssertionError(f"never reached: {stops}")


def stands_at(place: int, stop: dict[str, Any]) -> bool:
    return bool(stop["place"] == place)


def test_the_first_tab_leads_past_the_bar_on_top(operator: Page) -> None:
    operator.goto("/runs")
    operator.keyboard.press("Tab")
    skip = operator.get_by_role("link", name="To the content")
    expect(skip).to_be_focused()
    assert operator.evaluate(FOCUS)["isSeen"]
    operator.keyboard.press("Enter")
    expect(operator.locator("main")).to_be_focused()
    operator.keyboard.press("Tab")
    assert operator.evaluate("document.activeElement.closest('main') !== null")


# --- every page ---------------------------------------------------------------------------


@dataclass
class Gallery:
    """One address of each page, with something on it that is worth a look."""

    paths: dict[str, str]
    pairs: list[str]


@pytest.fixture(scope="module")
def gallery(house: House) -> Gallery:
    pair = house.tenant("nordhaus")
    crm = pair.crm
    assert isinstance(crm, HubSpotEmulator)
    pair.seed(contacts=4, deals=2)
    pair.hub.add("companies", {"name": LONG, "domain": "fastighetsutveckling.se"})
    pair.hub.add("companies", {"name": "Vasakronan AB", "domain": "vasakronan.se"})
    for name in ("Vasakronan", "Vasakronan (kopia)"):
        crm.add("companies", {"name": name, "domain": "vasakronan.se", "city": "Stockholm"})
    pair.hub_contact(77, email="asa.lindqvist@nowhere", lastName="Lindqvist")
    for number in range(3):
        crm.add("deals", {"dealname": f"Rådgivning {number + 1}", "dealstage": "appointmentscheduled"})
    house.run(pair, "backfill")
    house.run(pair)
    pair.crm_rename("hub3@example.com", LONG)
    pair.hub_rename("hub2@example.com", "Sjöström")
    house.run(pair)
    run = house.latest(s.run, pair).id
    apart(house, pair, "hub0@example.com", "af Ugglas-Cederström", LONG)
    apart(house, pair, "hub1@example.com", "Öberg", "Åberg")
    waiting = house.tenant("granit", "salesforce")
    waiting.seed(contacts=3, deals=1)
    house.run(waiting)
    paused = house.in_step("vinga-fastigheter-och-forvaltning-i-norden", contacts=1)
    at = house.service.now()
    pairs.pause(house.service.engine, f"{paused.tenant_name}/hubspot", at)
    plan = pairs.find(house.service.engine, "granit/salesforce").halted_plan
    (contact,) = [each["id"] for each in pair.hub.all("contacts") if each["lastName"] == "Sjöström"]
    record = f"/records/nordhaus/hubspot/contact/propstreet:{contact}"
    return Gallery(
        {
            "overview": "/",
            "pair": "/pairs/nordhaus/hubspot",
            "pair-waiting": "/pairs/granit/salesforce",
            "plan": f"/plans/{plan}",
            "conflicts": "/conflicts?tenant=nordhaus",
            "conflicts-settled": "/conflicts?settled=1",
            "reviews": "/reviews?tenant=nordhaus",
            "dead-letters": "/dead-letters?tenant=nordhaus&pair=hubspot",
            "excluded": "/excluded?tenant=nordhaus",
            "runs": "/runs?tenant=nordhaus&all=1",
            "run": f"/runs/{run}",
            "record": record,
            "record-why": f"{record}?field=last_name",
            "sorry": "/runs/nothing",
        },
        ["granit/salesforce", "nordhaus/hubspot", f"{paused.tenant_name}/hubspot"],
    )


def test_the_overview_lists_the_pairs_with_the_most_urgent_first(operator: Page, gallery: Gallery) -> None:
    operator.goto("/")
    keys = operator.locator("main tr[data-key]").evaluate_all("rows => rows.map(each => each.dataset.key)")
    assert [each for each in keys if each in gallery.pairs] == gallery.pairs
    words = operator.locator("main tr[data-key] .state").all_inner_texts()
    assert words[0] == "waits for approval"
    assert words[-1] == "paused"
    assert "you" in operator.get_by_role("heading", level=1).inner_text()


def test_a_viewer_sees_everything_and_no_button_that_acts(chromium: Browser, house: House, gallery: Gallery) -> None:
    with somebody(chromium, house, "desk", refused=404) as page:
        for path in gallery.paths.values():
            page.goto(path)
            assert page.locator("main button, main form, main input").count() == 0, path
        expect(page.get_by_role("button")).to_have_count(0)  # the page of an error has no bar
        page.goto("/")
        assert page.get_by_role("button").all_inner_texts() == ["Find", "Sign off"]


def test_everything_on_every_page_is_reached_by_tab_in_its_order_and_seen_there(
    operator: Page, gallery: Gallery
) -> None:
    operator.set_viewport_size({"width": 1280, "height": 800})
    for name, path in gallery.paths.items():
        if name == "sorry":
            continue
        operator.goto(path)
        visible = operator.locator(REACHABLE).evaluate_all(VISIBLE)
        stops = tab_to(operator, partial(stands_at, visible[-1]))
        assert [stop["place"] for stop in stops if stop["place"] >= 0] == visible, name
        assert [stop for stop in stops if not stop["isSeen"]] == [], name


def test_a_conflict_is_settled_by_keys_alone(operator: Page, house: House) -> None:
    """Open it, go to the field, type a third value, Enter."""
    pair = house.in_step("typist")
    apart(house, pair)
    operator.goto("/conflicts?tenant=typist")
    tab_to(operator, lambda stop: stop["tag"] == "SUMMARY")
    operator.keyboard.press("Enter")
    tab_to(operator, lambda stop: stop["id"].startswith("v-"))
    operator.keyboard.type("Stark")
    operator.keyboard.press("Enter")
    expect(operator.get_by_role("status").first).to_contain_text("Kept")
    until(lambda: last_names(pair) == ("Stark", "Stark"))


#: Every text on the page that is too faint for what lies behind it.
FAINT: Final = """() => {
  const parts = (text) => {
    const found = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number), scale = text.startsWith("color(") ? 255 : 1;
    return [...found.slice(0, 3).map((each) => each * scale), found.length > 3 ? found[3] : 1];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((each, at) => each * a + under[at] * (1 - a));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((each) => each / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    if (!node) return parts(getComputedStyle(document.body).backgroundColor).slice(0, 3);
    const own = parts(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(node.parentElement));
  };
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    let opacity = 1;
    for (let at = node; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
    const back = behind(node), ink = parts(getComputedStyle(node).color);
    const [one, other] = [light(over([...ink.slice(0, 3), ink[3] * opacity], back)), light(back)].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_every_screen_and_can_be_read(
    chromium: Browser, house: House, gallery: Gallery, scheme: Any
) -> None:
    """From a small telephone to a desk, by day and by night: nothing sticks out sideways, no text is too faint."""
    with somebody(chromium, house, refused=404) as page:
        page.emulate_media(color_scheme=scheme)
        for name, path in gallery.paths.items():
            page.goto(path)
            _fits(page, name)
            _picture(page, f"{name}-{scheme}")
    with somebody(chromium, house, None, refused=401) as page:
        page.emulate_media(color_scheme=scheme)
        page.goto("/")
        _fits(page, "sign-on")
        _picture(page, f"sign-on-{scheme}")


def _fits(page: Page, name: str) -> None:
    assert page.evaluate(FAINT) == [], name
    for width in WIDTHS:
        page.set_viewport_size(ViewportSize(width=width, height=800))
        wide = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= width, (name, width, wide)


def _picture(page: Page, name: str) -> None:
    for width in PICTURED if PICTURES else ():
        page.set_viewport_size(ViewportSize(width=width, height=800))
        page.screenshot(path=f"{PICTURES}/{name}-{width}.png", full_page=True)
