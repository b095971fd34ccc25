"""What is news of a record: what it says, not who said it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from syncd.core.mapping import freeze
from syncd.core.model import FIELDS, LinkState, Record, Side
from syncd.state.news import keys_held, news, seen_of, sighting_row

AT = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
KNOWN = Record("contact", "4711", {"first_name": "Anna"}, version="v1", modified_at=AT, modified_by="7")
BY_ANOTHER = replace(KNOWN, version="v2", modified_at=AT + timedelta(minutes=1), modified_by="8")


def test_another_user_beside_the_same_values_is_no_news_of_a_linked_record() -> None:
    """What the link knows is brought up to date; nothing comes into the inbox."""
    link = {
        **seen_of(Side.RIGHT, KNOWN),
        "right_base": freeze(KNOWN.values),
        "right_keys": keys_held(KNOWN, "t/crm"),
        "state": LinkState.IN_STEP,
    }
    told = news(Side.RIGHT, BY_ANOTHER, link, None, FIELDS["contact"], is_exact=False, is_current=False, at=AT)
    assert told == "refresh"


def test_another_user_beside_the_same_values_wakes_no_record_that_waits() -> None:
    """Why it stands alone still holds; who was there last is kept for those who ask."""
    before = sighting_row("t/crm", Side.RIGHT, KNOWN, False, None, AT) | {"state": "excluded", "reason": "a filter"}
    after = sighting_row("t/crm", Side.RIGHT, BY_ANOTHER, False, before, AT)
    assert (after["state"], after["reason"]) == ("excluded", "a filter")
    facts = after["facts"]
    assert isinstance(facts, dict)
    assert facts["modified_by"] == "8"
