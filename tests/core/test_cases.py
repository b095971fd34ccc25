"""How often the laws of the core are tried."""

from __future__ import annotations

from importlib import import_module

from tests.core.cases import DRAWN

LAWS = ("audit", "erased", "fixed_point", "guard", "match", "merge", "plan", "undo", "values", "watermark", "why")


def test_the_laws_of_the_core_are_tried_on_ten_thousand_cases_and_more() -> None:
    """In each run of CI, the cells of the truth table not counted."""
    for name in LAWS:
        import_module(f"tests.core.test_{name}")
    assert {name.split("test_")[1].split(".")[0] for name in DRAWN} == set(LAWS)
    assert sum(DRAWN.values()) >= 10_000
