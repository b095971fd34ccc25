"""From the inbox to a plan, kind by kind: follow merges, match, decide, write the operations down.

Nothing here calls a vendor. What needs no write is settled at once: fields on which both sides
agree move their base here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from syncd.core.base import agreed
from syncd.core.guard import Census
from syncd.core.mapping import is_erased, show
from syncd.core.match import Answers, Review, Suspect, keys_of, match, ref_key
from syncd.core.merge import BY_PERSON, ERASED, FieldConflict, Half, translated
from syncd.core.model import RELATIONS, Address, Json, LinkState, Record, Side, Value
from syncd.core.plan import (
    Decision,
    Operation,
    Sighted,
    decide,
    existence,
    is_ripe,
    payable,
    priced,
    standing,
    welcome,
)
from syncd.core.why import grounds
from syncd.engine.context import Context
from syncd.state.journal import Entry, digest
from syncd.state.rows import Row
from syncd.state.store import SETTLING, LinkRow

CHUNK = 400
#: Why a record is left out whose link a person ended.
KEPT_APART = "kept apart by a person's word"


@dataclass(slots=True)
class Unread:
    """Records of one kind whose values were erased and are asked for by a decision: they are read again before it."""

    links: list[str] = field(default_factory=list)
    """By their Propstreet ids."""
    newcomers: dict[Side, list[str]] = field(default_factory=dict)
    addresses: dict[Side, list[Address]] = field(default_factory=dict)
    is_over: bool = False
    """They were read again; what is still missing now is missing."""

    def take_link(self, row: LinkRow, decision: Decision) -> bool:
        """Whether this decision has to wait for values that were erased."""
        if self.is_over or not (decision.reason == ERASED or ERASED in decision.merged.blocked.values()):
            return False
        sides = {side: row.side(side) for side in Side}
        veiled = {side: each for side, each in sides.items() if is_erased({**each.base, **each.record.values})}
        for side, each in veiled.items():
            if not each.record.is_deleted:
                self.addresses.setdefault(side, []).append(each.address)
        if self.addresses:
            self.links.append(row.left.record.id)
        return bool(self.addresses)

    def take_newcomer(self, side: Side, record: Record) -> bool:
        """Whether this record has to be read again before it is made on the other side."""
        if self.is_over or not is_erased(record.values):
            return False
        self.newcomers.setdefault(side, []).append(record.id)
        self.addresses.setdefault(side, []).append(Address(record.id, record.parent))
        return True


@dataclass(slots=True)
class Draft:
    """A plan in the making. It gets an id, and a row, only once there is something to do.

    ``by_kind`` counts the operations of each kind in this run, those of its earlier plans included.
    """

    ctx: Context
    plan_id: str | None = None
    census: Census = field(default_factory=Census)
    by_kind: dict[str, int] = field(default_factory=dict)
    is_undo: bool = False
    unread: Unread = field(default_factory=lambda: Unread())
    _buffer: list[Entry] = field(default_factory=list)

    def add(self, operation: Operation, before: Mapping[str, Value], source: Record | None, target: Record | None,
            conflicts: Sequence[Mapping[str, Json]] = ()) -> bool:  # fmt: skip
        """Plan one operation; False if the run's own limit for its kind is reached."""
        limit = self.ctx.rules.limit
        if limit is not None and self.by_kind.get(operation.kind, 0) >= limit:
            return False
        self.by_kind[operation.kind] = self.by_kind.get(operation.kind, 0) + 1
        self.census.count(operation, before)
        types = self.ctx.fields(operation.kind).types
        self._buffer.append(
            Entry(
                operation=operation,
                key=self.ctx.new_id(),
                before={name: before.get(name) for name in operation.steps},
                source={name: value for name, value in source.values.items() if name in types} if source else {},
                precondition=proof(self.ctx, target) if target is not None else None,
                conflicts=conflicts,
                because=grounds(operation),
            )
        )
        if len(self._buffer) >= CHUNK:
            self.flush()
        return True

    def flush(self) -> None:
        """Write the operations down that are still in memory."""
        if self._buffer:
            self.ctx.journal.add(self.opened(), self._buffer)
            self._buffer = []

    def opened(self) -> str:
        """The plan's id; from now on there is one, be it empty."""
        if self.plan_id is None:
            self.plan_id = self.ctx.new_id()
            self.ctx.journal.open_plan(self.plan_id, self.ctx.run_id, self.ctx.now(), is_undo=self.is_undo)
        return self.plan_id


def proof(ctx: Context, record: Record) -> str:
    """A digest of what the pair's fields of a record say now, to see later whether it moved."""
    types = ctx.fields(record.kind).types
    return digest({name: record.values.get(name) for name in types}, record.refs)


def draft_kind(draft: Draft, kind: str) -> None:
    """Plan everything that one kind needs, from what the inbox holds."""
    ctx = draft.ctx
    if ctx.bare(kind):
        ctx.look_at_prices()
    if not ctx.store.stirs(kind, with_marks=ctx.systems[Side.RIGHT].kind(kind).can_mark):
        ctx.report.conflicts.pop(kind, None)
        return
    for side in Side:
        ctx.store.follow_merges(side, kind, ctx.now())
    _match_kind(ctx, kind)
    # What waits for a person is seen in each round, and counts once.
    ctx.report.conflicts.pop(kind, None)
    _plan_links(draft, kind)
    draft.flush()
    _plan_retired(draft, kind)
    _plan_newcomers(draft, kind)
    draft.flush()


@dataclass(slots=True)
class _Admission:
    """Which newcomers are looked at now: neither held still nor too young. Those wait in the inbox as they are."""

    ctx: Context
    side: Side
    kind: str

    def __call__(self, row: Row) -> bool:
        ctx, delay = self.ctx, self.ctx.rules.kinds[self.kind].settle_seconds
        if ctx.is_held(self.side, self.kind, row["id"], row["facts"].get("refs", {})):
            return False
        is_young = not (row["is_deleted"] or is_ripe(row["modified_at"], row["seen_at"], ctx.now(), delay))
        if is_young != (row["reason"] == SETTLING):
            ctx.store.note_settling(self.side, self.kind, [row["id"]], is_young=is_young)
        return not is_young


def draft_missing(draft: Draft, side: Side, kind: str, missing: Sequence[Address]) -> None:
    """Plan what would follow if these records of ``side`` were deleted. The inbox hears nothing of it."""
    ctx = draft.ctx
    for row in ctx.store.linked(kind, side, [address.id for address in missing]):
        if _is_held(ctx, row):
            continue
        mine = row.side(side)
        gone = replace(mine, record=replace(mine.record, is_deleted=True))
        left, right = (gone, row.right) if side is Side.LEFT else (row.left, gone)
        for operation in decide(kind, left, right, ctx.fields(kind), ctx.rules.kinds[kind]).operations:
            target = row.side(operation.side).record
            if operation.verb == "delete":
                draft.add(operation, target.values, None, target)
    draft.flush()


def draft_unread(draft: Draft, kind: str) -> None:
    """Plan what had to be read again, now that it was."""
    unread, store = draft.unread, draft.ctx.store
    unread.is_over = True
    answers = store.answers(kind)
    _plan_rows(draft, kind, store.linked(kind, Side.LEFT, unread.links))
    for side, ids in unread.newcomers.items():
        records = store.sighted(side, kind, ids)
        _plan_chunk(draft, kind, side, [records[id_] for id_ in ids if id_ in records], answers)
    draft.flush()
    draft.unread = Unread()


# --- matching -----------------------------------------------------------------------------


def _match_kind(ctx: Context, kind: str) -> None:
    answers = ctx.store.answers(kind)
    _part(ctx, kind, answers)
    chosen = [(*pair, BY_PERSON) for pair in ctx.store.chosen(kind) if pair not in answers.never]
    ctx.store.make_links(kind, chosen, ctx.now())
    ctx.report.linked[kind] += len(chosen)
    for side in Side:
        after = ""
        while records := ctx.store.unmatched(side, kind, after, CHUNK, _Admission(ctx, side, kind)):
            after = records[-1].id
            _match_chunk(ctx, kind, side, records, answers)


def _part(ctx: Context, kind: str, answers: Answers) -> None:
    """End the links of records that a person keeps apart; both stay, and nothing is made in their place."""
    lefts = [left_id for left_id, _ in answers.ended]
    for row in ctx.store.linked(kind, Side.LEFT, lefts) if lefts else ():
        if (row.left.record.id, row.right.record.id) in answers.ended:
            alone = [side for side in Side if answers.stands_alone(side, row.side(side).record.id)]
            ctx.store.part(kind, row, dict.fromkeys(alone, ("excluded", KEPT_APART)), ctx.now())


def _match_chunk(ctx: Context, kind: str, side: Side, records: Sequence[Record], answers: Answers) -> None:
    """Match one chunk of one side against all that could be meant on the other side."""
    own = [answers.not_known_by_keys(side, Suspect(r.id, keys_of(r, ctx.pair), r.mark)) for r in records]
    translate = _Translator(ctx, kind)
    keys = translate.keys({each.id: each.keys for each in own}, side)
    others = ctx.store.suspects(
        side.other,
        kind,
        ids=[each.mark for each in own if each.mark],
        marks=[each.id for each in own],
        keys={key for found in keys.values() for key in found},
    )
    if not others:
        return
    others = [answers.not_known_by_keys(side.other, each) for each in others]
    back = translate.keys({each.id: each.keys for each in others}, side.other)
    rivals = ctx.store.suspects(
        side,
        kind,
        ids=[each.mark for each in others if each.mark],
        marks=[each.id for each in others],
        keys={key for found in back.values() for key in found},
    )
    own_all = {each.id: each for each in (*(answers.not_known_by_keys(side, each) for each in rivals), *own)}
    # Both sides' keys in Propstreet's ids.
    lefts = own_all.values() if side is Side.LEFT else others
    rights = others if side is Side.LEFT else own_all.values()
    right_keys = translate.keys({each.id: each.keys for each in rights}, Side.RIGHT)
    matched = match(lefts, [replace(each, keys=right_keys[each.id]) for each in rights], answers.never)
    chunk = {record.id for record in records}
    own_at = 0 if side is Side.LEFT else 1
    links = [each for each in matched.links if each[own_at] in chunk]
    ctx.store.make_links(kind, links, ctx.now())
    ctx.report.linked[kind] += len(links)
    taken = {each[own_at] for each in links}
    reviews = [r for r in matched.reviews if r.side is side and r.id in chunk and r.id not in taken]
    if kind in RELATIONS:
        _shelve_doubles(ctx, kind, side, reviews)
    else:
        ctx.store.save_reviews(kind, reviews, ctx.now())


def _shelve_doubles(ctx: Context, kind: str, side: Side, reviews: Sequence[Review]) -> None:
    """A second record for references that are linked already leaves nothing for a person to decide."""
    doubles = [r for r in reviews if all(each.linked_to is not None for each in r.candidates)]
    ctx.store.shelve(
        side, kind, {r.id: ("excluded", "another record stands for the same two already") for r in doubles}
    )
    ctx.store.save_reviews(kind, [r for r in reviews if r not in doubles], ctx.now())


class _Translator:
    """Keys that name records are made of ids; the other side knows them by its own ids."""

    def __init__(self, ctx: Context, kind: str):
        self._ctx = ctx
        self._is_relation = kind in RELATIONS

    def keys(self, keys: Mapping[str, frozenset[str]], side: Side) -> dict[str, frozenset[str]]:
        """The same keys in the other side's ids; what cannot be told there is left out."""
        if not self._is_relation:
            return dict(keys)
        parsed = {id_: [_parse(key) for key in found if key.startswith("refs:")] for id_, found in keys.items()}
        wanted: dict[str, set[str]] = {}
        for refs_list in parsed.values():
            for refs in refs_list:
                for kind, ref in refs.items():
                    wanted.setdefault(kind, set()).add(ref)
        known = {kind: self._ctx.store.counterparts(kind, side, ids) for kind, ids in wanted.items()}
        return {
            id_: frozenset(
                ref_key({kind: known[kind][ref] for kind, ref in refs.items()})
                for refs in refs_list
                if all(ref in known[kind] for kind, ref in refs.items())
            )
            for id_, refs_list in parsed.items()
        }


def _parse(key: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in key.removeprefix("refs:").split("|") if "=" in part)


# --- linked records -----------------------------------------------------------------------


def _plan_links(draft: Draft, kind: str) -> None:
    ctx = draft.ctx
    can_mark = ctx.systems[Side.RIGHT].kind(kind).can_mark
    after = 0
    while rows := ctx.store.unsettled(kind, after, CHUNK, ctx.now(), with_marks=can_mark):
        after = rows[-1].id
        rows = _ripe(ctx, kind, [row for row in rows if not _is_held(ctx, row)])
        _plan_rows(draft, kind, rows)


def _plan_rows(draft: Draft, kind: str, rows: list[LinkRow]) -> None:
    ctx = draft.ctx
    can_mark = ctx.systems[Side.RIGHT].kind(kind).can_mark
    right_refs = _right_refs(ctx, kind, rows)
    unlinked = _unlinked_survivors(draft, kind, rows)
    with ctx.store.transaction():
        for row, under in zip(rows, _under_locked_deals(ctx, kind, rows), strict=True):
            _plan_link(draft, row, under, right_refs.get(row.id), unlinked.get(row.id, frozenset()), can_mark=can_mark)


def _is_held(ctx: Context, row: LinkRow) -> bool:
    return any(ctx.is_held(side, row.kind, row.side(side).record.id, row.side(side).record.refs) for side in Side)


def _ripe(ctx: Context, kind: str, rows: list[LinkRow]) -> list[LinkRow]:
    """The links without a side that somebody is still typing on. What was deleted is deleted."""
    delay = ctx.rules.kinds[kind].settle_seconds
    young: dict[int, set[Side]] = {}
    for row in rows:
        is_gone = any(row.side(side).record.is_deleted for side in Side)
        young[row.id] = {
            side
            for side in row.moved
            if not is_gone and not is_ripe(row.side(side).record.modified_at, row.since[side], ctx.now(), delay)
        }
    for side in Side:
        for is_young in (True, False):
            changed = [
                row.side(side).record.id
                for row in rows
                if (side in young[row.id]) is is_young and (side in row.settling) is not is_young
            ]
            ctx.store.note_settling(side, kind, changed, is_young=is_young)
    return [row for row in rows if not young[row.id]]


def _under_locked_deals(ctx: Context, kind: str, rows: list[LinkRow]) -> list[LinkRow]:
    """What stands below a deal that must not be written must not be written either. That is said of it, not by it."""
    if kind != "deal_contact":
        return rows
    locks = {side: _deal_locks(ctx, side, [row.side(side).record for row in rows]) for side in Side}
    return [
        replace(row, left=_locked(row.left, locks[Side.LEFT]), right=_locked(row.right, locks[Side.RIGHT]))
        for row in rows
    ]


def _locked(sighted: Sighted, locks: Mapping[str, str]) -> Sighted:
    reason = locks.get(sighted.record.refs.get("deal", ""))
    if reason is None:
        return sighted
    return replace(sighted, record=replace(sighted.record, locked={**sighted.record.locked, "*": reason}))


def _deal_locks(ctx: Context, side: Side, records: Sequence[Record]) -> dict[str, str]:
    """The deals among these records' references that must not be written, with the reason."""
    deals = ctx.store.sighted(side, "deal", {ref for record in records if (ref := record.refs.get("deal"))})
    return {id_: f"its deal is {deal.locked['*']}" for id_, deal in deals.items() if "*" in deal.locked}


def _right_refs(ctx: Context, kind: str, rows: Sequence[LinkRow]) -> dict[int, dict[str, str]]:
    """The right records' references in left ids, for the links in which all of them are linked."""
    if kind not in RELATIONS:
        return {}
    wanted: dict[str, set[str]] = {}
    for row in rows:
        for ref_kind, ref in row.right.record.refs.items():
            wanted.setdefault(ref_kind, set()).add(ref)
    known = {ref_kind: ctx.store.counterparts(ref_kind, Side.RIGHT, ids) for ref_kind, ids in wanted.items()}
    return {
        row.id: {ref_kind: known[ref_kind][ref] for ref_kind, ref in row.right.record.refs.items()}
        for row in rows
        if all(ref in known[ref_kind] for ref_kind, ref in row.right.record.refs.items())
    }


def _unlinked_survivors(draft: Draft, kind: str, rows: Sequence[LinkRow]) -> dict[int, frozenset[str]]:
    """For each link that lost one side, what the record on the other one names and that has no counterpart."""
    found: dict[int, frozenset[str]] = {}
    for side in Side if kind in RELATIONS else ():
        alone = [row for row in rows if row.side(side.other).record.is_deleted and not row.side(side).record.is_deleted]
        unlinked = _unlinked_refs(draft, kind, side, [row.side(side).record for row in alone])
        found |= {row.id: unlinked[row.side(side).record.id] for row in alone}
    return found


def _plan_link(
    draft: Draft,
    row: LinkRow,
    under: LinkRow,
    right_refs: Mapping[str, str] | None,
    unlinked_refs: frozenset[str],
    *,
    can_mark: bool,
) -> None:
    """Decide on one link as it stands ``under`` its deals, and write down what follows."""
    ctx, kind = draft.ctx, row.kind
    fields = ctx.fields(kind)
    left, right = _in_crm_words(under.left, ctx.vocabulary(kind)), _in_its_currency(ctx, under)
    answers = standing(row.settled, left, right, fields)
    decision = decide(
        kind, left, right, fields, ctx.rules.kinds[kind],
        right_refs=right_refs, unlinked_refs=unlinked_refs, settled=answers,
    )  # fmt: skip
    unsaid = set(row.settled) - set(answers)
    if draft.unread.take_link(row, decision):
        return
    if decision.is_over:
        _end(ctx, row, decision)
        return
    if decision.retire is not None:
        ctx.store.retire(decision.retire, kind, row, decision.reason, ctx.now())
        return
    is_both_alive = not (row.left.record.is_deleted or row.right.record.is_deleted)
    if is_both_alive and decision.reason not in ("outside the tenant's filter", "names a record that is not linked"):
        _settle_agreed(ctx, row, decision, answers)
    elif unsaid or (row.state, row.reason) != (decision.state, decision.reason):
        ctx.store.settle(row, {}, {}, state=decision.state, reason=decision.reason, forget=unsaid)
    _note_conflicts(ctx, row, decision, (existence(left, Side.LEFT, fields), existence(right, Side.RIGHT, fields)))
    # One that a person settled was written down, with both values, when it began to wait.
    settled = [each for each in decision.merged.conflicts if each.winner is not None and each.rule != BY_PERSON]
    conflicts = [_lost(each) for each in settled]
    is_marking = can_mark and is_both_alive and not row.is_marked and decision.state is not LinkState.DEAD
    for operation in decision.operations:
        if is_marking and operation.verb == "update" and operation.side is Side.RIGHT:
            operation, is_marking = replace(operation, is_marking=True), False
        target = row.side(operation.side).record
        source = row.side(operation.side.other).record
        before = {} if operation.verb == "create" else target.values
        shown = [each for each in conflicts if each["field"] in operation.steps]
        draft.add(operation, before, source, None if operation.verb == "create" else target, shown)
    if is_marking:
        mark = Operation(kind, "mark", Side.RIGHT, row.left.record.id, row.right.address, why="linked")
        draft.add(mark, {}, None, None)


def _in_crm_words(left: Sighted, vocabulary: Mapping[str, Mapping[str, str]]) -> Sighted:
    if not vocabulary:
        return left
    return Sighted(
        replace(left.record, values=translated(left.record.values, vocabulary)),
        translated(left.base, vocabulary),
        left.base_refs,
    )


def _in_its_currency(ctx: Context, row: LinkRow) -> Sighted:
    bare = ctx.bare(row.kind)
    if not bare or ctx.currency is None:
        return row.right
    return priced(row.right, bare, ctx.currency, row.left.record.values)


def _end(ctx: Context, row: LinkRow, decision: Decision) -> None:
    """Both gone, or a deletion that the tenant does not pass on: the link is over."""
    alive = [side for side in Side if not row.side(side).record.is_deleted]
    with ctx.store.transaction():
        for side in alive:
            if side not in row.moved:
                ctx.store.keep(side, row.side(side).record, ctx.now())
        ctx.store.drop_links(row.kind, ctx.now(), left_ids=[row.left.record.id])
        for side in alive:
            ctx.store.shelve(side, row.kind, {row.side(side).record.id: ("excluded", decision.reason)})


def _settle_agreed(ctx: Context, row: LinkRow, decision: Decision, answers: Container[str]) -> None:
    """Move the base for every field that needs no write, and remember how the link stands.

    Of a person's words only those are kept that still stand and wait for a write.
    """
    left, right = (Half(each.record.values, each.base) for each in (row.left, row.right))
    merged = decision.merged
    moved = dict(agreed(ctx.fields(row.kind).types, left, right, merged))
    # Amounts of which no currency is known yet are no fields of the pair so far. Two empty ones agree all the same.
    bare = ctx.bare(row.kind) - ctx.fields(row.kind).types.keys()
    moved |= {name: (None, None) for name in bare if left.now(name) is None and right.now(name) is None}
    state, reason = decision.state, decision.reason
    if decision.operations and state is LinkState.IN_STEP:
        state = LinkState.PENDING
    open_ = {name for name in (*merged.to_left, *merged.to_right, *merged.blocked) if name in answers}
    ctx.store.settle(row, moved, {}, state=state, reason=reason, forget=set(row.settled) - open_)


def _note_conflicts(ctx: Context, row: LinkRow, decision: Decision, alive: tuple[str, str]) -> None:
    waiting: list[str] = []
    for conflict in decision.merged.conflicts:
        if conflict.winner is None:
            waiting.append(conflict.field)
            ctx.store.open_conflict(
                ctx.run_id, row, conflict.field, show(conflict.base), show(conflict.left), show(conflict.right),
                decided=None, winner=None, at=ctx.now(),
            )  # fmt: skip
    if decision.deletion is not None:
        waiting.append("")
        ctx.store.open_conflict(
            ctx.run_id, row, "", None, *alive, decided=None, winner=None, at=ctx.now()
        )  # fmt: skip
    if row.state is LinkState.CONFLICT:
        ctx.store.close_conflicts(row, waiting, ctx.now())
    ctx.report.conflicts[row.kind] += len(waiting)


def _lost(conflict: FieldConflict) -> dict[str, Json]:
    """A conflict that a rule settled, to be kept with the losing value once the write is done."""
    return {
        "field": conflict.field,
        "base": show(conflict.base),
        "left": show(conflict.left),
        "right": show(conflict.right),
        "winner": str(conflict.winner),
        "rule": conflict.rule,
    }


# --- records of one side only -------------------------------------------------------------


def _plan_retired(draft: Draft, kind: str) -> None:
    """Records whose counterpart names others now must go, if the tenant lets deletions pass."""
    ctx = draft.ctx
    for side in Side:
        rule = ctx.rules.kinds[kind].deletes_to(side)
        for record in ctx.store.retired(side, kind):
            if ctx.is_held(side, kind, record.id, record.refs):
                continue
            if rule.value == "archive" and "*" not in record.locked:
                operation = Operation(
                    kind, "delete", side, None, Address(record.id, record.parent), why="its references changed"
                )
                draft.add(operation, record.values, None, record)


def _plan_newcomers(draft: Draft, kind: str) -> None:
    answers = draft.ctx.store.answers(kind)
    for side in Side:
        after = ""
        admission = _Admission(draft.ctx, side, kind)
        while records := draft.ctx.store.unmatched(side, kind, after, CHUNK, admission):
            after = records[-1].id
            _plan_chunk(draft, kind, side, records, answers)


def _plan_chunk(draft: Draft, kind: str, side: Side, records: Sequence[Record], answers: Answers) -> None:
    ctx = draft.ctx
    unlinked = _unlinked_refs(draft, kind, side, records)
    crowded = _crowded(draft, kind, side, records)
    other = ctx.systems[side.other].kind(kind)
    verdicts: dict[str, tuple[str, str]] = {}
    locked = _locked_counterparts(ctx, kind, side, records)
    vocabulary = ctx.vocabulary(kind) if side is Side.LEFT else {}
    # A create stores the mark along; made on the left, its source is marked once there is something to name.
    is_marking = side is Side.RIGHT and ctx.systems[side].kind(kind).can_mark
    usurped = _usurped(ctx, kind, side, records, answers)
    for record in _primary_first(records):
        if answers.stands_alone(side, record.id):
            verdicts[record.id] = ("excluded", KEPT_APART)
            continue
        answer = welcome(
            replace(record, values=for_a_create(ctx, side, record, vocabulary)),
            side,
            ctx.fields(kind),
            ctx.rules.kinds[kind],
            ref_sets=other.ref_sets,
            unlinked_refs=unlinked[record.id],
            is_asked_for=(side, record.id) in answers.made,
        )
        if answer.reason == ERASED and draft.unread.take_newcomer(side, record):
            continue
        if answer.operation is None:
            verdicts[record.id] = ("waiting" if answer.is_waiting else "excluded", answer.reason)
            continue
        if record.id in usurped:
            verdicts[record.id] = usurped[record.id]
            continue
        if (reason := locked.get(record.refs.get("deal", ""))) is not None:
            verdicts[record.id] = ("excluded", reason)
            continue
        if other.one_per is not None and not crowded.admit(record.refs.get(other.one_per)):
            verdicts[record.id] = ("excluded", f"the other system holds one {kind} per {other.one_per}")
            continue
        is_planned = draft.add(answer.operation, {}, record, None)
        if is_planned and is_marking:
            mark = Operation(kind, "mark", side, None, Address(record.id, record.parent), why="its counterpart is made")
            draft.add(mark, {}, None, None)
    ctx.store.shelve(side, kind, verdicts)


def _usurped(
    ctx: Context, kind: str, side: Side, records: Sequence[Record], answers: Answers
) -> dict[str, tuple[str, str]]:
    """Records whose id stands on one of the other side that is not theirs, with the verdict.

    That one is linked to another by now, or kept apart by a person. Made now, they would be taken for it, or
    written over it, since what is made is found by the id that it carries. The verdict leaves them new: they
    are looked at again until the id is gone from there, which for a linked one is ours to do.
    """
    at = 0 if side is Side.LEFT else 1
    ids = {record.id for record in records}
    apart = [pair for pair in answers.never if pair[at] in ids]
    taken = ctx.store.usurpers(kind, ids) if side is Side.LEFT and ctx.systems[Side.RIGHT].kind(kind).can_mark else {}
    named = [pair[1 - at] for pair in apart] + [right_id for _, right_id in taken.values()]
    there = ctx.store.sighted(side.other, kind, named) if named else {}
    return {
        id_: ("new", f"{right_id} carries its id still, though it is linked to {left_id}")
        for id_, (left_id, right_id) in taken.items()
        if right_id in there and not there[right_id].is_deleted
    } | {
        pair[at]: ("new", f"{pair[1 - at]}, from which it is kept apart, carries its id; take it out there")
        for pair in apart
        if pair[1 - at] in there and there[pair[1 - at]].mark == pair[at]
    }


def for_a_create(
    ctx: Context, side: Side, record: Record, vocabulary: Mapping[str, Mapping[str, str]]
) -> Mapping[str, Value]:
    """A newcomer's values as its counterpart on the other side can be given them."""
    bare = ctx.bare(record.kind)
    if bare and ctx.currency is not None:
        if side is Side.RIGHT:
            return priced(Sighted(record, {}), bare, ctx.currency, {}).record.values
        return translated(payable(record.values, bare, ctx.currency), vocabulary)
    return translated(record.values, vocabulary)


def _locked_counterparts(ctx: Context, kind: str, side: Side, records: Sequence[Record]) -> dict[str, str]:
    """Deals of ``side`` whose counterparts take nothing any more, with the reason."""
    if kind != "deal_contact":
        return {}
    there = ctx.store.counterparts("deal", side, {record.refs.get("deal", "") for record in records})
    deals = ctx.store.sighted(side.other, "deal", there.values())
    return {
        id_: f"its deal is {deals[other].locked['*']}"
        for id_, other in there.items()
        if other in deals and "*" in deals[other].locked
    }


def _primary_first(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.values.get("is_primary") is not True)


def _unlinked_refs(draft: Draft, kind: str, side: Side, records: Sequence[Record]) -> dict[str, frozenset[str]]:
    """For each record, the kinds of its references that have no counterpart and get none in this plan."""
    if kind not in RELATIONS:
        return {record.id: frozenset() for record in records}
    wanted: dict[str, set[str]] = {}
    for record in records:
        for ref_kind, ref in record.refs.items():
            wanted.setdefault(ref_kind, set()).add(ref)
    ready: dict[str, set[str]] = {}
    for ref_kind, ids in wanted.items():
        ready[ref_kind] = set(draft.ctx.store.counterparts(ref_kind, side, ids))
        if draft.plan_id is not None:
            ready[ref_kind] |= draft.ctx.store.planned_sources(draft.plan_id, ref_kind, side, ids)
    return {
        record.id: frozenset(kind for kind, ref in record.refs.items() if ref not in ready[kind]) for record in records
    }


@dataclass(slots=True)
class _Crowd:
    """Which references have their one record already."""

    taken: set[str]

    def admit(self, ref: str | None) -> bool:
        if ref is None or ref in self.taken:
            return False
        self.taken.add(ref)
        return True


def _crowded(draft: Draft, kind: str, side: Side, records: Sequence[Record]) -> _Crowd:
    one_per = draft.ctx.systems[side.other].kind(kind).one_per
    if one_per is None:
        return _Crowd(set())
    refs = {record.refs[one_per] for record in records if one_per in record.refs}
    taken = draft.ctx.store.holding(kind, side, one_per, refs)
    if draft.plan_id is not None:
        taken |= draft.ctx.store.planned_refs(draft.plan_id, kind, side, one_per, refs)
    return _Crowd(taken)
