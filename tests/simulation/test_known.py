"""Histories that broke a promise once, made smaller; see ``docs/simulation.md`` for how they are found and read."""

from __future__ import annotations

from typing import Final

import pytest

from tests.simulation.histories import Case, keeping, play

#: What each of them brought to light.
KNOWN: Final[dict[str, Case]] = {
    "a merge gone on with its survivor, and a project back meanwhile, waited for ever": keeping(
        147, 200, [2, 26, 46, 54, 68, 100, 101, 104, 114, 116]
    ),
    "a dead letter outlived the link of the contact that it named": keeping(
        711, 200, [8, 13, 17, 32, 35, 46, 47, 48, 49, 52, 56, 57, 59, 72, 73, 80, 83]
    ),
    "a record read again between plan and write counted as unmoved": keeping(
        10_343, 200, [0, 1, 4, 13, 14, 15, 16, 17, 23, 27, 29, 35, 37, 39]
    ),
    "a prospect refused by a closed deal stayed a dead letter when that was opened": keeping(
        10_480, 200, [45, 46, 65, 66, 69, 72, 77, 86, 107, 139]
    ),
    "a tag that one write of a plan gave was forgotten by the other, and not given again after a merge": keeping(
        30_455,
        200,
        [
            0,
            2,
            3,
            20,
            24,
            36,
            38,
            40,
            41,
            54,
            56,
            78,
            80,
            84,
            88,
            94,
            110,
            111,
            117,
            118,
            120,
            129,
            130,
            131,
            135,
            136,
            137,
            162,
            163,
            164,
            168,
            169,
            170,
        ],
    ),
    "what an update replaced went untold with its record, merged away before the lost answer was looked up": keeping(
        40_207,
        200,
        [0, 3, 4, 5, 6, 7, 10, 11, 12, 16, 17, 22, 23, 24, 28, 30, 31, 34, 35, 39, 40, 41, 47, 48, 49, 53, 55],
    ),
    "an edit that was committed while a refused write waited was written over": Case(23_834, 200),
    "a record without a link that was merged away was met as if it were there": keeping(
        62_203,
        200,
        [
            3,
            4,
            12,
            15,
            17,
            18,
            21,
            22,
            24,
            26,
            30,
            33,
            35,
            37,
            49,
            50,
            54,
            56,
            60,
            61,
            62,
            63,
            64,
            65,
            66,
            67,
            68,
            69,
            70,
            71,
            75,
            76,
            77,
            81,
            82,
            83,
            87,
            88,
            89,
            90,
            91,
            92,
            126,
            127,
            128,
            132,
            133,
            134,
            135,
            136,
            137,
            138,
            139,
            140,
            141,
            142,
            143,
            198,
            199,
        ],
    ),
    "a prospect whose deal was hidden stayed aside when that was shown again": keeping(
        10_758, 200, [81, 82, 91, 131, 136, 138]
    ),
}


@pytest.mark.parametrize("case", KNOWN.values(), ids=KNOWN.keys())
def test_the_promises_hold_after_every_history_that_broke_one(case: Case) -> None:
    """Nothing that was repaired comes back."""
    assert play(case.seed, case.steps, case.left_out).broken == ()
