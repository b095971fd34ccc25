"""Carry out a plan: journal a batch, send it, settle each item, commit all outcomes at once.

A system without conditional writes is read again, batchwise, just before it is written. A
refused batch is bisected down to the record that poisons it, which becomes a dead letter while
the rest goes on. A lost answer is looked up, never sent again blindly. Nothing is taken as done
that the system did not confirm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from syncd.connector import Outcome, Rider, Verdict, Write
from syncd.core.base import UNMOVED, confirmed, founded, not_stored
from syncd.core.mapping import UnfitValueError, freeze, is_cut, is_erased, same
from syncd.core.merge import BY_PERSON, Chosen
from syncd.core.model import KINDS, RELATIONS, Address, Json, LinkState, Record, Side, Value, Verb
from syncd.core.plan import Operation
from syncd.core.undo import REFS, held_because, is_own_hold, packed
from syncd.core.why import Said, keep, settled_by
from syncd.engine.context import Context
from syncd.engine.draft import proof
from syncd.engine.pull import read_again
from syncd.errors import RejectedError, UnknownOutcomeError
from syncd.state.journal import Entry
from syncd.state.store import LinkRow, NewLink


def apply_plan(ctx: Context, plan_id: str, *, is_backfill: bool = False) -> None:
    """Carry out what is still open of a plan: parents before children, deletes last and in reverse.

    Except in a backfill, which may create many and has just listed all, a look precedes each create: what was
    brought back a moment ago carries an id that the upsert would write over. Raises LeaseLostError, and what
    stops a whole connection.
    """
    writes: tuple[Verb, ...] = ("create", "mark", "update")
    for kind in ctx.kinds:
        for verb in writes:
            for side in (Side.RIGHT, Side.LEFT):
                _apply_sort(ctx, plan_id, kind, verb, side, is_backfill=is_backfill)
    for kind in reversed(ctx.kinds):
        for side in (Side.RIGHT, Side.LEFT):
            _apply_sort(ctx, plan_id, kind, "delete", side)


def _apply_sort(ctx: Context, plan_id: str, kind: str, verb: Verb, side: Side, *, is_backfill: bool = False) -> None:
    size = ctx.systems[side].kind(kind).batch.get(verb, 1)
    while entries := ctx.journal.take(plan_id, kind, verb, side, size):
        _Batch(ctx, kind, verb, side, entries, plan_id).apply(is_backfill=is_backfill)
        ctx.progress("applied", kind, len(entries))


def recover(ctx: Context, plan_id: str | None = None) -> None:
    """Find out what became of writes whose run did not live to see the answer, before anything else is written.

    Plans that such a run left behind are discarded, but not ``plan_id``, which is about to be carried out.
    """
    ctx.journal.abandon(ctx.now(), but=plan_id)
    groups: dict[tuple[str, Verb, Side], list[Entry]] = {}
    for entry in ctx.journal.lost():
        op = entry.operation
        groups.setdefault((op.kind, op.verb, op.side), []).append(entry)
    for (kind, verb, side), entries in sorted(groups.items(), key=lambda item: KINDS.index(item[0][0])):
        if kind not in ctx.kinds:
            continue
        size = ctx.systems[side].kind(kind).read_batch
        for start in range(0, len(entries), size):
            batch = _Batch(ctx, kind, verb, side, entries[start : start + size])
            batch.find_out()
            ctx.report.lost += len(batch.entries)


#: Why an operation of a plan was not carried out.
MOVED = "moved since the plan was made"
#: Why a link was made of a record that our own create left there, and how its operation ended.
FOUND = "found after its answer was lost"
#: What a repeated write may meet although its first sending had its effect.
_DOUBTFUL = (Verdict.STALE, Verdict.MISSING, Verdict.RETRY)


class _Batch:
    """Operations of one kind, verb and side on their way."""

    def __init__(
        self, ctx: Context, kind: str, verb: Verb, side: Side, entries: Sequence[Entry], plan_id: str | None = None
    ):
        self.ctx, self.kind, self.verb, self.side = ctx, kind, verb, side
        self.plan_id = plan_id
        self.system = ctx.systems[side]
        self.capability = self.system.kind(kind)
        self.entries = list(entries)
        self.sources: Mapping[str, Record] = {}
        self.links: dict[str, LinkRow] = {}
        self.targets: dict[str, Record] = {}
        self._ends: list[tuple[Entry, str, str]] = []
        self._made: list[NewLink] = []
        self._changes: list[Mapping[str, object]] = []
        self._taken: set[str] = set()

    def apply(self, *, is_backfill: bool) -> None:
        self._look_up()
        self._drop_outdated()
        for entry in [each for each in self.entries if self._is_held(each.operation)]:
            self._drop(entry, "held still since the plan was made")
        self.entries = self._look_and_send(is_fresh=is_backfill)
        while self.entries:
            self.entries = self._look_and_send(is_fresh=False, is_delayed=True)

    def _look_and_send(self, *, is_fresh: bool, is_delayed: bool = False) -> list[Entry]:
        """Send what still may be sent; answers with what was refused for a while, and needs another look by now.

        ``is_fresh``: everything was listed a moment ago. ``is_delayed``: time has passed since this was planned.
        """
        if self.verb in ("update", "delete") and not self.capability.is_conditional:
            self._read_before_write()
        if self.verb == "create":
            self._read_before_replacing()
        writes = self._writes()
        is_sought = is_delayed or (self.capability.can_mark and not is_fresh)
        if self.verb == "create" and self.side is Side.RIGHT and is_sought:
            writes = self._without_standing(writes)
        if not writes:
            return []
        with self.ctx.store.transaction():
            self.ctx.journal.intend([entry for entry, _ in writes], self.ctx.now())
        outcomes = self._send([write for _, write in writes])
        delayed = {key for key, each in outcomes.items() if each.verdict is Verdict.DELAYED}
        self._count([(entry, write) for entry, write in writes if entry.key not in delayed])
        self._settle({key: each for key, each in outcomes.items() if key not in delayed})
        return [entry for entry, _ in writes if entry.key in delayed]

    def find_out(self) -> None:
        """Settle entries whose answer was lost, from what stands there now."""
        self._look_up()
        self._settle({entry.key: Outcome(entry.key, Verdict.UNKNOWN) for entry in self.entries})

    # --- before -----------------------------------------------------------------------

    def _look_up(self) -> None:
        """Read from the store what the entries speak of; drop those whose ground is gone."""
        store = self.ctx.store
        source_ids = [entry.operation.source for entry in self.entries if entry.operation.source]
        self.sources = store.sighted(self.side.other, self.kind, source_ids)
        target_ids = [entry.operation.target.id for entry in self.entries if entry.operation.target]
        self.targets = store.sighted(self.side, self.kind, target_ids)
        self._look_up_links()
        for entry in list(self.entries):
            op = entry.operation
            if op.verb == "create" and op.source is not None and op.source not in self.sources:
                self._drop(entry, "its source is gone")
            elif op.target is not None and op.target.id not in self.targets:
                self._drop(entry, "its target is gone")
            elif op.verb in ("update", "mark") and op.target is not None and op.target.id not in self.links:
                self._drop(entry, "its link is gone")

    def _drop_outdated(self) -> None:
        """What was read again since the plan was made, for another write's sake, may tell of an edit: plan anew."""
        for entry in list(self.entries):
            if entry.precondition is None or entry.operation.target is None:
                continue
            target = self.targets[entry.operation.target.id]
            # What was erased here since can be told by a system only, which is asked before it is written.
            if entry.precondition != proof(self.ctx, target) and not is_erased(target.values):
                self.ctx.report.stale += 1
                self._drop(entry, MOVED)

    def _is_held(self, op: Operation) -> bool:
        target = self.targets.get(op.target.id) if op.target is not None else None
        there = (self.side, target.id, target.refs) if target is not None else None
        here = (self.side.other, op.source, op.refs)
        reasons = [
            reason
            for side, id_, refs in filter(None, (here, there))
            for reason in self.ctx.hold_reasons(side, self.kind, id_, refs)
        ]
        # What one undo holds still, another one may bring back.
        return any(not (op.undoes and is_own_hold(reason)) for reason in reasons)

    def _look_up_links(self) -> None:
        target_ids = [entry.operation.target.id for entry in self.entries if entry.operation.target]
        rows = self.ctx.store.linked(self.kind, self.side, target_ids) if target_ids else []
        self.links = {row.side(self.side).record.id: row for row in rows}

    def _read_before_write(self) -> None:
        """The second-best to a conditional write: whoever moved since the plan was made is left to the next round."""
        addresses = [self._address(entry) for entry in self.entries]
        if not addresses:
            return
        found: dict[str, Record] = {}
        size = self.capability.read_batch
        self.system.courier.make_room(2)
        for start in range(0, len(addresses), size):
            found |= self.system.connector.read(self.kind, addresses[start : start + size])
        moved: list[Record] = []
        for entry in list(self.entries):
            fresh = found.get(self._address(entry).id)
            if fresh is None:
                continue
            if fresh.is_deleted or fresh.id != self._address(entry).id or self._has_moved(entry, fresh):
                moved.append(fresh)
                self.ctx.report.stale += 1
                self._drop(entry, MOVED)
            else:
                known = self.targets[fresh.id]
                self.targets[fresh.id] = replace(known, version=fresh.version, opaque=fresh.opaque,
                                                 modified_at=fresh.modified_at, locked=fresh.locked)  # fmt: skip
        self.ctx.store.intake(self.side, self.kind, moved, self.ctx.now(), is_exact=False, is_current=True)

    def _read_before_replacing(self) -> None:
        """A lost counterpart that was brought back since the plan was made is not doubled, nor written over."""
        sources = [entry.operation.source for entry in self.entries if entry.operation.source is not None]
        lost = {
            row.side(self.side.other).record.id: row.side(self.side).address
            for row in self.ctx.store.linked(self.kind, self.side.other, sources)
        }
        read_again(self.ctx, self.system, self.side, self.kind, list(lost.values()))
        back = self.ctx.store.sighted(self.side, self.kind, [address.id for address in lost.values()])
        for entry in list(self.entries):
            address = lost.get(entry.operation.source or "")
            if address is not None and address.id in back and not back[address.id].is_deleted:
                self.ctx.report.stale += 1
                self._drop(entry, "its counterpart is back")

    def _without_standing(self, writes: list[tuple[Entry, Write]]) -> list[tuple[Entry, Write]]:
        """The creates of which no record carries the id yet; each other one gets the record that does."""
        sought = [write for _, write in writes if write.counterpart is not None]
        found = self.system.connector.find(sought) if sought else {}
        if found:
            self._settle({key: Outcome(key, Verdict.EXISTS, record) for key, record in found.items()})
        return [(entry, write) for entry, write in writes if entry.key not in found]

    def _has_moved(self, entry: Entry, fresh: Record) -> bool:
        """Compare what a record says now with what it was planned against; what it cannot tell here does not count."""
        if entry.precondition == proof(self.ctx, fresh):
            return False
        planned = self.targets[fresh.id]
        types = self.ctx.fields(self.kind).types
        return dict(planned.refs) != dict(fresh.refs) or any(
            not same(types[name], value, planned.values.get(name))
            for name, value in fresh.values.items()
            if name in types and name in planned.values
        )

    def _writes(self) -> list[tuple[Entry, Write]]:
        refs = self._own_refs(self.entries)
        riders = self._riders()
        carrier_kind = self.capability.rides_on if self.verb == "create" else None
        carriers: Mapping[str, Record] = {}
        if carrier_kind is not None:
            carriers = self.ctx.store.sighted(self.side, carrier_kind, refs.get(carrier_kind, {}).values())
        found: list[tuple[Entry, Write]] = []
        for entry in list(self.entries):
            op = entry.operation
            own = _own_ids(op, refs)
            if not all(own.values()):
                self._drop(entry, "a record it refers to was not created")
                continue
            target = self.targets.get(op.target.id) if op.target is not None else None
            carrier = carriers.get(own.get(carrier_kind or "", ""))
            write = replace(self._write(entry, own, target), carrier=carrier, riders=riders.get(op.source or "", ()))
            found.append((entry, write))
        return found

    def _own_refs(self, entries: Iterable[Entry]) -> dict[str, dict[str, str]]:
        wanted: dict[str, set[str]] = {}
        for entry in entries:
            if entry.operation.source is not None:
                for kind, ref in entry.operation.refs.items():
                    wanted.setdefault(kind, set()).add(ref)
        return {kind: self.ctx.store.counterparts(kind, self.side.other, ids) for kind, ids in wanted.items()}

    def _riders(self) -> dict[str, tuple[Rider, ...]]:
        """By source, the relations that this plan creates right after these records, and that ride on them."""
        if self.verb != "create" or self.plan_id is None:
            return {}
        found: dict[str, tuple[Rider, ...]] = {}
        sources = [str(entry.operation.source) for entry in self.entries]
        for kind in self.ctx.kinds:
            if self.system.kind(kind).rides_on != self.kind:
                continue
            entries = self.ctx.journal.to_follow(self.plan_id, kind, self.side, sources)
            refs = self._own_refs(entries)
            for entry in entries:
                op = entry.operation
                own = {of: refs[of][ref] for of, ref in op.refs.items() if of != self.kind and ref in refs[of]}
                if len(own) < len(op.refs) - 1:
                    continue  # its other end was not made, so that nothing will follow
                values = {name: step.value for name, step in op.steps.items()}
                found[op.refs[self.kind]] = (*found.get(op.refs[self.kind], ()), Rider(kind, values, own))
        return found

    def _write(self, entry: Entry, refs: Mapping[str, str], target: Record | None) -> Write:
        op = entry.operation
        if is_erased({name: step.value for name, step in op.steps.items()}):
            raise ValueError(f"{self.kind}: an erased value would be written")
        return Write(
            key=entry.key,
            kind=self.kind,
            verb=self.verb,
            address=self._address(entry) if op.target is not None else None,
            counterpart=self._counterpart(op),
            values={name: step.value for name, step in op.steps.items()},
            refs=refs or (target.refs if target is not None else {}),
            version=target.version if target is not None else None,
            modified_at=target.modified_at if target is not None else None,
            opaque=target.opaque if target is not None else {},
        )

    def _counterpart(self, op: Operation) -> str | None:
        """What to store as the mark: of a create its source, else what the target is linked to by now."""
        if op.target is None:
            return op.source
        if not (op.is_marking or op.verb == "mark"):
            return None
        return self.links[op.target.id].side(self.side.other).record.id

    def _address(self, entry: Entry) -> Address:
        target = entry.operation.target
        if target is None:
            raise ValueError(f"a {self.verb} without a target")
        return target

    # --- sending ----------------------------------------------------------------------

    def _send(self, writes: Sequence[Write]) -> dict[str, Outcome]:
        """One outcome for each write. A batch refused as a whole is halved until the poison is alone.

        Where an answer was lost on the way and the call repeated, the first sending may have had its
        effect whatever the second one met: that is as good as no answer.
        """
        lost_before = self.system.courier.lost_answers
        try:
            outcomes = {each.key: each for each in self.system.connector.write(writes)}
            if self.system.courier.lost_answers > lost_before:
                outcomes = {key: each for key, each in outcomes.items() if each.verdict not in _DOUBTFUL}
        except UnknownOutcomeError:
            outcomes = {}
        except (RejectedError, UnfitValueError) as exc:
            if len(writes) == 1:
                return {writes[0].key: Outcome(writes[0].key, Verdict.REJECTED, reason=str(exc))}
            half = len(writes) // 2
            return self._send(writes[:half]) | self._send(writes[half:])
        return {write.key: outcomes.get(write.key, Outcome(write.key, Verdict.UNKNOWN)) for write in writes}

    def _count(self, writes: Sequence[tuple[Entry, Write]]) -> None:
        at = (self.kind, self.verb)
        self.system.written[at] += len(writes)
        groups = self.system.groups.setdefault(at, set())
        groups |= {
            write.refs.get("deal") or (write.address.parent if write.address else None) or "" for _, write in writes
        }

    # --- after ------------------------------------------------------------------------

    def _settle(self, outcomes: Mapping[str, Outcome]) -> None:
        entries = {entry.key: entry for entry in self.entries}
        unknown = [entries[key] for key, each in outcomes.items() if each.verdict is Verdict.UNKNOWN and key in entries]
        found = self._find(unknown)
        again: list[Address] = []
        self._ends, self._made, self._changes, self._taken = [], [], [], set()
        with self.ctx.store.transaction():
            # As the links stand now: an earlier operation of this run may have moved their bases.
            self._look_up_links()
            for key, outcome in outcomes.items():
                entry = entries.get(key)
                if entry is not None:
                    again += self._settle_one(entry, outcome, found.get(key))
            self.ctx.store.new_links(self.kind, self._made, self.ctx.now())
            self.ctx.store.log_changes(self._changes)
            self.ctx.journal.close(self._ends, self.ctx.now())
        # A read between two transactions, never inside one.
        read_again(self.ctx, self.system, self.side, self.kind, again)

    def _find(self, entries: Sequence[Entry]) -> Mapping[str, Record]:
        """What stands there now, by key, for writes whose answer was lost."""
        if not entries or self.verb == "mark":
            return {}
        if self.verb == "create":
            writes = self._writes_for(entries)
            return self.system.connector.find(writes) if writes else {}
        found: dict[str, Record] = {}
        size = self.capability.read_batch
        for start in range(0, len(entries), size):
            some = {self._address(entry).id: entry for entry in entries[start : start + size]}
            shown = self.system.connector.read(self.kind, [self._address(entry) for entry in some.values()])
            found |= {some[id_].key: record for id_, record in shown.items() if record.id == id_}
        return found

    def _writes_for(self, entries: Sequence[Entry]) -> list[Write]:
        refs = self._own_refs(entries)
        found = []
        for entry in entries:
            own = _own_ids(entry.operation, refs)
            if all(own.values()):
                found.append(self._write(entry, own, None))
        return found

    def _settle_one(self, entry: Entry, outcome: Outcome, found: Record | None) -> list[Address]:
        """Commit one outcome; answers with what must be read again."""
        ctx = self.ctx
        target = entry.operation.target
        match outcome.verdict:
            case Verdict.DONE:
                self._done(entry, outcome.record)
                self._ends.append((entry, "done", ""))
                return []
            case Verdict.EXISTS:
                self._adopt(entry, outcome.record, "the system holds it already")
                self._ends.append((entry, "failed", "exists already"))
                return []
            case Verdict.UNKNOWN:
                return self._settle_unknown(entry, found)
            case Verdict.STALE | Verdict.MISSING | Verdict.RETRY:
                self._ends.append((entry, "failed", outcome.verdict.value))
                ctx.report.stale += 1
                return [target] if target is not None else []
            case Verdict.REJECTED:
                self._bury(entry, outcome.reason)
                self._ends.append((entry, "failed", outcome.reason))
                ctx.report.rejected[self.kind] += 1
                return []
            case Verdict.DELAYED:
                raise ValueError(f"{self.kind}: what was delayed has not ended")

    def _settle_unknown(self, entry: Entry, found: Record | None) -> list[Address]:
        """An effect that is there was ours.

        One that cannot be told from what came after it is written down all the same: else a value
        that we replaced without hearing of it would be told nowhere.
        """
        if found is not None and self._stands(entry, found) and not self._is_anothers(entry, found):
            self._done(entry, None if found.is_deleted else found)
            self._ends.append((entry, "done", FOUND))
            return []
        self.ctx.report.stale += 1
        target = entry.operation.target
        if target is None:
            if found is not None:
                self._adopt(entry, found, FOUND)
        elif target.id in self.links and self._has_other_values(entry, found):
            self._keep_losers(entry, self.links[target.id], found)
        self._ends.append((entry, "failed", "its answer was lost"))
        return [target] if target is not None else []

    def _stands(self, entry: Entry, found: Record) -> bool:
        """Whether all that was asked for is so."""
        if self.verb == "delete":
            return found.is_deleted
        if self.verb == "mark" or found.is_deleted:
            return False
        types = self.ctx.fields(self.kind).types
        for name, step in entry.steps.items():
            now = found.values.get(name)
            # What stood there before may be a beginning of what was to come; that is no cut, but no effect.
            was_cut = is_cut(types[name], step.value, now) and not same(types[name], now, entry.before.get(name))
            if not was_cut and not same(types[name], now, step.value):
                return False
        return True

    def _is_anothers(self, entry: Entry, found: Record) -> bool:
        """Whether what stands there instead of a create is linked already."""
        return self.verb == "create" and bool(self.ctx.store.counterparts(self.kind, self.side, [found.id]))

    def _has_other_values(self, entry: Entry, found: Record | None) -> bool:
        """Whether a field of an update says something else than before it, or what it said went with its record."""
        types = self.ctx.fields(self.kind).types
        return self.verb == "update" and (
            found is None
            or any(not same(types[name], found.values.get(name), entry.before.get(name)) for name in entry.steps)
        )

    def _done(self, entry: Entry, record: Record | None) -> None:
        self.ctx.report.operations += 1
        at = (self.kind, self.side)
        if self.verb in ("update", "mark") and self._address(entry).id not in self.links:
            # Its link went while the write was on its way; what stands there now is news.
            if record is not None:
                self.ctx.store.intake(self.side, self.kind, [record], self.ctx.now(), is_exact=False, is_current=True)
            return
        match self.verb:
            case "create":
                if record is None:
                    raise ValueError(f"{self.kind}: a create without its record")
                self.ctx.report.created[at] += 1
                self._created(entry, record)
            case "update":
                self.ctx.report.updated[at] += 1
                self._updated(entry, record)
            case "mark":
                self.ctx.report.marked[at] += 1
                self._marked(entry, record)
            case "delete":
                self.ctx.report.deleted[at] += 1
                self._deleted(entry, record)

    def _created(self, entry: Entry, record: Record) -> None:
        """Link what was made to its source; the base is what the system returned, not what was sent."""
        if entry.operation.source is None:
            self._made_alone(entry, record)
            return
        source = self.sources[entry.operation.source]
        if record.id in self._taken:
            # Two sources that name the same two records, made in one batch, come to one record.
            doubled = {source.id: ("excluded", "another record stands for the same two already")}
            self.ctx.store.shelve(self.side.other, self.kind, doubled)
            return
        self._taken.add(record.id)
        types, shares = self.ctx.fields(self.kind).types, self.capability.fields
        halves = founded(
            types, self.side, entry.steps, entry.source, record.values, {name: shares[name].shares for name in types}
        )
        left, right = (record, source) if self.side is Side.LEFT else (source, record)
        # What a create stored as the mark is known; a counterpart made on the left marks the right one later.
        is_marked = self.side is Side.RIGHT or right.mark == left.id
        self._made.append(NewLink(left, right, halves, is_marked, entry.operation.why))
        if entry.operation.undoes:
            self.ctx.store.unhold(self.side.other, self.kind, source.id)
        self._log(entry, left.id, right.id, record)

    def _made_alone(self, entry: Entry, record: Record) -> None:
        """A relation that was brought back without its counterpart: it gets no other one, and stays as it is."""
        self.ctx.store.intake(self.side, self.kind, [record], self.ctx.now(), is_exact=False, is_current=True)
        self._keep_alone(self.side, record.id, entry.operation.undoes)
        left_id, right_id = (record.id, None) if self.side is Side.LEFT else (None, record.id)
        self._log(entry, left_id, right_id, record)

    def _keep_alone(self, side: Side, id_: str, run_id: str) -> None:
        """What an undo leaves without a counterpart is no newcomer: the next run would give it one."""
        self.ctx.store.hold(side, self.kind, id_, held_because(run_id), self.ctx.now())

    def _updated(self, entry: Entry, record: Record | None) -> None:
        row = self.links[self._address(entry).id]
        types = self.ctx.fields(self.kind).types
        returned = record.values if record is not None else {}
        bases = row.side(self.side.other).base, row.side(self.side).base
        halves = dict(confirmed(types, self.side, entry.steps, entry.source, bases, returned))
        third, done = self._third_values(entry, row)
        for name in third:
            halves[name] = (halves[name][0], UNMOVED) if self.side is Side.LEFT else (UNMOVED, halves[name][1])
        forget = {name for name in entry.steps if name not in third or name in done}
        ignored = not_stored(types, entry.steps, entry.before, returned)
        state, reason = self._standing(row, ignored)
        seen = {self.side: record} if record is not None else {}
        is_marked = True if entry.operation.is_marking else None
        self.ctx.store.settle(row, halves, seen, state=state, reason=reason, is_marked=is_marked, forget=forget)
        self._keep_losers(entry, row, record)

    def _keep_losers(self, entry: Entry, row: LinkRow, record: Record | None) -> None:
        """Write down what an update replaced, and the conflicts that a rule settled with it."""
        self._log(entry, row.left.record.id, row.right.record.id, record)
        for lost in entry.conflicts:
            self.ctx.store.open_conflict(
                self.ctx.run_id, row, str(lost["field"]), lost["base"], lost["left"], lost["right"],
                decided=str(lost["rule"]), winner=Side(str(lost["winner"])), at=self.ctx.now(),
            )  # fmt: skip

    def _third_values(self, entry: Entry, row: LinkRow) -> tuple[set[str], set[str]]:
        """Fields that a person's third value settles, and those of them that the other side holds by now as well.

        Each side is a write of its own, of which either may fail: so each moves its own half only,
        and the word is kept until both sides have it.
        """
        types, other = self.ctx.fields(self.kind).types, row.side(self.side.other).record.values
        third = {
            name
            for name, step in entry.steps.items()
            if step.rule == BY_PERSON and isinstance(settled_by(name, entry.because.get(name)), Chosen)
        }
        return third, {name for name in third if same(types[name], other.get(name), entry.steps[name].value)}

    def _standing(self, row: LinkRow, ignored: Iterable[str]) -> tuple[LinkState, str]:
        names = ", ".join(sorted(ignored))
        if names:
            return LinkState.EXCLUDED, f"accepted but not stored: {names}"
        if row.state is LinkState.PENDING:
            return LinkState.IN_STEP, ""
        return row.state, row.reason

    def _marked(self, entry: Entry, record: Record | None) -> None:
        row = self.links[self._address(entry).id]
        seen = {self.side: record} if record is not None else {}
        state = LinkState.IN_STEP if row.state is LinkState.PENDING and not row.moved else row.state
        self.ctx.store.settle(row, {}, seen, state=state, reason=row.reason, is_marked=True)

    def _deleted(self, entry: Entry, record: Record | None) -> None:
        target = self._address(entry)
        row = self.links.get(target.id)
        if row is not None:
            if entry.operation.undoes and self.side.other not in row.moved:
                self.ctx.store.keep(self.side.other, row.side(self.side.other).record, self.ctx.now())
            self.ctx.store.drop_links(self.kind, self.ctx.now(), left_ids=[row.left.record.id])
            if entry.operation.undoes:
                self._keep_alone(self.side.other, row.side(self.side.other).record.id, entry.operation.undoes)
            self._log(entry, row.left.record.id, row.right.record.id)
        else:
            self._log(entry, *((target.id, None) if self.side is Side.LEFT else (None, target.id)))
        self.ctx.store.forget_sighting(self.side, self.kind, target.id)
        if record is not None:
            # What stays for others' sake is no newcomer, or the other side would get it back.
            self.ctx.store.intake(self.side, self.kind, [record], self.ctx.now(), is_exact=False, is_current=True)
            held = {record.id: ("excluded", "removed on the other side; others hold it here")}
            self.ctx.store.shelve(self.side, self.kind, held)

    def _adopt(self, entry: Entry, record: Record | None, why: str) -> None:
        """What stands there instead of our create is its counterpart, unless it is taken."""
        if record is None:
            self._bury(entry, "exists already, but was not found")
            return
        store, now = self.ctx.store, self.ctx.now()
        store.intake(self.side, self.kind, [record], now, is_exact=False, is_current=True)
        if entry.operation.source is None:
            return
        source_id = entry.operation.source
        holder = store.counterparts(self.kind, self.side, [record.id]).get(record.id)
        if holder is not None and holder != source_id:
            self._bury(entry, f"the other system's {record.id} is it already, but linked to {holder}")
            return
        left, right = (record.id, source_id) if self.side is Side.LEFT else (source_id, record.id)
        if (left, right) in store.answers(self.kind).never:
            self._bury(entry, f"the other system takes {record.id} for it, from which a person keeps it apart")
            return
        store.make_links(self.kind, [(left, right, why)], now)
        self._take_as_base(record, entry if why == FOUND else None)

    def _take_as_base(self, record: Record, made: Entry | None) -> None:
        """Give a link just made the base that it has by itself.

        What is nobody's word was never moved: whatever the other side says there is news to this one.
        What our own create gave and the system cut short is as it was given, not edited since.
        """
        types = self.ctx.fields(self.kind).types
        steps, source = (made.steps, made.source) if made is not None else ({}, {})
        cut = {
            name: (record.values[name], source.get(name))
            for name, step in steps.items()
            if name in record.values and is_cut(types[name], step.value, record.values[name])
        }
        halves = {name: (record.values.get(name), None) for name in record.unspoken} | cut
        if self.side is Side.RIGHT:
            halves = {name: (here, there) for name, (there, here) in halves.items()}
        if halves:
            for row in self.ctx.store.linked(self.kind, self.side, [record.id]):
                self.ctx.store.settle(row, halves, {}, state=row.state, reason=row.reason)

    def _bury(self, entry: Entry, reason: str) -> None:
        """A dead letter: set aside with its reason, until its record moves or a person says so."""
        op = entry.operation
        row = self.links.get(op.target.id) if op.target is not None else None
        if row is None and op.verb == "create" and op.source is not None:
            # A create in place of a counterpart that was lost: the link to that one still stands.
            row = next(iter(self.ctx.store.linked(self.kind, self.side.other, [op.source])), None)
        if row is not None:
            self.ctx.store.bury(row.id, reason, None)
        elif op.source is not None:
            self.ctx.store.shelve(self.side.other, self.kind, {op.source: ("dead", reason)})
        elif op.target is not None:
            self.ctx.store.shelve(self.side, self.kind, {op.target.id: ("dead", reason)})

    def _drop(self, entry: Entry, reason: str) -> None:
        self.entries.remove(entry)
        self.ctx.journal.close([(entry, "dropped", reason)], self.ctx.now())

    def _log(self, entry: Entry, left_id: str | None, right_id: str | None, record: Record | None = None) -> None:
        """Keep what was written, field by field, and what the system made of it; of what was removed all it said."""
        common = {
            "run": self.ctx.run_id,
            "kind": self.kind,
            "left_id": left_id,
            "right_id": right_id,
            "side": str(self.side),
            "verb": self.verb,
            "call": entry.key,
            "person": self._person(entry),
            "at": self.ctx.now(),
        }
        held = record.values if record is not None else {}
        said = keep(Said(entry.operation.why))
        told = [
            (name, entry.before.get(name), step.value, held.get(name, step.value), step.rule)
            for name, step in entry.steps.items()
        ]
        told += self._taken_away(entry, record)
        self._changes += [
            {
                **common,
                "field": name,
                "old": _frozen(old),
                "new": _frozen(new),
                "stored": _frozen(stored),
                "rule": rule,
                "because": entry.because.get(name if name in entry.steps else "", said),
            }
            for name, old, new, stored, rule in told or [("", None, None, None, entry.operation.why)]
        ]

    def _taken_away(self, entry: Entry, record: Record | None) -> list[tuple[str, Value, Value, Value, str]]:
        """What a removed record said, and what a relation that was made or removed refers to."""
        why = entry.operation.why
        gone = self.targets.get(self._address(entry).id) if self.verb == "delete" else None
        rows: list[tuple[str, Value, Value, Value, str]] = []
        if gone is not None:
            types = self.ctx.fields(self.kind).types
            rows += [(n, value, None, None, why) for n, value in sorted(gone.values.items()) if n in types]
            if self.kind in RELATIONS:
                rows.append((REFS, packed(gone.refs), None, None, why))
        elif self.verb == "create" and record is not None and self.kind in RELATIONS:
            rows.append((REFS, None, packed(record.refs), packed(record.refs), why))
        return rows

    def _person(self, entry: Entry) -> str | None:
        """The contact that a relation names, by the side that knows it so: what is said of the one is said of her."""
        op = entry.operation
        side, refs = self.side.other, op.refs
        if op.target is not None:
            known = self.targets.get(op.target.id)
            side, refs = self.side, known.refs if known is not None else {}
        return f"{side}:{refs['contact']}" if "contact" in refs else None


def _own_ids(op: Operation, refs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The references of a create in ids of its own side; empty where one has none."""
    if op.source is None:
        return dict(op.refs)
    return {kind: refs[kind].get(ref, "") for kind, ref in op.refs.items()}


def _frozen(value: Value) -> Json:
    return freeze({"": value})[""]
