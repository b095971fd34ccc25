"""What the laws of the core are tried on, any value of any type on any side, and how often each is tried.

``SYNCD_CASES`` chooses: ``ci`` (the default) draws the same cases in each run; ``hunt`` draws fifty times as
many, others each time; ``mutants`` draws few and does not look for the smallest case that fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from syncd.core.merge import Flow, Half, OnConflict, Policy
from syncd.core.model import FieldType, Money, Side, Value

Test = TypeVar("Test", bound=Callable[..., None])

_PROFILES: Final = {
    "ci": settings(derandomize=True, database=None, deadline=None),
    "hunt": settings(deadline=None, print_blob=True),
    "mutants": settings(derandomize=True, database=None, deadline=None, phases=(Phase.explicit, Phase.generate)),
}
_FACTORS: Final = {"ci": 1.0, "hunt": 50.0, "mutants": 0.1}
_CHOSEN: Final = os.environ.get("SYNCD_CASES", "ci")

#: Test -> how many cases it draws in CI.
DRAWN: Final[dict[str, int]] = {}


def cases(count: int) -> Callable[[Test], Test]:
    """This law is tried on ``count`` cases in CI."""

    def mark(test: Test) -> Test:
        DRAWN[f"{test.__module__}.{test.__name__}"] = count
        wanted = max(25, int(count * _FACTORS[_CHOSEN]))
        slow = [HealthCheck.too_slow, HealthCheck.filter_too_much]
        return settings(_PROFILES[_CHOSEN], max_examples=wanted, suppress_health_check=slow)(test)

    return mark


EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
_SECOND: Final = datetime(2026, 5, 5, 5, 5, 5, tzinfo=UTC)

#: Few values of each type, so that they meet; among them such as are the same in two spellings.
POOLS: Final[Mapping[FieldType, tuple[Value, ...]]] = {
    FieldType.TEXT: ("Kv. Svalan", "Kv.  Svalan", "svalan", "b"),
    FieldType.PHONE: ("+46701234567", "070-123 45 67", "0701234568", "4"),
    FieldType.NUMBER: (Decimal(1), Decimal("1.0"), Decimal(-2)),
    FieldType.BOOLEAN: (True, False),
    FieldType.MONEY: (Money(Decimal(1), "SEK"), Money(Decimal("1.00"), "SEK"), Money(Decimal(1), "EUR")),
    FieldType.INSTANT: (_SECOND, _SECOND.replace(microsecond=5), _SECOND.replace(second=6)),
    FieldType.DATE: (date(2026, 1, 1), date(2026, 1, 2)),
    FieldType.ENUMERATION: ("open", "won", "lost"),
    FieldType.SET: (frozenset("x"), frozenset("y"), frozenset("xy"), frozenset("xyz")),
}

ABSENT: Final = object()
"""In place of a value: the side says nothing of the field."""

types = st.sampled_from(FieldType)
policies = st.builds(Policy, st.sampled_from(Flow), st.sampled_from(OnConflict))
moments = st.sampled_from([None, EARLY, LATE])
answers = st.sampled_from([None, None, Side.LEFT, Side.RIGHT])


def value_of(type_: FieldType) -> st.SearchStrategy[Value]:
    return st.sampled_from((None, *POOLS[type_]))


def told(found: Mapping[str, object]) -> dict[str, Value]:
    """Without what is absent."""
    return {name: value for name, value in found.items() if value is not ABSENT}  # type: ignore[misc]  # narrowed


def values_of(types_: Mapping[str, FieldType], *, is_whole: bool = False) -> st.SearchStrategy[dict[str, Value]]:
    """What one side says of these fields; of some nothing, unless ``is_whole``."""
    silence: tuple[object, ...] = () if is_whole else (ABSENT,)
    pools = {name: st.sampled_from((None, *POOLS[type_], *silence)) for name, type_ in types_.items()}
    return st.fixed_dictionaries(pools).map(told)


def halves_of(types_: Mapping[str, FieldType], *, is_whole: bool = False) -> st.SearchStrategy[Half]:
    """One side of a linked record in any state; with ``is_whole`` it tells and takes everything."""
    said = values_of(types_, is_whole=is_whole)
    if is_whole:
        return st.builds(Half, said, said, moments, st.just({}), st.just(frozenset(types_)))
    some = st.sets(st.sampled_from(sorted(types_))).map(frozenset) if types_ else st.just(frozenset())
    locks = st.dictionaries(st.sampled_from([*sorted(types_), "*"]), st.just("closed"), max_size=1)
    most = st.one_of(st.just(frozenset(types_)), some)
    return st.builds(Half, said, said, moments, locks, most, some)


_MIRROR_FLOW = {Flow.TO_CRM: Flow.TO_PROPSTREET, Flow.TO_PROPSTREET: Flow.TO_CRM}
_MIRROR_RULE = {OnConflict.PROPSTREET: OnConflict.CRM, OnConflict.CRM: OnConflict.PROPSTREET}


def mirrored(policy: Policy) -> Policy:
    """The same policy for sides that have changed places."""
    return Policy(_MIRROR_FLOW.get(policy.flow, policy.flow), _MIRROR_RULE.get(policy.conflict, policy.conflict))
