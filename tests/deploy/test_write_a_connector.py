"""The connector that docs/write-a-connector.md builds, taken from the page and put through the conformance suite."""

from __future__ import annotations

import re
import sys
import tempfile
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "write-a-connector.md"
FILES = ("connector.py", "emulator.py", "test_conformance.py")

pytest.register_assert_rewrite("syncd.testing.conformance")


def _files() -> dict[str, str]:
    """The files of the page: each is named in a line of its own above its block."""
    found = re.findall(r"^`minicrm/([a-z_]+\.py)`:\n\n```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return dict(found)


def _imported(name: str) -> ModuleType:
    """A module of the page's package, which stands in a folder only for as long as it takes to read it."""
    with tempfile.TemporaryDirectory(prefix="syncd-page-") as folder:
        package = Path(folder) / "minicrm"
        package.mkdir()
        for file, text in _files().items():
            (package / file).write_text(text, encoding="utf-8")
        sys.path.insert(0, folder)
        try:
            invalidate_caches()
            return import_module(f"minicrm.{name}")
        finally:
            sys.path.remove(folder)


TestMiniCrm = _imported("test_conformance").TestMiniCrm


def test_the_page_shows_all_of_its_files() -> None:
    assert tuple(_files()) == FILES
