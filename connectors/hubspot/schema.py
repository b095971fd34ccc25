"""What one HubSpot account offers: properties, pipeline, labels; and what it lacks.

Everything is read once and kept. ``check`` compares it with the tenant's settings: a setting
that names what is not there is a ConfigError, something that we need and could make is a
Finding, and ``fix`` makes it.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from connectors.hubspot.client import MERGED, Client, ForbiddenError, RefusedError, Row, dig, rows_of
from connectors.hubspot.fields import (
    CORE,
    CURSOR,
    GROUP,
    NATIVE,
    TEASER_LINES,
    TYPES,
    UNIQUE,
    Property,
    Sheet,
    Stages,
    own_properties,
    sheet,
)
from syncd.connector import Account, ConnectionSettings, Finding, KindChoice
from syncd.core.mapping import UnfitValueError, number
from syncd.core.model import FIELDS
from syncd.errors import ConfigError, ContractError, MissingError, RejectedError, UnknownOutcomeError

#: Classifications that a label shows, furthest first: of several, the furthest counts.
SHOWN: Final = ("bidder", "not_interested", "interested", "contacted")
SENT: Final = "teaser sent"
ACCEPTED: Final = "teaser accepted"
PROSPECT: Final = "prospect"

_TEXTS: Final = {
    "contacted": "Contacted",
    "interested": "Interested",
    "not_interested": "Not interested",
    "bidder": "Bidder",
    SENT: "Teaser sent",
    ACCEPTED: "Teaser accepted",
    PROSPECT: "Propstreet prospect",
}

#: The pairs of a deal whose labels we use, by the other side of the pair.
PAIRS: Final = {"contacts": (*SHOWN, SENT, ACCEPTED), "companies": (*SHOWN, SENT, ACCEPTED, PROSPECT)}

_PROPSTREET_STAGES: Final = ("none", "property_added", "drafting", "published", "verified", "communicated", "won")


@dataclass(frozen=True, slots=True)
class Labels:
    """Our labels on one pair of types: meaning -> type id, as far as the account has them."""

    ids: Mapping[str, int]

    @property
    def shows_classification(self) -> bool:
        return all(each in self.ids for each in SHOWN)

    @property
    def shows_prospects(self) -> bool:
        return PROSPECT in self.ids


class Schema:
    """One account's schema, read lazily and once."""

    def __init__(self, client: Client, settings: ConnectionSettings):
        self._client = client
        self._settings = settings
        self._account: Account | None = None
        self._properties: dict[str, dict[str, Property]] = {}
        self._groups: dict[str, set[str]] = {}
        self._stages: Stages | None = None
        self._are_stages_read = False
        self._labels: dict[str, Labels] = {}
        self._sheets: dict[str, Sheet] = {}

    # --- what there is ----------------------------------------------------------------

    def account(self) -> Account:
        if self._account is None:
            row = self._client.account()
            portal, zone, currency = row.get("portalId"), row.get("timeZone"), row.get("companyCurrency")
            if not isinstance(portal, int | str) or isinstance(portal, bool) or not str(portal):
                raise ContractError("HubSpot's account details lack portalId")
            zone = zone if isinstance(zone, str) and zone else "UTC"
            self._client.time_zone = zone
            self._account = Account(
                id=str(portal),
                name=f"HubSpot portal {portal}",
                currency=currency.upper() if isinstance(currency, str) and currency else None,
                time_zone=zone,
            )
        return self._account

    def properties(self, kind: str) -> dict[str, Property]:
        if kind not in self._properties:
            rows = rows_of(self._client.ask("properties", type=TYPES[kind]).body)
            rows = [row for row in rows if row.get("archived") is not True]
            self._properties[kind] = {found.name: found for found in map(_property, rows)}
            self._groups[kind] = {str(row.get("groupName")) for row in rows}
        return self._properties[kind]

    def sheet(self, kind: str) -> Sheet:
        if kind not in self._sheets:
            self._sheets[kind] = sheet(
                kind,
                self.properties(kind),
                self.choice(kind),
                currency=self.account().currency if kind == "deal" else None,
                stages=self.stages() if kind == "deal" else None,
                carries_job_title=kind == "contact",
            )
        return self._sheets[kind]

    def confirm(self, kind: str, absent: Collection[str]) -> None:
        """Make sure that properties which rows leave out are empty, and not gone from the account.

        HubSpot leaves out what it does not know and, if its documentation is right in one place and wrong in
        another, what is empty (contract, 5.2). Raises ConfigError naming the fields whose property is gone.
        """
        known = {
            str(row.get("name"))
            for row in rows_of(self._client.ask("properties", type=TYPES[kind]).body)
            if row.get("archived") is not True
        }
        lost = {native for native in absent if native not in known and native in self.properties(kind)}
        if lost:
            fields = sorted(name for name, slot in self.sheet(kind).slots.items() if slot in lost)
            raise ConfigError(
                f"HubSpot no longer has the {TYPES[kind]} properties {', '.join(sorted(lost))}, which carry "
                f"{kind}: {', '.join(fields) or 'what syncd needs'}. Restore them, or set these fields to off"
            )

    def choice(self, kind: str) -> KindChoice:
        return self._settings.kinds.get(kind, KindChoice())

    def job_title(self) -> Property | None:
        """The contact's property that holds its one job title."""
        return self.properties("contact").get("jobtitle")

    def has_teaser_lines(self) -> bool:
        return TEASER_LINES in self.properties("deal")

    def labels(self, other: str) -> Labels:
        """Our labels from deals to contacts or companies. Their ids differ from portal to portal."""
        if other not in self._labels:
            wanted = self.label_texts(other)
            ids: dict[str, int] = {}
            try:
                rows = rows_of(self._client.ask("labels", one="deals", other=other).body)
            except (ForbiddenError, MissingError):
                # Accounts below Professional have no labels.
                rows = []
            for row in rows:
                text, id_ = row.get("label"), str(row.get("typeId"))
                if row.get("category") != "USER_DEFINED" or not isinstance(text, str) or not id_.isdigit():
                    continue
                for meaning, label in wanted.items():
                    if label.casefold() == text.strip().casefold():
                        ids[meaning] = int(id_)
            self._labels[other] = Labels(ids)
        return self._labels[other]

    def label_texts(self, other: str) -> dict[str, str]:
        chosen = self.choice("deal_contact").labels or {}
        return {meaning: chosen.get(meaning, _TEXTS[meaning]) for meaning in PAIRS[other]}

    # --- stages -----------------------------------------------------------------------

    def stages(self) -> Stages | None:
        """The chosen pipeline's stages; None if the account has no pipeline for deals."""
        if not self._are_stages_read:
            pipelines = rows_of(self._client.ask("pipelines").body)
            alive = [each for each in pipelines if each.get("archived") is not True]
            self._stages = self._read_stages(alive) if alive else None
            self._are_stages_read = True
        return self._stages

    def _read_stages(self, pipelines: list[Row]) -> Stages:
        chosen = self._pipeline(pipelines)
        mine = _sorted([each for each in _stages_of(chosen) if each.get("archived") is not True])
        closed = {str(each.get("id")) for other in pipelines for each in _stages_of(other) if _is_closed(each)}
        is_open = [str(each.get("id")) for each in mine if str(each.get("id")) not in closed]
        won = next((str(each.get("id")) for each in mine if _probability(each) == 1), None)
        set_by_tenant = self.choice("deal").stages
        if set_by_tenant is not None:
            vocabulary = _chosen_vocabulary(set_by_tenant, mine)
        else:
            vocabulary = _usual_vocabulary(is_open, won)
        first = (is_open or [str(each.get("id")) for each in mine] or [""])[0]
        labels = {str(each.get("id")): str(each.get("label")) for each in pipelines}
        return Stages(str(chosen.get("id")), first, vocabulary, frozenset(closed), labels)

    def _pipeline(self, pipelines: list[Row]) -> Row:
        wanted = self.choice("deal").pipeline
        if wanted is None:
            default = next((each for each in pipelines if each.get("id") == "default"), None)
            return default or _sorted(pipelines)[0]
        return _by_id_or_label(wanted, pipelines, "deal.pipeline", "pipeline")

    # --- check and fix ------------------------------------------------------------------

    def check(self) -> list[Finding]:
        self.account()
        findings: list[Finding] = []
        for kind, type_ in TYPES.items():
            try:
                next(self._client.listing(type_, [], limit=1))
                self._check_properties(kind)
                findings += self._missing_properties(kind)
            except ForbiddenError as exc:
                findings.append(_missing_scope(exc, f"crm.objects.{type_}.read", is_required=True))
        self._check_names()
        try:
            if self.stages() is None:
                findings.append(
                    Finding("missing_pipeline", "deals", "create a deal pipeline in HubSpot", is_required=False)
                )
        except ForbiddenError as exc:
            findings.append(_missing_scope(exc, "crm.schemas.deals.read", is_required=True))
        return findings + self._missing_labels()

    def _check_names(self) -> None:
        """Refuse canonical names that do not exist; what is native is compared with the account."""
        for kind, choice in self._settings.kinds.items():
            if kind not in FIELDS:
                continue
            for name in choice.fields:
                if name not in FIELDS[kind]:
                    raise ConfigError(f"{kind}.fields: no field {name!r}{_nearest(name, FIELDS[kind])}")
        for name in self.choice("deal_contact").labels or {}:
            if name not in SHOWN:
                raise ConfigError(f"deal_contact.labels: no classification {name!r}{_nearest(name, SHOWN)}")

    def _check_properties(self, kind: str) -> None:
        choice, known = self.choice(kind), {*self.properties(kind), *CORE[kind], CURSOR[kind], MERGED}
        chosen = {f"fields.{name}.native": each.native for name, each in choice.fields.items() if each.native}
        named = [*chosen.items(), *(("watch", each) for each in choice.watch)]
        for where, native in [*named, *(("defaults", each) for each in choice.defaults)]:
            if native not in known and native not in own_properties(kind):
                raise ConfigError(f"{kind}.{where}: HubSpot has no property {native!r}{_nearest(native, known)}")

    def _missing_properties(self, kind: str) -> list[Finding]:
        known, type_, unique = self.properties(kind), TYPES[kind], UNIQUE[kind]
        findings = []
        if unique not in known:
            findings.append(_missing_property(type_, unique, is_required=True))
        elif not known[unique].is_unique:
            fix = f"delete the property {unique} in HubSpot, or rename it, and run the check with --fix again"
            findings.append(Finding("property_not_unique", f"{type_}.{unique}", fix))
        slots = self.sheet(kind).slots
        chosen = {name for name, each in self.choice(kind).fields.items() if each.native}
        for native in own_properties(kind):
            field = next((name for name in FIELDS[kind] if _feeds(kind, name, native)), None)
            is_served = native in known or native == unique or field in slots or field in chosen
            if not is_served:
                findings.append(_missing_property(type_, native, is_required=False))
        return findings

    def _missing_labels(self) -> list[Finding]:
        findings = []
        for other in PAIRS:
            known = self.labels(other).ids
            for meaning, text in self.label_texts(other).items():
                if meaning not in known:
                    fix = f"create the association label {text!r} between deals and {other} (Professional and up)"
                    # What the tenant's file names must be there; our own suggestions need not.
                    is_chosen = meaning in (self.choice("deal_contact").labels or {})
                    findings.append(Finding("missing_label", f"deals-{other}: {text}", fix, is_chosen, True))
        return findings

    def fix(self, findings: Sequence[Finding]) -> list[Finding]:
        """Create what is missing; returns those of the findings that are still true."""
        for finding in findings:
            if not finding.is_fixable:
                continue
            try:
                if finding.code == "missing_property":
                    self._add_property(*finding.thing.split(".", 1))
                elif finding.code == "missing_label":
                    self._add_label(finding.thing)
            except (RejectedError, ForbiddenError, UnknownOutcomeError):
                # Whether it is there now, the check below tells better than this answer.
                continue
        asked = {(each.code, each.thing) for each in findings}
        self._properties.clear()
        self._labels.clear()
        self._sheets.clear()
        return [replace(each, is_fixable=False) for each in self.check() if (each.code, each.thing) in asked]

    def _add_property(self, type_: str, name: str) -> None:
        kind = next(kind for kind, each in TYPES.items() if each == type_)
        self.properties(kind)
        if GROUP not in self._groups[kind]:
            try:
                self._client.ask("new group", type=type_, body={"name": GROUP, "label": "Propstreet"})
            except RefusedError as exc:
                if exc.status != 409:
                    raise
            self._groups[kind].add(GROUP)
        self._client.ask("new property", type=type_, body=own_properties(kind)[name])

    def _add_label(self, thing: str) -> None:
        pair, text = thing.split(": ", 1)
        other = pair.removeprefix("deals-")
        meaning = next((each for each, label in self.label_texts(other).items() if label == text), None)
        if meaning is None:
            return
        name = f"propstreet_{meaning.replace(' ', '_')}"
        self._client.ask("new label", one="deals", other=other, body={"name": name, "label": text})


# --- reading the schema's rows ------------------------------------------------------------------


def _property(row: Row) -> Property:
    options = row.get("options")
    values = [dig(each, "value") for each in options] if isinstance(options, list) else []
    return Property(
        name=str(row.get("name")),
        type=str(row.get("type")),
        is_writable=not (row.get("calculated") is True or dig(row, "modificationMetadata", "readOnlyValue") is True),
        is_unique=row.get("hasUniqueValue") is True,
        options=frozenset(map(str, values)) if values else None,
    )


def _stages_of(pipeline: Row) -> list[Row]:
    return rows_of(pipeline, "stages", is_required=False)


def _sorted(rows: list[Row]) -> list[Row]:
    def order(row: Row) -> tuple[int, str]:
        raw = row.get("displayOrder")
        return (raw if isinstance(raw, int) else 0, str(row.get("id")))

    return sorted(rows, key=order)


def _probability(stage: Row) -> float | None:
    try:
        found = number(dig(stage, "metadata", "probability"), "probability")
    except UnfitValueError:
        return None
    return float(found) if found is not None else None


def _is_closed(stage: Row) -> bool:
    flag = str(dig(stage, "metadata", "isClosed")).lower() == "true"
    return flag or _probability(stage) in (0.0, 1.0)


def _usual_vocabulary(is_open: Sequence[str], won: str | None) -> dict[str, str]:
    """Propstreet stages spread over a pipeline's open ones: first, middle, the one after it."""
    found = {"won": won} if won is not None else {}
    if is_open:
        middle = len(is_open) // 2
        later = min(middle + 1, len(is_open) - 1)
        for index, stages in (
            (0, ("none", "property_added", "drafting")),
            (middle, ("published", "verified")),
            (later, ("communicated",)),
        ):
            found.update(dict.fromkeys(stages, is_open[index]))
    return found


def _chosen_vocabulary(chosen: Mapping[str, tuple[str, ...]], stages: list[Row]) -> dict[str, str]:
    found: dict[str, str] = {}
    for wanted, meanings in chosen.items():
        id_ = str(_by_id_or_label(wanted, stages, "deal.stages", "stage of this pipeline").get("id"))
        for meaning in meanings:
            if meaning not in _PROPSTREET_STAGES:
                near = _nearest(meaning, _PROPSTREET_STAGES)
                raise ConfigError(f"deal.stages.{wanted}: Propstreet has no stage {meaning!r}{near}")
            found[meaning] = id_
    return found


def _by_id_or_label(wanted: str, rows: list[Row], where: str, noun: str) -> Row:
    by_id = next((row for row in rows if str(row.get("id")) == wanted), None)
    by_label = [row for row in rows if str(row.get("label")).strip().casefold() == wanted.strip().casefold()]
    if by_id is not None:
        return by_id
    if len(by_label) == 1:
        return by_label[0]
    if by_label:
        raise ConfigError(f"{where}: HubSpot has several with the label {wanted!r}; give the id")
    known = [str(row.get(key)) for row in rows for key in ("id", "label")]
    raise ConfigError(f"{where}: HubSpot has no {noun} {wanted!r}{_nearest(wanted, known)}")


def _nearest(wanted: str, known: Iterable[str]) -> str:
    """'; nearest: a, b' or all of a short list."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or (sorted(names) if len(names) <= 24 else [])
    return f"; nearest: {', '.join(near)}" if near else ""


def _feeds(kind: str, name: str, native: str) -> bool:
    return native in NATIVE[kind].get(name, ())


def _missing_property(type_: str, native: str, *, is_required: bool) -> Finding:
    what = "a single-line text property that requires unique values" if is_required else "a property"
    fix = f"create {what} with the internal name {native} on {type_}"
    return Finding("missing_property", f"{type_}.{native}", fix, is_required, True)


def _missing_scope(exc: ForbiddenError, guess: str, *, is_required: bool) -> Finding:
    scopes = " ".join(exc.scopes) or guess
    return Finding("missing_scope", scopes, f"grant {scopes} to the token of this connection", is_required)
