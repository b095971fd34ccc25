"""The command line: parse, call, print. Each command's work is imported only when it is called."""

from __future__ import annotations

import sys

from syncd.cli import privacy, repair, webhooks, why  # noqa: F401 - their commands join the others by being defined
from syncd.cli.commands import cli


def main() -> None:
    """Run ``syncd``; exits 0 done, 1 failed, 2 usage or config, 3 something waits for a person, 4 halted."""
    from syncd.errors import AnswerError, ConfigError, HaltedError, NotFoundError, SyncdError

    try:
        cli(prog_name="syncd", standalone_mode=True)
    except (AnswerError, ConfigError, NotFoundError) as exc:
        print(f"syncd: {exc}", file=sys.stderr)  # noqa: T201 - the message is the output
        raise SystemExit(2) from None
    except HaltedError as exc:
        print(f"syncd: halted: {exc}", file=sys.stderr)  # noqa: T201 - the message is the output
        raise SystemExit(4) from None
    except SyncdError as exc:
        print(f"syncd: {exc}", file=sys.stderr)  # noqa: T201 - the message is the output
        raise SystemExit(1) from None
