"""The tenants' files as they were last good, read again when one of them changed.

A broken file leaves its last good version in force and is told once, and so is its repair.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TypeAlias

import structlog

from syncd.config import Configuration, PairConfig, Problem, TenantConfig, load
from syncd.errors import ConfigError

_Touched: TypeAlias = tuple[tuple[str, int, int, int], ...]


class Tenants:
    """One folder of tenants' files; safe to ask from several threads."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._log = structlog.get_logger()
        self._lock = threading.Lock()
        self._touched: _Touched | None = None
        self._last: Configuration | None = None
        self._reported: frozenset[str] = frozenset()

    def now(self) -> Configuration:
        """The files as they are, a broken one as it was last good. Raises ConfigError if none was ever usable."""
        with self._lock:
            touched = _touched(self.folder)
            if self._last is None or touched != self._touched:
                self._last = self._read()
                self._touched = touched
            return self._last

    def pair(self, pair_id: str) -> tuple[TenantConfig, PairConfig] | None:
        """A pair that is to be synced, by its id; None if the files name it no more, or switch it off."""
        found = ((t, p) for t in self.now().tenants if t.enabled for p in t.pairs)
        return next(((t, p) for t, p in found if f"{t.tenant}/{p.name}" == pair_id), None)

    def _read(self) -> Configuration:
        try:
            found = load(self.folder)
        except ConfigError as exc:
            if self._last is None:
                raise
            self._tell([str(exc)])
            return Configuration(self._last.tenants, (Problem(self.folder, "", str(exc), "Put the files back."),))
        found = found.require() if self._last is None else found.after(self._last)
        self._tell([str(problem) for problem in found.problems])
        return found

    def _tell(self, problems: list[str]) -> None:
        fresh = frozenset(problems)
        for problem in sorted(fresh - self._reported):
            self._log.error("config.refused", problem=problem)
        if self._reported and not fresh:
            self._log.info("config.repaired")
        self._reported = fresh


def _touched(folder: Path) -> _Touched:
    """What tells that a file was changed, added or removed, at the cost of a listing. Links are followed."""
    found: list[tuple[str, int, int, int]] = []
    try:
        for file in sorted(folder.iterdir()):
            told = file.stat()
            found.append((file.name, told.st_ino, told.st_size, told.st_mtime_ns))
    except OSError:
        return ()  # it is being replaced, or gone: what is wrong is said by whoever reads it
    return tuple(found)
