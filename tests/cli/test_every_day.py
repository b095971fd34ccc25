"""The pages that show commands with their output: typed again, in the page's order, on the demo's data.

What cannot be the same twice is told apart by ``CHANGES`` and by nothing else: ids of runs, plans
and calls, numbers of conflicts and reviews, times, and how many calls a run made, which depends on
how soon it came after the last one. An id may be another one, but throughout: what the page calls
by one id is one thing here as well, and the page's later commands are typed with the ids of this
play. Several spaces count as two. ``...`` on a line of its own stands for lines that are left out.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import create_engine

from syncd import demo
from syncd.config import load
from syncd.wiring import Service
from tests.cli.test_cli import Desk, desk, folder, syncd

__all__ = ["desk", "folder"]

pytestmark = pytest.mark.long

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "every-day.md"
#: The demo's own portfolio, and of its tenants those that the page names.
SEED: Final = 7
TENANTS: Final = ("nordhaus", "granit")
CHANGES: Final = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| UTC|\+00:00))"
    r"|^  calls     (?P<calls>\d+ to crm, \d+ to propstreet)$"
    r"|\b(?P<id>[0-9a-f]{32}|[0-9a-f]{8})\b"
    r"|\b(?P<number>[cr]\d+)\b"
)
LEFT_OUT: Final = "..."


@dataclass(frozen=True)
class Shown:
    """One command of a page, what it exits with and what it says."""

    command: str
    code: int
    lines: tuple[str, ...]


def blocks(text: str) -> list[str]:
    """What a page shows of a terminal."""
    return re.findall(r"^```console\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def shown(text: str) -> Iterator[Shown]:
    for block in blocks(text):
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            first, *lines = each.rstrip("\n").split("\n")
            command, _, code = first.partition("   # exits ")
            yield Shown(command, int(code or 0), tuple(lines))


@dataclass
class Names:
    """What a page calls by an id or number, and what that is called here."""

    here: dict[str, str] = field(default_factory=dict)

    def told(self, command: str) -> str:
        """A command of the page with the ids of this play."""
        return CHANGES.sub(lambda found: self._known(found[0]), command)

    def _known(self, name: str) -> str:
        for page, here in self.here.items():
            if page.startswith(name):
                return here[: len(name)] if len(name) < len(page) else here
        return name

    def same(self, page: str, here: str) -> bool:
        """Whether two lines say the same; remembers what each calls the other's ids."""
        if _bare(page) != _bare(here):
            return False
        for one, other in zip(CHANGES.finditer(page), CHANGES.finditer(here), strict=True):
            if one.lastgroup in ("id", "number") and self.here.setdefault(one[0], other[0]) != other[0]:
                return False
        return True

    def agree(self, page: tuple[str, ...], here: tuple[str, ...]) -> bool:
        if LEFT_OUT not in page:
            return len(page) == len(here) and all(map(self.same, page, here))
        at = page.index(LEFT_OUT)
        head, tail = page[:at], page[at + 1 :]
        is_longer = len(here) > len(head) + len(tail)
        return is_longer and self.agree(head, here[:at]) and self.agree(tail, here[len(here) - len(tail) :])


def _bare(line: str) -> str:
    return re.sub(r" {2,}", "  ", CHANGES.sub(lambda found: f"<{found.lastgroup}>", line)).rstrip()


def typed(command: str) -> tuple[int, tuple[str, ...]]:
    words = shlex.split(command)
    if words[0] == "cat":
        return 0, tuple(Path(words[1]).read_text(encoding="utf-8").splitlines())
    assert words[0] == "syncd", command
    said = syncd(*words[1:])
    return said.code, tuple((said.out + said.err).splitlines())


def test_the_page_shows_what_comes_out(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of docs/every-day.md, one after the other, on what ``syncd demo --still`` leaves."""
    monkeypatch.chdir(tmp_path)
    world = demo.build(desk.service, desk.folder, SEED, TENANTS)
    desk.stack.callback(world.close)
    pairs = [(tenant, pair) for tenant in load(desk.folder).tenants for pair in tenant.pairs]
    assert demo.converge(desk.service, pairs, None)["in_step"]
    demo.people(desk.service, world)
    told: list[str] = []
    demo.say_how(desk.service, world, told.append)
    for name in ("SYNCD_DATABASE_URL", "SYNCD_CONFIG"):
        assert f"  export {name}={shlex.quote(os.environ[name])}" in told
    names = Names()
    for each in shown(PAGE.read_text(encoding="utf-8")):
        code, lines = typed(names.told(each.command))
        text = "\n".join(lines)
        assert code == each.code, f"$ {each.command}\nexits {code}:\n{text}"
        assert names.agree(each.lines, lines), f"$ {each.command}\nsays now:\n{text}"


def test_a_demo_that_stands_still_does_so_until_it_is_interrupted() -> None:
    """It waits without a call to anybody, and goes without a traceback."""
    told: list[str] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    demo.wait(Service(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"), sleep=sleep), told.append)
    assert (len(slept), len(told)) == (3, 2)
    assert syncd("demo", "--once", "--still").code == 2


def test_every_tool_of_the_day_is_on_the_page() -> None:
    """Whoever looks for a command of people's daily work finds it with its output."""
    commands = {shlex.split(each.command)[1] for each in shown(PAGE.read_text(encoding="utf-8"))}
    assert commands >= {
        "apart", "apply", "audit", "conflicts", "discard", "erase", "explain", "pause", "prune", "resolve", "resume",
        "reviews", "run", "runs", "show", "status", "undo",
    }  # fmt: skip


def test_the_first_page_shows_what_the_page_shows() -> None:
    """README.md takes its outputs from docs/every-day.md, where they are proved, and may leave out lines."""
    proved = list(shown(PAGE.read_text(encoding="utf-8")))
    found = list(shown((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(found) > 1
    for each in found:
        same = [whole for whole in proved if (whole.command, whole.code) == (each.command, each.code)]
        assert any(Names().agree(each.lines, whole.lines) for whole in same), each.command


def test_what_changed_would_be_noticed() -> None:
    """Another word, another number of lines, or one id for two things is another output."""
    names = Names()
    one, other = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    assert names.agree((f"run {one}   2026-01-01T00:00:00Z", "..."), (f"run {other}  2026-02-02T10:00:00Z", "more"))
    assert names.told(f"undo {one[:8]}") == f"undo {other[:8]}"
    assert not names.agree((f"run {one}",), (f"run {one}",))
    assert not names.agree(("4 in conflict",), ("5 in conflict",))
    assert not names.agree(("one", "..."), ("one",))
    assert not names.agree(("one",), ("one", "two"))
