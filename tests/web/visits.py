"""A page to visit: the application in process, a real database, two systems in memory, and a browser that presses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import httpx
from sqlalchemy import Engine, update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from syncd.config import Configuration, WebConfig, load
from syncd.core.merge import OnConflict, Policy
from syncd.core.plan import KindRules, OnDelete
from syncd.state import schema as s
from syncd.web import pages
from syncd.web.site import Site
from syncd.wiring import Service
from tests.engine.world import World, rules

TOKENS = {"ops": "operators-token-0123456789abcdef", "desk": "viewers-token-0123456789abcdef01"}
HOST = "http://syncd.test"
TENANT = """
tenant: t
propstreet: {base_url: "http://127.0.0.1:1", auth: {token: {env: PAGE_OPS}}}
pairs:
  - {name: crm, connector: memory, namespace: crm, base_url: "http://127.0.0.1:1", auth: {token: {env: PAGE_OPS}}}
"""
HOLD = KindRules(
    default=Policy(conflict=OnConflict.HOLD), deletes_to_left=OnDelete.ARCHIVE, deletes_to_right=OnDelete.ARCHIVE
)


@dataclass
class Form:
    """A form as it stands on a page: where it goes, what it carries, and what its button says."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)
    button: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: Form | None = None
        self._in_button = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag == "form":
            self._open = Form(held.get("action") or "", held.get("method") or "get")
            self.forms.append(self._open)
        if tag == "input" and self._open is not None and held.get("name"):
            self._open.fields[str(held["name"])] = held.get("value") or ""
        self._in_button = tag == "button" or (self._in_button and tag != "button")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._open = None
        if tag == "button":
            self._in_button = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_button and self._open is not None:
            self._open.button += data.strip()


@dataclass
class Shown:
    """What an address answered."""

    answer: httpx.Response

    def __post_init__(self) -> None:
        reader = _Reader()
        reader.feed(self.answer.text)
        self.forms, self.tags = reader.forms, reader.tags
        self.text = " ".join(" ".join(reader.words).split())

    @property
    def status(self) -> int:
        return self.answer.status_code

    def buttons(self) -> list[str]:
        return [form.button for form in self.forms]

    def links(self) -> list[str]:
        return [str(held["href"]) for tag, held in self.tags if tag == "a" and held.get("href")]

    def link(self, beginning: str) -> str:
        (found,) = dict.fromkeys(each for each in self.links() if each.startswith(beginning))
        return found


class Browser:
    """Somebody who follows links and presses buttons, as a browser does it: with its cookies and an Origin."""

    def __init__(self, app: Starlette, *, peer: str = "192.0.2.7", headers: Mapping[str, str] | None = None):
        self.client = TestClient(app, base_url=HOST, client=(peer, 50_000), headers=dict(headers or {}))

    def get(self, path: str, **headers: str) -> Shown:
        return Shown(self.client.get(path, headers=headers))

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Shown:
        return Shown(self.client.post(path, data=dict(fields), headers={"Origin": HOST, **headers}))

    def sign_on(self, token: str) -> Shown:
        return self.post("/sign-on", {"token": token, "back": "/"})

    def press(self, page: Shown, label: str, nth: int = 0, **fields: str) -> Shown:
        """Press the nth button that is called so, with some fields filled in."""
        form = [each for each in page.forms if each.button == label][nth]
        assert form.method == "post"
        return self.post(form.action, {**form.fields, **fields})


@dataclass
class Office:
    """The page of one tenant ``t`` with the pair ``t/crm``; orders are carried out when a test says so."""

    world: World
    configuration: Configuration
    settings: WebConfig
    woken: list[str] = field(default_factory=list)
    orders: list[tuple[str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.world
        self.service = Service(world.engine, now=world.clock, sleep=world.clock.sleep, new_id=world.new_id)
        self.site = Site(self.service, lambda: self.configuration, self.woken.append, self.settings, order=self.order)
        self.app = Starlette(routes=pages.routes(self.site))

    def order(
        self, pair_id: str, reason: Literal["apply", "undo"], *, plan_id: str | None = None, run_id: str | None = None
    ) -> None:
        self.orders.append((pair_id, reason, str(plan_id or run_id)))

    def work(self) -> None:
        """What a worker does: the orders, then the runs that were asked for."""
        while self.orders:
            _, reason, id_ = self.orders.pop()
            self.world.clock.sleep(30)
            if reason == "apply":
                self.world.apply(id_)
            else:
                self.world.undo(id_, is_dry=True)
                with self.world.engine.begin() as tx:  # as the daemon writes it
                    tx.execute(update(s.run).where(s.run.c.reason == "undo").values(message=f"undo of run {id_}"))
        if self.woken:
            self.woken.clear()
            self.world.clock.sleep(30)
            self.world.run()

    def browser(self, name: str | None = "ops") -> Browser:
        """Somebody at the page, signed on by this token."""
        browser = Browser(self.app)
        if name is not None:
            assert browser.sign_on(TOKENS[name]).status == 200
        return browser


@contextmanager
def office(engine: Engine, folder: Path, **world: Any) -> Iterator[Office]:
    """An office around an empty world in which every conflict of a contact waits for a person."""
    (folder / "t.yaml").write_text(TENANT)
    kinds = rules(contact=HOLD)
    with with_tokens(folder) as settings:
        yield Office(World(engine, kinds=kinds, **world), load(folder).require(is_strict=True), settings)


@contextmanager
def with_tokens(folder: Path, **more: Any) -> Iterator[WebConfig]:
    """Settings whose tokens lie in files."""
    tokens = []
    for name, role in (("ops", "operator"), ("desk", "viewer")):
        file = folder / f"token-{name}"
        file.write_text(TOKENS[name] + "\n")
        tokens.append({"name": name, "role": role, "token": {"file": str(file)}})
    yield WebConfig.model_validate({"sign_on": {"tokens": tokens}, **more})
