"""Mutation testing of the core: ``make mutants``. Prints one line; ends with 1 below the score that is asked for.

mutmut changes one thing in one function of ``syncd/core`` at a time and runs ``tests/core`` until a test fails.
What survives, and why it may, is in ``docs/mutants.md``; ``.venv/bin/mutmut show NAME`` prints one of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

LEAST = 95.0
MUTMUT = str(Path(sys.executable).with_name("mutmut"))


def run() -> int:
    shutil.rmtree("mutants", ignore_errors=True)
    environment = {**os.environ, "SYNCD_CASES": "mutants"}
    children = ["--max-children", "1"]
    told = subprocess.run(  # noqa: S603  # our own tool, our own words
        [MUTMUT, "run", *children, *sys.argv[1:]], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    subprocess.run([MUTMUT, "export-cicd-stats"], stdout=subprocess.DEVNULL, check=True)  # noqa: S603  # as above
    counts = json.loads(Path("mutants/mutmut-cicd-stats.json").read_text())
    killed = counts["killed"] + counts["timeout"]
    # A mutant that no test reaches, or that was not tried, has survived.
    total = counts["total"]
    if not total or not killed:
        print(told.stdout[-2000:], file=sys.stderr)
        return 1
    score = 100 * killed / total
    print(f"mutants {total}, killed {killed}, survived {total - killed}, score {score:.1f} %")
    return 0 if score >= LEAST else 1


if __name__ == "__main__":
    sys.exit(run())
