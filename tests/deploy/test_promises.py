"""docs/promises.md names checkers that exist, and its table counts what it names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
#: As the page sorts its checkers, by the folders that hold them.
SORTS: Final = {
    "laws": ("tests/core",),
    "histories": ("tests/simulation",),
    "engine": ("tests/engine", "tests/state"),
    "deaths": ("tests/kills",),
    "vendors": ("tests/connectors", "tests/faults", "syncd/testing"),
    "service": ("tests/service", "tests/web"),
    "people": ("tests/stories", "tests/cli", "tests/privacy", "tests/benchmarks"),
}
CHECKER: Final = re.compile(r"`([\w/]+\.py)::(\w+)`")
SECTION: Final = re.compile(r"^## (\d)\. (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def test_every_checker_that_is_named_exists() -> None:
    """A file that went, or a test that was renamed, is noticed here and not by a reader."""
    found = CHECKER.findall(PAGE)
    assert len(found) > 50
    for file, name in found:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{file} has no {name}"


def test_each_promise_has_checkers_of_several_kinds_and_says_what_they_leave_open() -> None:
    """One promise after the other, each once, each with what no test of it covers."""
    assert [number for number, _, _ in SECTION.findall(PAGE)] == [str(number) for number in range(1, 10)]
    for _, title, text in SECTION.findall(PAGE):
        named = CHECKER.findall(text)
        assert len(named) == len(set(named)), title
        assert sum(count > 0 for count in _counts(text)) >= 3, title
        assert len(re.findall(r"^Not covered: ", text, re.MULTILINE)) == 1, title


def test_the_table_counts_what_is_named() -> None:
    """What the eye takes for the whole is made of the parts below it."""
    head = ["| promise | " + " | ".join(SORTS) + " |", "|---" * (len(SORTS) + 1) + "|"]
    rows = [
        f"| {number}. {title} | {' | '.join(str(count or '') for count in _counts(text))} |".replace("|  |", "| |")
        for number, title, text in SECTION.findall(PAGE)
    ]
    table = [line for line in PAGE.splitlines() if line.startswith("|")]
    expected = [re.sub(r" +", " ", line) for line in head + rows]
    assert [re.sub(r" +", " ", line) for line in table] == expected, "\n".join(expected)


def _counts(text: str) -> list[int]:
    files = [file for file, _ in CHECKER.findall(text)]
    counts = [sum(file.startswith(folders) for file in files) for folders in SORTS.values()]
    assert sum(counts) == len(files), "a checker of no sort"
    return counts
