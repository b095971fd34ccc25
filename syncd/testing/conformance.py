"""The tests that every connector passes, whatever it speaks to.

Subclass ``Conformance`` under a name that starts with ``Test`` and give it ``build``: a
``Harness`` of an empty system. Each test is one law of ``syncd.connector``, said in its
docstring, and is tried kind by kind on a fresh system. What a vendor does in its own way (a
field that it never leaves empty) the harness tells; a law that has nothing to try passes.
Nothing here imports pytest; ``pytest.register_assert_rewrite`` makes its failures readable.
"""
# ruff: noqa: S101

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import count
from typing import Final, Literal, Protocol, TypeVar

from syncd.connector import Connector, FieldCapability, KindCapability, Outcome, Page, Parent, Pull, Tally, Verdict
from syncd.connector import Write as _Write
from syncd.core.mapping import UnfitValueError, same
from syncd.core.model import FIELDS, KINDS, RELATIONS, Address, FieldType, Money, Record, Value, Values, Verb
from syncd.core.watermark import advance
from syncd.errors import HaltedError, RateLimitedError, RejectedError, TransientError, UnknownOutcomeError

T = TypeVar("T")
FaultKind = Literal["before", "after", "429", "500"]
