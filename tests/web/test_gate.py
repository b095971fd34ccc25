"""Who is let in to the operator's page, who may act, and what every answer carries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.routing import Route

from syncd.config import WebConfig
from syncd.errors import ConfigError
from syncd.web import gate, pages
from syncd.web.site import Site
from tests.web.visits import HOST, TOKENS, Browser, Office, office, with_tokens

PROXY = {"trusted": ["10.0.0.0/8", "fd00::/8"], "roles": {"crm-admins": "operator", "staff": "viewer"}}


@pytest.fixture
def here(engine: Engine, tmp_path: Path) -> Iterator[Office]:
    with office(engine, tmp_path) as found:
        yield found


def opened(here: Office, settings: WebConfig) -> Starlette:
    site = Site(here.service, lambda: here.configuration, here.woken.append, settings, order=here.order)
    return Starlette(routes=pages.routes(site))


def addresses(app: Starlette) -> list[tuple[str, str]]:
    """Every route with its method; what it has in braces is filled in."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route)
        path = re.sub(r"\{name\}", "syncd.css", route.path)
        path = re.sub(r"\{ref\}", "propstreet:1", re.sub(r"\{kind\}", "contact", path))
        path = re.sub(r"\{(\w+)\}", r"\1", path)
        found += [(method, path) for method in sorted(route.methods or ()) if method != "HEAD"]
    return found


def test_without_any_sign_on_nobody_is_let_in_and_the_page_says_which_key_to_set(here: Office) -> None:
    """An address that somebody can reach is no reason to show them a customer's people."""
    browser = Browser(opened(here, WebConfig()), peer="127.0.0.1")
    for method, path in addresses(here.app):
        answer = browser.client.request(method, path, headers={"Origin": HOST})
        if not path.startswith("/static/"):
            assert answer.status_code in (401, 403), path
    page = browser.get("/")
    assert page.status == 403
    assert "web.sign_on.tokens" in page.text
    assert "web.sign_on.proxy" in page.text


def test_every_route_is_closed_to_strangers_and_carries_the_headers(here: Office) -> None:
    """Page, action, refusal or style sheet: the same policy stands on each; no page is kept by a browser."""
    stranger, operator = Browser(here.app), here.browser()
    assert len(addresses(here.app)) > 15
    for browser in (stranger, operator):
        for method, path in addresses(here.app):
            answer = browser.client.request(method, path, headers={"Origin": HOST}, follow_redirects=False)
            if browser is stranger and not path.startswith("/static/"):
                assert answer.status_code == 401, path
                assert "t/crm" not in answer.text
            for name, value in gate.HEADERS.items():
                assert answer.headers[name] == value, (path, name)
            cache = answer.headers["cache-control"]
            assert cache == ("public, max-age=31536000, immutable" if path.startswith("/static/") else "no-store"), path
            assert answer.status_code < 500, path
    policy = dict(each.strip().split(" ", 1) for each in gate.CONTENT_POLICY.split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in gate.CONTENT_POLICY


def test_a_token_signs_on_once_and_the_session_is_closed_to_scripts(here: Office) -> None:
    """The form takes the token and never shows it again; the cookie is for this site and for no script."""
    browser = Browser(here.app)
    page = browser.get("/conflicts?tenant=t")
    assert (page.status, page.buttons()) == (401, ["Sign on"])
    shown = browser.press(page, "Sign on", token=TOKENS["ops"])
    assert (shown.status, shown.answer.url.path, shown.answer.url.query) == (200, "/conflicts", b"tenant=t")
    cookie = shown.answer.history[0].headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {each.strip() for each in cookie.split(";")}
    assert TOKENS["ops"] not in cookie
    assert "ops, operator" in shown.text


def test_where_the_outside_is_https_the_cookie_travels_no_other_way(here: Office, tmp_path: Path) -> None:
    """Secure, and bound to this very host by its name."""
    with with_tokens(tmp_path, public_url="https://syncd.example.com") as settings:
        browser = Browser(opened(here, settings))
    answer = browser.client.post(
        "/sign-on", data={"token": TOKENS["ops"]}, headers={"Origin": "https://syncd.example.com"},
        follow_redirects=False,
    )  # fmt: skip
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-syncd=ops~")
    assert "Secure" in cookie
    assert "Domain" not in cookie


@pytest.mark.parametrize("token", ["", "wrong", TOKENS["ops"][:-1], TOKENS["ops"] + "x", TOKENS["ops"].upper(), "å"])
def test_a_wrong_token_is_refused_in_a_form_and_in_a_header(here: Office, token: str) -> None:
    """Nothing near a token is a token."""
    shown = Browser(here.app).sign_on(token)
    assert (shown.status, dict(shown.answer.cookies)) == (401, {})
    assert "not known here" in shown.text
    browser = Browser(here.app)
    answer = browser.client.get("/", headers={"Authorization": f"Bearer {token}".encode()})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_script_sends_its_token_with_each_request_and_needs_no_form(here: Office) -> None:
    """What carries no cookie cannot be tricked into sending one."""
    script = Browser(here.app, headers={"Authorization": f"Bearer {TOKENS['ops']}"})
    assert script.get("/").status == 200
    answer = script.client.post("/pairs/t/crm/pause", follow_redirects=False)
    assert answer.status_code == 303
    viewer = Browser(here.app, headers={"Authorization": f"Bearer {TOKENS['desk']}"})
    assert viewer.client.post("/pairs/t/crm/resume").status_code == 403
    assert Browser(here.app, headers={"Authorization": "Basic b3BzOm9wcw=="}).get("/").status == 401


def test_who_keeps_guessing_has_to_wait_and_nobody_else_does(here: Office) -> None:
    """Ten wrong tokens from one peer; then even the right one waits, a little while."""
    guesser = Browser(here.app, peer="198.51.100.9")
    for _ in range(gate.ATTEMPTS):
        assert guesser.sign_on("wrong-wrong-wrong-wrong-wrong").status == 401
    shown = guesser.sign_on(TOKENS["ops"])
    assert shown.status == 429
    assert 0 < int(shown.answer.headers["retry-after"]) <= gate.ATTEMPT_SECONDS
    assert guesser.get("/", Authorization=f"Bearer {TOKENS['ops']}").status == 429
    assert Browser(here.app, peer="198.51.100.10").sign_on(TOKENS["ops"]).status == 200
    here.world.clock.sleep(gate.ATTEMPT_SECONDS)
    assert guesser.sign_on(TOKENS["ops"]).status == 200


def test_a_session_ends_with_its_time_or_with_its_token_and_is_known_to_every_replica(
    here: Office, tmp_path: Path
) -> None:
    """The cookie says who and since when; the token signs it, so that a new token is a new key."""
    with with_tokens(tmp_path) as settings:
        one, other = opened(here, settings), opened(here, settings)
    browser = Browser(one)
    browser.sign_on(TOKENS["ops"])
    session = {"Cookie": f"syncd={browser.client.cookies['syncd']}"}
    assert Browser(other).get("/", **session).status == 200
    for changed in (session["Cookie"].replace("ops", "desk"), session["Cookie"][:-1], "syncd=~~~", "syncd=ops"):
        assert Browser(other).get("/", Cookie=changed).status == 401
    (tmp_path / "token-ops").write_text("another-operators-token-0123456789")
    assert Browser(other).get("/", **session).status == 401
    (tmp_path / "token-ops").write_text("")
    assert Browser(other).get("/", **session).status == 401
    (tmp_path / "token-ops").write_text(TOKENS["ops"])
    assert Browser(other).get("/", **session).status == 200
    here.world.clock.sleep(gate.SESSION_HOURS * 3_600)
    assert Browser(other).get("/", **session).status == 401


def test_signing_off_has_the_browser_forget(here: Office) -> None:
    """One press, and the next page asks who it is."""
    browser = here.browser()
    shown = browser.press(browser.get("/"), "Sign off")
    assert (shown.status, shown.buttons()) == (401, ["Sign on"])


@pytest.mark.parametrize(
    ("headers", "fields", "status"),
    [
        ({"Origin": HOST}, {}, 200),
        ({"Origin": HOST, "Sec-Fetch-Site": "same-origin"}, {}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, {}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, {}, 200),
        ({"Origin": HOST, "Sec-Fetch-Site": "cross-site"}, {}, 403),
        ({"Origin": HOST, "Sec-Fetch-Site": "same-site"}, {}, 403),
        ({"Origin": HOST, "Sec-Fetch-Site": "none"}, {}, 403),
        ({"Origin": "https://evil.example"}, {}, 403),
        ({"Origin": "http://syncd.test.evil.example"}, {}, 403),
        ({"Origin": "http://["}, {}, 403),
        ({"Origin": "null"}, {}, 403),
        ({}, {}, 403),
        ({"Origin": HOST}, {"form_token": ""}, 403),
        ({"Origin": HOST}, {"form_token": "0" * 64}, 403),
    ],
)
def test_only_a_form_of_this_page_can_act(
    here: Office, headers: dict[str, str], fields: dict[str, str], status: int
) -> None:
    """The browser must say that it came from here, and the form must be this session's."""
    browser = here.browser()
    (form,) = [each for each in browser.get("/pairs/t/crm").forms if each.button == "Pause"]
    answer = browser.client.post(form.action, data={**form.fields, **fields}, headers=headers)
    assert answer.status_code == status
    (pair,) = here.world.engine.connect().exec_driver_sql("SELECT paused_at IS NOT NULL FROM pair").scalars()
    assert pair is (status == 200)


def test_a_form_of_another_session_is_refused(here: Office) -> None:
    """What one visitor was given is of no use to another."""
    one, other = here.browser(), here.browser()
    (form,) = [each for each in one.get("/pairs/t/crm").forms if each.button == "Pause"]
    assert other.post(form.action, form.fields).status == 403


def test_nothing_acts_by_being_looked_at(here: Office) -> None:
    """Addresses that act answer to POST alone."""
    browser = here.browser()
    acting = {path for method, path in addresses(here.app) if method == "POST"}
    assert len(acting) >= 10
    for path in acting:
        assert browser.get(path).status in (404, 405), path


def test_a_viewer_sees_everything_and_presses_nothing(here: Office) -> None:
    """No button is shown that would not work, and what is posted anyway is refused; searching is looking."""
    left = here.world.hub.add("contact", {"first_name": "Anna", "email": "anna@nordhaus.se"})
    here.world.settle()
    viewer, operator = here.browser("desk"), here.browser()
    for path in ("/", "/pairs/t/crm", "/conflicts", "/reviews", f"/records/t/crm/contact/propstreet:{left}"):
        assert set(viewer.get(path).buttons()) == {"Find", "Sign off"}, path
    token = viewer.get("/").forms[0].fields["form_token"]
    for method, path in addresses(here.app):
        if method == "POST" and path not in ("/search", "/sign-on", "/sign-off"):
            shown = viewer.post(path, {"form_token": token})
            assert (shown.status, "takes the role operator" in shown.text) == (403, True), path
    assert viewer.press(viewer.get("/"), "Find", ref=f"propstreet:{left}").status == 200
    assert "Pause" in operator.get("/pairs/t/crm").buttons()


# --- the cluster's own sign-on ------------------------------------------------------------


def sent(app: Starlette, peer: str = "10.1.2.3", user: str = "eva@nordhaus.se", groups: str = "staff") -> Browser:
    headers = {"X-Forwarded-User": user, "X-Forwarded-Groups": groups}
    return Browser(app, peer=peer, headers={name: value for name, value in headers.items() if value})


@pytest.mark.parametrize(
    ("peer", "user", "groups", "status", "role"),
    [
        ("10.1.2.3", "eva@nordhaus.se", "staff", 200, "viewer"),
        ("10.1.2.3", "eva@nordhaus.se", "staff, crm-admins", 200, "operator"),
        ("fd00::7", "eva@nordhaus.se", "crm-admins", 200, "operator"),
        ("::ffff:10.1.2.3", "eva@nordhaus.se", "crm-admins", 200, "operator"),
        ("10.1.2.3", "eva@nordhaus.se", "others", 403, ""),
        ("10.1.2.3", "eva@nordhaus.se", "", 403, ""),
        ("10.1.2.3", "", "crm-admins", 403, ""),
        ("11.1.2.3", "eva@nordhaus.se", "crm-admins", 403, ""),
        ("nonsense", "eva@nordhaus.se", "crm-admins", 403, ""),
    ],
)
def test_headers_are_believed_from_the_proxy_alone(
    here: Office, peer: str, user: str, groups: str, status: int, role: str
) -> None:
    """Who it is comes from a trusted address or not at all, and a group without a role is no entry."""
    settings = WebConfig.model_validate({"sign_on": {"proxy": PROXY}})
    shown = sent(opened(here, settings), peer, user, groups).get("/")
    assert (shown.status, f", {role}" in shown.text if role else True) == (status, True)
    assert "eva@nordhaus.se" not in shown.text


def test_a_name_that_was_sent_twice_is_nobody(here: Office) -> None:
    """A proxy that adds its header to one that came with the request has not replaced it."""
    settings = WebConfig.model_validate({"sign_on": {"proxy": PROXY}})
    client = Browser(opened(here, settings), peer="10.1.2.3").client
    lines = [("X-Forwarded-User", "eva"), ("X-Forwarded-User", "mallory"), ("X-Forwarded-Groups", "crm-admins")]
    assert client.get("/", headers=lines).status_code == 403


def test_who_comes_through_the_proxy_acts_by_forms_as_well(here: Office) -> None:
    """The proxy's sign-on rides on every request, so that only the form proves who meant it."""
    settings = WebConfig.model_validate({"sign_on": {"proxy": PROXY}})
    app = opened(here, settings)
    browser = sent(app, groups="crm-admins")
    page = browser.get("/pairs/t/crm")
    assert browser.press(page, "Pause").status == 200
    assert "Sign off" not in page.buttons()
    (form,) = [each for each in page.forms if each.button == "Pause"]
    assert sent(app, groups="crm-admins").post(form.action, form.fields).status == 403
    assert sent(app, user="kim", groups="crm-admins").post(form.action, form.fields).status == 403


# --- what the settings must be ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ({"a": "tiny"}, "too short"),
        ({"a": "same-token-0123456789abcdef", "b": "same-token-0123456789abcdef"}, "two names have one token"),
        ({"a": None}, "is not there"),
    ],
)
def test_tokens_that_cannot_work_are_refused_at_the_start(
    here: Office, tmp_path: Path, tokens: dict[str, str | None], problem: str
) -> None:
    """The message names the key and the fix, and no token."""
    listed = []
    for name, token in tokens.items():
        if token is not None:
            (tmp_path / name).write_text(token)
        listed.append({"name": name, "role": "viewer", "token": {"file": str(tmp_path / name)}})
    settings = WebConfig.model_validate({"sign_on": {"tokens": listed}})
    with pytest.raises(ConfigError, match=problem) as caught:
        opened(here, settings)
    assert not any(token in str(caught.value) for token in tokens.values() if token)


def test_a_form_that_is_no_form_is_refused(here: Office) -> None:
    """Too long, too many fields, or not text: an answer, and never a crash."""
    browser = here.browser()
    headers = {"Origin": HOST, "Content-Type": "application/x-www-form-urlencoded"}
    for body, status in ((b"x" * 70_000, 413), (b"&".join([b"a=1"] * 50), 403), (b"\xff\xfe=\xff", 403)):
        assert browser.client.post("/pairs/t/crm/pause", content=body, headers=headers).status_code == status


def test_what_a_form_leads_back_to_is_a_page_of_this_site(here: Office) -> None:
    """Nobody is sent elsewhere by signing on."""
    for back in ("https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/a\nb"):
        browser = Browser(here.app)
        answer = browser.client.post(
            "/sign-on", data={"token": TOKENS["ops"], "back": back}, headers={"Origin": HOST}, follow_redirects=False
        )
        assert answer.headers["location"] == "/"
