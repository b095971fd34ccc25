"""The commands that answer why, and those that take a person's answer: explain, conflicts, reviews, resolve, apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from syncd.cli.commands import ANY_TENANT, JSON, PAIR, TENANT, _list, _pairs, _print_json, _service, cli

#: So much of a run's id tells it from others in a table; syncd undo and --json know the rest.
BRIEF: Final = 8

# --- why ----------------------------------------------------------------------------------


@cli.command()
@click.argument("ref", metavar="REF")
@click.argument("field", required=False)
@click.option("--tenant", metavar="TENANT", help="Only records of this tenant.")
@PAIR
@JSON
def explain(ref: str, field: str | None, tenant: str | None, pair: str | None, as_json: bool) -> None:
    """Why a record, or one field of it, is as it is: both sides, what decided, the run, the call, the history.

    REF is an id as the system shows it, with its system and kind where that could be several:
    4711, hubspot:4711, propstreet:88, contact/hubspot:4711.
    """
    from syncd.state import explain as state
    from syncd.state.desk import Scope

    if pair is not None and tenant is None:
        raise click.UsageError("--pair needs --tenant")
    with _service() as service:
        place = state.find(service.engine, Scope(tenant, pair), ref)
        found = state.field(service.engine, place, field) if field else state.record(service.engine, place)
    if as_json:
        _print_json(found)
        return
    for line in _field_story(found) if field else _record_story(found):
        click.echo(line.rstrip())


def _record_story(found: Mapping[str, Any]) -> Iterator[str]:
    yield _title(found)
    yield from _standing(found)
    if found["fields"]:
        yield ""
        blank = [name for name, each in found["fields"].items() if _is_blank(each)]
        told = [
            (name, _told(each["propstreet"]["value"]), _told(each["crm"]["value"]), _base(each), _last(each, found))
            for name, each in found["fields"].items()
            if name not in blank
        ]
        yield from _table(told, ("field", "propstreet", found["pair"], "last agreed", "last written"))
        if blank:
            yield f"  empty on both sides, and never written: {', '.join(blank)}"
    if found["history"]:
        yield ""
        yield "history, the newest last"
        yield from _table([_line(each, found) for each in found["history"]])


def _is_blank(each: Mapping[str, Any]) -> bool:
    """Whether there is nothing to tell of a field: nobody holds anything, and nothing was done with it."""
    held = (each[side][what] for side in ("propstreet", "crm") for what in ("value", "base"))
    return each["last_write"] is None and each["conflict"] is None and all(value is None for value in held)


def _title(found: Mapping[str, Any]) -> str:
    ids = [
        f"{name}:{found[side]}"
        for side, name in (("propstreet", "propstreet"), ("crm", found["pair"]))
        if found[side] is not None
    ]
    return f"{found['kind']}   {' <> '.join(ids)}   {found['tenant']}/{found['pair']}"


def _standing(found: Mapping[str, Any]) -> Iterator[str]:
    """How it stands: linked or not, what it waits for, what a person said."""
    if found["linked"] is not None:
        yield f"  linked since {_time(found['linked']['at'])}, because: {found['linked']['why']}"
    elif found["state"] == "gone":
        yield "  not seen any more; only what was done with it is remembered"
    else:
        yield "  not linked to any record of the other side"
    reason = f": {found['reason']}" if found["reason"] else ""
    yield f"  {found['state'].replace('_', ' ')}{reason}"
    for side, each in found["changed"].items():
        if each["at"] is not None:
            by = f" by user {each['by']}" if each["by"] else ""
            yield f"  last changed in {_name(side, found)} {_time(each['at'])}{by}"
    for side, each in found["inbox"].items():
        what = "was deleted there" if each["is_deleted"] else "holds something that is not in step yet"
        why = f" ({each['reason']})" if each["reason"] else ""
        yield f"  inbox: {_name(side, found)} {what}, seen {_time(each['seen_at'])}{why}"
    for side, each in found["holds"].items():
        yield f"  on hold in {_name(side, found)} since {_time(each['at'])}: {each['reason']}"
    if found["kept_apart_from"]:
        yield f"  kept apart for good from {', '.join(found['kept_apart_from'])}, by a person's word"
    if (review := found["review"]) is not None:
        ids = ", ".join(each["id"] for each in review["candidates"])
        yield f"  review {review['id']}: it may be {ids}; answer with syncd resolve {review['id']}"
    for each in found["conflicts"]:
        if each["settled_at"] is None:
            yield f"  {_clash(each, found)}"


def _clash(each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if each["field"] is None:
        told = f"{each['propstreet_value']} in Propstreet, {each['crm_value']} in {found['pair']}"
        return f"conflict {each['id']}: {told}; syncd resolve {each['id']} propstreet|crm"
    told = f"{_told(each['propstreet_value'])} in Propstreet, {_told(each['crm_value'])} in {found['pair']}"
    return f"conflict {each['id']} in {each['field']}: {told}; syncd resolve {each['id']} propstreet|crm|--value TEXT"


def _field_story(found: Mapping[str, Any]) -> Iterator[str]:
    here, there = found["propstreet"], found["crm"]
    yield f"{found['field']} of {_title({**found, 'propstreet': here['id'], 'crm': there['id']})}"
    yield f"  now: {_told(here['value'])} in Propstreet, {_told(there['value'])} in {found['pair']}"
    yield f"  last agreed: {_base(found)}"
    last = found["last_write"]
    if last is None:
        yield "  syncd never wrote it: each side holds what its own people or systems put there"
    else:
        yield from _write_story(last, found)
    for each in found["conflicts"]:
        if each["settled_at"] is None:
            yield f"  {_clash(each, found)}"
        else:
            yield f"  {_settled(each, found)}"
    if len(found["history"]) > 1:
        yield ""
        yield "history, the newest last"
        yield from _table([_line(each, found) for each in found["history"]])


def _write_story(last: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    from syncd.state.explain import REPLAYED, RULES

    side = _name(last["side"], found)
    yield f"  syncd wrote it to {side} {_time(last['at'])}: {_told(last['old'])} became {_told(last['new'])}"
    now, stored = found[last["side"]]["value"], last["stored"]
    if stored != last["new"]:
        yield f"  {side} accepted that, and then held {_told(stored)}"
    if now != stored:
        yield f"  since then {side} changed it to {_told(now)}"
    yield f"  why: {RULES.get(last['rule'], last['rule']).format(crm=found['pair'])}"
    for name, each in (last["candidates"] or {}).items():
        moved = f"changed from {_told(each['base'])}" if each["changed"] else "unchanged"
        at = f", the record last changed {_time(each['at'])}" if each["at"] else ""
        yield f"    {_name(name, found)} held {_told(each['value'])}, {moved}{at}"
    if last["policy"] is not None:
        yield f"    the rule for this field: {last['policy']['flow']}, in a conflict {last['policy']['conflict']}"
    run, call = last["run"], last["call"]
    reason = f" ({run['reason']}), begun {_time(run['started_at'])}" if run["reason"] else ""
    yield f"  in run {run['id']}{reason}"
    if call["key"] is not None:
        sent = f", sent {_time(call['sent_at'])}, settled {_time(call['settled_at'])}" if call["sent_at"] else ""
        yield f"  by call {call['key']}{sent}"
    yield f"  replayed: {last['replayed']} ({REPLAYED[last['replayed']]})"


def _settled(each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    told = f"{_told(each['propstreet_value'])} in Propstreet, {_told(each['crm_value'])} in {found['pair']}"
    return f"conflict {each['id']}: {told}; {_won({**each, 'pair': found['pair']})} by {each['decided']}"


def _won(each: Mapping[str, Any]) -> str:
    won = {"propstreet": "Propstreet won", "crm": f"{each['pair']} won", "value": "a third value was chosen"}
    return won.get(each["winner"], "nobody won")


def _line(each: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    what = f"{_told(each['old'])} -> {_told(each['new'])}" if each["field"] else ""
    return (
        _time(each["at"]), each["verb"], _name(each["side"], found), each["field"] or "", what, each["rule"],
        f"run {each['run'][:BRIEF]}",
    )  # fmt: skip


def _base(each: Mapping[str, Any]) -> str:
    here, there = each["propstreet"]["base"], each["crm"]["base"]
    return _told(here) if here == there else f"{_told(here)} | {_told(there)}"


def _last(each: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    last = each["last_write"]
    waits = f"conflict {each['conflict']}; " if each["conflict"] else ""
    if last is None:
        return f"{waits}never by syncd"
    return f"{waits}to {_name(last['side'], found)} {_time(last['at'])}, {last['rule']}, run {last['run'][:BRIEF]}"


def _name(side: str, found: Mapping[str, Any]) -> str:
    return "propstreet" if side == "propstreet" else str(found["pair"])


def _told(value: Any) -> str:
    """A value in one line: empty is a word, a set its members."""
    if value is None:
        return "empty"
    if isinstance(value, list):
        return "{" + ", ".join(map(str, value)) + "}"
    return " ".join(str(value).split()) if isinstance(value, str) else str(value).lower()


def _time(moment: str | None) -> str:
    return f"{moment[:10]} {moment[11:19]} UTC" if moment else "-"


def _table(rows: Sequence[tuple[str, ...]], heading: tuple[str, ...] | None = None) -> Iterator[str]:
    """Columns as wide as they must be, so that a terminal, a file and a pipe show the same."""
    shown = [*([heading] if heading else []), *rows]
    widths = [max(len(row[at]) for row in shown) for at in range(len(shown[0]))]
    for row in shown:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))


# --- what waits ---------------------------------------------------------------------------


@cli.command()
@ANY_TENANT
@PAIR
@click.option("--open", "only_open", is_flag=True, help="Only those that wait for a person.")
@JSON
def conflicts(tenant: str | None, pair: str | None, only_open: bool, as_json: bool) -> None:
    """Fields that both sides moved apart: both values, who and when, who decided, and the value that lost."""
    from syncd.state import desk

    with _service() as service:
        rows = desk.conflicts(service.engine, desk.Scope(tenant, pair), only_open=only_open)
        _show_each(rows, _conflict_story, as_json)


def _show_each(
    rows: Iterable[dict[str, Any]], story: Callable[[Mapping[str, Any]], Iterator[str]], as_json: bool
) -> None:
    """A list as JSON, or a few lines for each: values and ids stand whole, which no table has the room for."""
    if as_json:
        _list(rows, as_json, ())
        return
    is_empty = True
    for row in rows:
        is_empty = False
        for line in story(row):
            click.echo(line)
    if is_empty:
        click.echo("none")


def _conflict_story(each: Mapping[str, Any]) -> Iterator[str]:
    yield f"{each['id']}   {_title(each)}"
    if each["field"] is None:
        yield f"  {each['propstreet_value']} in Propstreet, {each['crm_value']} in {each['pair']}"
    else:
        yield f"  {each['field']}   was {_told(each['base'])}"
        for side in ("propstreet", "crm"):
            at, by = each[f"{side}_at"], each[f"{side}_by"]
            since = f", the record last changed {_time(at)}" if at else ""
            yield f"  {_name(side, each)}: {_told(each[f'{side}_value'])}{since}{f' by user {by}' if by else ''}"
    if each["settled_at"] is not None:
        chosen = f": {_told(each['chosen'])}" if each["winner"] == "value" else ""
        yield f"  {_won(each)}{chosen}, by {each['decided']}"
    else:
        third = "" if each["field"] is None else "|--value TEXT"
        yield f"  waits for a person: syncd resolve {each['id']} propstreet|crm{third}"


@cli.command()
@ANY_TENANT
@PAIR
@click.option("--answered", is_flag=True, help="List the answers that were given, kept for good.")
@click.option("--export", "to", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the answers that were given to a file.")  # fmt: skip
@click.option("--import", "source", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False),
              help="Read answers from such a file, after a restore for instance; twice is once.")  # fmt: skip
@JSON
def reviews(
    tenant: str | None, pair: str | None, answered: bool, to: Path | None, source: Path | None, as_json: bool
) -> None:
    """Records whose counterpart a person must name, with the candidates and why each may be it."""
    from syncd.state import answers, desk

    if sum((answered, to is not None, source is not None)) > 1:
        raise click.UsageError("--answered, --export and --import go one at a time")
    with _service() as service:
        scope = desk.Scope(tenant, pair)
        if source is not None:
            new, known = answers.import_(service.engine, source)
            click.echo(f"{new} answers are new, {known} were known; the next run carries them out")
        elif to is not None:
            click.echo(f"{answers.export(service.engine, scope, to)} answers written to {to}")
        elif answered:
            _show_each(answers.answered(service.engine, scope), _answer_story, as_json)
        else:
            _show_each(desk.reviews(service.engine, scope), _review_story, as_json)


def _review_story(each: Mapping[str, Any]) -> Iterator[str]:
    there = each["pair"] if each["crm"] is None else "propstreet"
    yield "   ".join([each["id"], _title(each), *_face(each)])
    for other in each["candidates"]:
        linked = [f"linked to {other['linked_to']}"] if other.get("linked_to") else []
        why = ", ".join([*other.get("reasons", []), *linked])
        yield "   ".join([f"  may be {there}:{other['id']}", *_face(other), why]).rstrip()
    yield f"  syncd resolve {each['id']} same ID|never [ID]|create"


def _answer_story(each: Mapping[str, Any]) -> Iterator[str]:
    sides = [side for side in ("propstreet", "crm") if each.get(side) is not None]
    there = _name("propstreet" if sides == ["crm"] else "crm", each)
    ids = [each["with"]] if each.get("with") else each["candidates"] if each["answer"] in ("never", "apart") else []
    told = " ".join([each["answer"], *(f"{there}:{id_}" for id_ in ids)])
    one = " ".join(f"{_name(side, each)}:{each[side]}" for side in sides)
    where = f"{each['tenant']}/{each['pair']}"
    yield f"{each['id']}   {each['kind']}   {one}   {where}   {_time(each['answered_at'])}   {told}"


def _face(each: Mapping[str, Any]) -> list[str]:
    known = ", ".join(part for part in (each.get("name"), each.get("known_by")) if part)
    return [known] if known else []


# --- a person's answers -------------------------------------------------------------------


@cli.command()
@click.argument("item", metavar="ID")
@click.argument("answer", required=False, type=click.Choice(["propstreet", "crm", "same", "never", "create"]))
@click.argument("candidate", required=False)
@click.option("--value", metavar="TEXT", help="Settle a conflict with a third value, for both sides.")
@click.option("--empty", is_flag=True, help="Settle a conflict by emptying the field on both sides.")
@click.pass_obj
def resolve(folder: Path, item: str, answer: str | None, candidate: str | None, value: str | None, empty: bool) -> None:
    """Settle a conflict (ID like c12) or a review (ID like r3). The next run carries the answer out.

    A conflict: propstreet, crm, or --value TEXT. A review: same CANDIDATE, never [CANDIDATE] (not
    this one, or none of them), create (make a counterpart, whatever it looks like).
    """
    if (answer is not None) + (value is not None) + empty != 1:
        raise click.UsageError("say one thing: propstreet, crm, --value TEXT, --empty, same, never or create")
    if answer == "same" and candidate is None:
        raise click.UsageError("same needs the candidate's id: syncd resolve r3 same 4711")
    if candidate is not None and answer not in ("same", "never"):
        raise click.UsageError(f"{answer or 'a value'} takes no further id")
    from syncd.core.model import Side
    from syncd.state import desk

    with _service() as service:
        if answer in ("same", "never", "create"):
            desk.answer_review(service.engine, item, answer, candidate, service.now())
        elif answer is not None:
            side = Side.LEFT if answer == "propstreet" else Side.RIGHT
            desk.settle_conflict(service.engine, item, side, service.now())
        else:
            chosen = _chosen(service, folder, item, value)
            desk.settle_conflict(service.engine, item, chosen, service.now())
    told = answer or ("empty on both sides" if empty else "the third value for both sides")
    click.echo(f"{item}: {told}; the next run carries it out")


def _chosen(service: Any, folder: Path, item: str, raw: str | None) -> Any:
    """A third value as its field holds it. Raises AnswerError with what the field takes."""
    from syncd.core.mapping import UnfitValueError, typed
    from syncd.core.merge import Chosen
    from syncd.core.model import FIELDS, FieldType
    from syncd.errors import AnswerError
    from syncd.state import desk
    from syncd.wiring import words_of

    row = desk.find_conflict(service.engine, item)
    if raw is None or not row.field:
        return Chosen(None)
    try:
        value = typed(row.kind, row.field, raw)
    except UnfitValueError as exc:
        raise AnswerError(f"{item}: {exc}") from exc
    if FIELDS[row.kind][row.field] is FieldType.ENUMERATION:
        tenant, _, pair = row.pair.partition("/")
        ((t, p),) = _pairs(folder, tenant, pair)
        words = words_of(service, t, p, row.kind, row.field)
        if words is not None and value not in words:
            raise AnswerError(f"{item}: {p.name} takes one of these in {row.field}: {', '.join(words)}")
    return Chosen(value)


@cli.command()
@TENANT
@click.argument("propstreet", metavar="PROPSTREET_ID")
@click.argument("crm", metavar="CRM_ID")
@PAIR
@click.option("--kind", metavar="KIND", help="Their kind, where the ids alone do not tell.")
@click.option("--create", "is_made", is_flag=True, help="Have a counterpart made for each of the two.")
@click.pass_obj
def apart(
    folder: Path, tenant: str, propstreet: str, crm: str, pair: str | None, kind: str | None, is_made: bool
) -> None:
    """Keep two records apart for good; if they are linked, the next run ends that.

    Both records stay as they are. Nothing is made in place of what each loses, unless --create says so.
    """
    from syncd.core.model import KINDS
    from syncd.state import answers

    if kind is not None and kind not in KINDS:
        raise click.UsageError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")
    chosen = _pairs(folder, tenant, pair)
    if len(chosen) > 1:
        raise click.UsageError(f"{tenant} has several pairs; say --pair, one of {', '.join(p.name for _, p in chosen)}")
    ((t, p),) = chosen
    left, right = propstreet.removeprefix("propstreet:"), crm.removeprefix(f"{p.name}:").removeprefix(f"{p.namespace}:")
    with _service() as service:
        of, is_news = answers.keep_apart(
            service.engine, f"{t.tenant}/{p.name}", kind, left, right, service.now(), is_made=is_made
        )
    known = "" if is_news else " (known already)"
    click.echo(f"{of} propstreet:{left} and {p.name}:{right} are kept apart for good{known}; the next run sees to it")
