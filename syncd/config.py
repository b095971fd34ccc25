"""Tenant files and the service's file, read strictly into frozen settings; secrets by reference only.

``load`` reads a folder of tenant files. What is wrong in one becomes ``Problem``s, each naming
file, line, path and fix, and leaves the other files alone. What the settings are for is decided
elsewhere: connectors check them against an account, wiring builds the objects.

Scalars stay the text that stands in the file; each key says what it reads. So ``off`` is a word
and not false, the country ``no`` stays Norway, and the pipeline ``0012`` keeps its zeros. No
message and no repr holds a secret, nor anything that was written where a reference belongs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, TypeAlias
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from syncd.core.guard import Limit, Limits
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import FIELDS, KINDS
from syncd.core.plan import KindRules, OnDelete, When
from syncd.errors import ConfigError

FOLDER: Final = Path("config/tenants")
SERVICE_FILE: Final = Path("config/syncd.yaml")

#: What a deal's stage may be in Propstreet, furthest last.
STAGES: Final = ("none", "property_added", "drafting", "published", "verified", "communicated", "won")
#: How far a prospect is, as Propstreet classifies it.
CLASSIFICATIONS: Final = ("not_contacted", "contacted", "interested", "not_interested", "bidder")

Place: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one file. ``path`` is empty where the file as a whole is meant."""

    file: Path
    path: str
    message: str
    fix: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{where}: {self.path}{': ' if self.path else ''}{_sentence(self.message)} {self.fix}"


# --- what is refused, and how it is said -----------------------------------------------------


def _sentence(said: str) -> str:
    return said if said.endswith("?") else f"{said}."


def _refusal(what: str, fix: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "{what}", {"what": what, "fix": fix})


def _refusals(found: Sequence[tuple[Place, str, str]]) -> ValidationError:
    """Several refusals, each at its own place below the value that is being validated."""
    return ValidationError.from_exception_data(
        "config", [InitErrorDetails(type=_refusal(what, fix), loc=loc, input=None) for loc, what, fix in found]
    )


def _shown(text: object) -> str:
    said = str(text)
    return repr(said if len(said) <= 60 else said[:57] + "...")


def _unknown(noun: str, said: object, known: Sequence[str]) -> tuple[str, str]:
    near = difflib.get_close_matches(str(said).lower(), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {noun} {_shown(said)}{hint}", f"Known: {', '.join(known) or 'none'}."


@dataclass(frozen=True, slots=True)
class _OneOf:
    """A text that must be one of the known ones."""

    noun: str
    known: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": list(self.known)}

    def _check(self, said: str) -> str:
        if said not in self.known:
            raise _refusal(*_unknown(self.noun, said, self.known))
        return said


@dataclass(frozen=True, slots=True)
class _Shaped:
    """A text of a given shape. ``is_secretive``: the text itself is not shown when it is refused."""

    pattern: str
    noun: str
    fix: str
    is_secretive: bool = False

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^{self.pattern}$"}

    def _check(self, said: str) -> str:
        if not re.fullmatch(self.pattern, said):
            raise _refusal(f"{'this' if self.is_secretive else _shown(said)} is not {self.noun}", self.fix)
        return said


_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION: Final = r"[1-9][0-9]{0,5}[smhd]"


def _duration(said: object) -> object:
    if isinstance(said, timedelta) or said is None:
        return said
    text = str(said)
    if re.fullmatch(_DURATION, text):
        return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})
    if re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise _refusal(f"{text} has no unit", f"Write {text}s, {text}m, {text}h or {text}d.")
    if isinstance(said, str | int | float):
        raise _refusal(f"{_shown(text)} is not a duration", "Write a number and its unit: 30s, 5m, 1h or 1d.")
    return said


def _url(said: str) -> str:
    fix = "Write it like https://api.example.com."
    try:
        parts = urlsplit(said)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if "@" in said:
        raise _refusal("a URL must not carry a user or a password", "Put credentials under auth, by reference.")
    if not is_url or re.search(r"[\s\\]", said):
        raise _refusal("this is not an http or https URL", fix)
    if parts.query or parts.fragment:
        raise _refusal("a base URL has no query and no fragment", fix)
    return said.rstrip("/")


def _listed(said: object) -> object:
    return (said,) if isinstance(said, str) else said


def _switch(said: object) -> object:
    """A kind may be switched off by a word; nothing at all, or on, means its defaults."""
    word = said.lower() if isinstance(said, str) else said
    if word in ("off", "false", "no", False):
        return None
    if word in ("on", "true", "yes", True, None):
        return {}
    if isinstance(word, str):
        raise _refusal(f"{_shown(said)} says nothing about a kind", "Write off, or keys below it.")
    return said


_NATIVE: Final[JsonSchemaValue] = {"type": ["string", "number", "boolean"]}
_MANY: Final[JsonSchemaValue] = {"anyOf": [_NATIVE, {"type": "array", "items": _NATIVE, "minItems": 1}]}
_SOME_STAGES: Final[JsonSchemaValue] = {
    "anyOf": [{"enum": list(STAGES)}, {"type": "array", "items": {"enum": list(STAGES)}, "minItems": 1}]
}
_WORDS: Final[JsonSchemaValue] = {"enum": [True, False, "on", "off", "yes", "no"]}

Flag: TypeAlias = Annotated[bool, WithJsonSchema(_WORDS)]
Filled: TypeAlias = Annotated[str, Field(min_length=1)]
FilledNative: TypeAlias = Annotated[str, Field(min_length=1), WithJsonSchema(_NATIVE)]
Native: TypeAlias = Annotated[str, WithJsonSchema(_NATIVE)]
Natives: TypeAlias = Annotated[tuple[Native, ...], Field(min_length=1), BeforeValidator(_listed), WithJsonSchema(_MANY)]
Conditions: TypeAlias = Annotated[Mapping[Filled, Natives], Field(min_length=1)]
Duration: TypeAlias = Annotated[
    timedelta, BeforeValidator(_duration), WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$"})
]
Url: TypeAlias = Annotated[str, AfterValidator(_url), WithJsonSchema({"type": "string", "pattern": "^https?://"})]
Stage: TypeAlias = Annotated[str, _OneOf("Propstreet stage", STAGES)]
Stages: TypeAlias = Annotated[
    tuple[Stage, ...], Field(min_length=1), BeforeValidator(_listed), WithJsonSchema(_SOME_STAGES)
]
Classification: TypeAlias = Annotated[str, _OneOf("classification", CLASSIFICATIONS)]
CompanyField: TypeAlias = Annotated[str, _OneOf("field of company", tuple(FIELDS["company"]))]
ContactField: TypeAlias = Annotated[str, _OneOf("field of contact", tuple(FIELDS["contact"]))]
EmploymentField: TypeAlias = Annotated[str, _OneOf("field of employment", tuple(FIELDS["employment"]))]
DealField: TypeAlias = Annotated[str, _OneOf("field of deal", tuple(FIELDS["deal"]))]
DealContactField: TypeAlias = Annotated[str, _OneOf("field of deal_contact", tuple(FIELDS["deal_contact"]))]

_NAME: Final = _Shaped(r"[a-z0-9][a-z0-9-]{0,62}", "a name", "Use a-z, 0-9 and -, at most 63, like nordhaus.")
_PAIR: Final = _Shaped(r"[a-z0-9][a-z0-9_-]{0,62}", "a name", "Use a-z, 0-9, - and _, at most 63, like hubspot.")
_SPACE: Final = _Shaped(r"[a-z0-9_-]{1,50}", "a namespace", "Use a-z, 0-9, - and _, at most 50, like hubspot.")
_ENTRY: Final = _Shaped(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "the name of a connector", "Write hubspot, salesforce or another one installed."
)
_KEY: Final = _Shaped(r"[a-z][a-z0-9_]{0,31}", "the name of a credential", "Write it like client_id.", True)
_VARIABLE: Final = r"[A-Za-z_][A-Za-z0-9_]{0,127}"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


# --- secrets ---------------------------------------------------------------------------------

#: Usual names of credentials; any other name may be a secret in the wrong place.
_CREDENTIALS: Final = frozenset(
    "client_id client_secret token access_token refresh_token username password private_key api_key".split()
)
_INLINE: Final = ("a secret must not stand in the file", "Write {env: NAME} or {file: PATH}.")


class SecretRef(_Strict):
    """Where a secret is kept: an environment variable or a file. Read anew each time, never stored."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["env"]}, {"required": ["file"]}]})

    env: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_VARIABLE}$"})] = Field(
        default="", description="The environment variable that holds the secret."
    )
    file: Annotated[str, WithJsonSchema({"type": "string", "minLength": 1})] = Field(
        default="", description="The file that holds the secret; a relative path starts at the working directory."
    )
    _origin: tuple[Path, str, int | None] = PrivateAttr(default=(Path(), "", None))

    @model_validator(mode="before")
    @classmethod
    def _is_reference(cls, said: object) -> object:
        if said is None or isinstance(said, cls):
            return said
        if not isinstance(said, Mapping):
            raise _refusal(*_INLINE)
        for key in said:
            if key not in ("env", "file"):
                near = difflib.get_close_matches(str(key), ("env", "file"), n=1)
                hint = f" {_shown(key)}; did you mean {near[0]!r}?" if near else ""
                raise _refusal(f"unknown key{hint}", _INLINE[1])
        if len(said) != 1:
            raise _refusal("a secret has one place, an environment variable or a file", _INLINE[1])
        key, place = next(iter(said.items()))
        if not isinstance(place, str) or not place.strip():
            raise _refusal(f"{key} names nothing", _INLINE[1])
        if key == "env" and not re.fullmatch(_VARIABLE, place):
            raise _refusal("this is not the name of an environment variable", _INLINE[1])
        return said

    def read(self) -> str:
        """The secret as it is now, without the line break at its end. Raises ConfigError naming its place."""
        found = self._look()
        if isinstance(found, Problem):
            raise ConfigError(str(found))
        return found

    def problem(self) -> Problem | None:
        """Why it cannot be read now, if so."""
        found = self._look()
        return found if isinstance(found, Problem) else None

    def _look(self) -> str | Problem:
        if self.env:
            text, lack, fix = os.environ.get(self.env), "is not set", "Set it where syncd runs."
            name = f"the environment variable {self.env}"
        else:
            text, lack, fix = None, "is not there", "Create it, readable by syncd."
            name = f"the file {self.file}"
            try:
                text = Path(self.file).read_text(encoding="utf-8")
            except FileNotFoundError:
                pass
            except OSError as exc:
                lack = f"cannot be read ({exc.strerror})"
            except ValueError:
                lack, fix = "is not text in UTF-8", "Write the secret as text."
        if text is not None and text.strip():
            return text.rstrip("\r\n")
        if text is not None:
            lack, fix = "is empty", "Put the secret there."
        file, path, line = self._origin
        return Problem(file, path, f"{name} {lack}", fix, line)


# --- what a tenant's file says ---------------------------------------------------------------


class WebhooksConfig(_Strict):
    """What proves this connection's webhooks; without it none are taken."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["secret"]}, {"required": ["secrets"]}]})

    secret: SecretRef | None = Field(
        default=None,
        description="Where the secret is kept. Propstreet: whsec_..., written there by syncd webhooks register. "
        "HubSpot: the app's client secret. Salesforce: at least 32 characters that you made up.",
    )
    secrets: tuple[SecretRef, ...] = Field(
        default=(), description="Several, the newest first, while one takes the other's place."
    )

    @model_validator(mode="after")
    def _has_one(self) -> WebhooksConfig:
        if (self.secret is None) == (not self.secrets):
            raise _refusal("webhooks need either a secret or secrets", "Write secret: {file: PATH}.")
        return self

    @property
    def refs(self) -> tuple[SecretRef, ...]:
        """All of them, the newest first."""
        return self.secrets if self.secret is None else (self.secret,)


class ConnectionConfig(_Strict):
    """A tenant's account at one system."""

    base_url: Url | None = Field(default=None, description="Where its API is; by default the vendor's own address.")
    login_url: Url | None = Field(
        default=None, description="The host that issues tokens, where it is another one (Salesforce: My Domain)."
    )
    auth: Mapping[Annotated[str, _KEY], SecretRef] = Field(
        default={},
        description="Credentials by name, each {env: NAME} or {file: PATH}. Propstreet: client_id and client_secret, "
        "or token. HubSpot: access_token, or client_id, client_secret and refresh_token. Salesforce: client_id and "
        "client_secret, or client_id, username and private_key.",
    )
    options: Mapping[str, Native] = Field(default={}, description="What else the connector's README names, as text.")
    webhooks: WebhooksConfig | None = Field(
        default=None, description="What proves its webhooks (docs/webhooks.md). Default: none are taken."
    )


class WhenConfig(_Strict):
    """A condition on native CRM fields."""

    when: Conditions = Field(description="Native CRM fields, each with the value or the values that admit a record.")


def _kind_of_answer(said: object) -> str:
    return "<when>" if isinstance(said, Mapping | WhenConfig) else "<flag>"


InPropstreet: TypeAlias = Annotated[
    Annotated[Flag, Tag("<flag>")] | Annotated[WhenConfig, Tag("<when>")], Discriminator(_kind_of_answer)
]


class CreateConfig(_Strict):
    """Where a record that has no counterpart gets one."""

    in_crm: Flag = Field(default=True, description="Create in the CRM what is new in Propstreet.")
    in_propstreet: InPropstreet = Field(
        default=True,
        description="Create in Propstreet what is new in the CRM: true, false, or {when: {FIELD: VALUES}}.",
    )


class DealCreateConfig(CreateConfig):
    """Deals become projects only where the tenant says so."""

    in_propstreet: InPropstreet = Field(
        default=False,
        description="Create a project for a new deal of the CRM: true, false, or {when: {FIELD: VALUES}}.",
    )


class DeletesConfig(_Strict):
    """What a deletion on one side does to the other."""

    to_crm: OnDelete = Field(
        default=OnDelete.HOLD,
        description="After a deletion in Propstreet: archive in the CRM, hold for a person, ignore.",
    )
    to_propstreet: OnDelete = Field(
        default=OnDelete.HOLD,
        description="After a deletion in the CRM: archive in Propstreet, hold for a person, ignore.",
    )


class RelationDeletesConfig(DeletesConfig):
    """An association is cheap to make again, so it follows Propstreet."""

    to_crm: OnDelete = Field(
        default=OnDelete.ARCHIVE,
        description="After a deletion in Propstreet: archive in the CRM, hold for a person, ignore.",
    )


class FieldConfig(_Strict):
    """How one field is synced; a policy alone may stand in its place."""

    policy: Flow = Field(
        default=Flow.BOTH, description="Where values may travel: both, to_crm, to_propstreet, if_empty, off."
    )
    conflict: OnConflict | None = Field(
        default=None, description="Who wins when both sides moved: newest, propstreet, crm, hold. Default: the kind's."
    )
    crm_field: Filled | None = Field(default=None, description="The CRM's native field, instead of the usual one.")
    values: Mapping[str, Native] = Field(
        default={}, description="Canonical value to the CRM's value, instead of the usual table."
    )

    @model_validator(mode="before")
    @classmethod
    def _policy_alone(cls, said: object) -> object:
        if isinstance(said, str):
            return {"policy": "off" if said in ("false", "no") else said}
        return said

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": [*(flow.value for flow in Flow), False]}, handler(schema)]}


_FIELDS_SAID: Final = "Per field both, to_crm, to_propstreet, if_empty, off, or keys of its own."
#: Keys that only one kind has.
_ONLY_FOR: Final = {"pipeline": "deal", "stages": "deal", "labels": "deal_contact"}


def _for_editors(kind: str) -> ConfigDict:
    """A schema with the keys and the fields of this kind only."""

    def refine(schema: JsonSchemaValue) -> None:
        keys = schema["properties"]
        for key, owner in _ONLY_FOR.items():
            if owner != kind:
                del keys[key]
        keys["fields"]["propertyNames"] = {"enum": list(FIELDS[kind])}
        if "labels" in keys:
            keys["labels"]["anyOf"][0]["propertyNames"] = {"enum": list(CLASSIFICATIONS)}

    return ConfigDict(json_schema_extra=refine)


class KindConfig(_Strict):
    """What a tenant wants of one kind. Keys that belong to another kind are None here and refused in a file."""

    kind: ClassVar[str] = ""

    create: CreateConfig = Field(default=CreateConfig(), description="Where a record without counterpart gets one.")
    deletes: DeletesConfig = Field(default=DeletesConfig(), description="What a deletion does to the other side.")
    only_when: Conditions | None = Field(
        default=None, description="Sync only what meets this: native CRM fields, each with a value or values."
    )
    conflict: OnConflict = Field(
        default=OnConflict.NEWEST, description="Who wins when both sides moved a field: newest, propstreet, crm, hold."
    )
    settle: Duration | None = Field(
        default=None,
        description="How long a record must have been quiet before its changes travel, so that nothing half-typed "
        "does: 30s, 5m. One that is edited for ever waits ten times as long at most. Default: not at all.",
    )
    fields: Mapping[str, FieldConfig] = Field(default={}, description=_FIELDS_SAID)
    defaults: Mapping[Filled, Native] = Field(
        default={}, description="Native CRM fields to set when a record is created there, and to what."
    )
    pipeline: FilledNative | None = Field(
        default=None, description="Sync only deals of this pipeline (id or label) and create new ones in it."
    )
    stages: Mapping[Filled, Stages] | None = Field(
        default=None,
        description="CRM stage (id or label) to the Propstreet stages it stands for. Default: the connector's.",
    )
    labels: Mapping[Classification, FilledNative] | None = Field(
        default=None, description="Classification of a prospect to the CRM's label or role for it."
    )

    @field_validator(*_ONLY_FOR, mode="before")
    @classmethod
    def _belongs_here(cls, said: object, info: ValidationInfo) -> object:
        owner = _ONLY_FOR[str(info.field_name)]
        if cls.kind != owner:
            raise _refusal(f"{info.field_name} is for {owner} only", f"Move it to kinds.{owner}.")
        return said

    @field_validator("stages", "labels")
    @classmethod
    def _read_back_as_one(cls, said: Mapping[str, tuple[str, ...] | str] | None) -> object:
        """Stages and labels are read both ways, so no word may stand under two others."""
        first: dict[str, str] = {}
        found: list[tuple[Place, str, str]] = []
        for key, words in (said or {}).items():
            for word in words if isinstance(words, tuple) else (words,):
                folded = word.strip().casefold()
                if folded in first:
                    what = f"{_shown(word)} stands under {_shown(first[folded])} already"
                    found.append(((key,), what, "Keep it under one of them."))
                first.setdefault(folded, key)
        if found:
            raise _refusals(found)
        return said

    def meanings(self) -> dict[str, str]:
        """By field that is synced a digest of what the file says of its meaning: where it goes, and in which words."""
        found: dict[str, str] = {}
        for name in FIELDS[self.kind]:
            choice = self.fields.get(name, FieldConfig())
            said: list[object] = [choice.policy.value, choice.crm_field, dict(choice.values)]
            if (self.kind, name) == ("deal", "stage"):
                said += [self.pipeline, dict(self.stages or {})]
            if (self.kind, name) == ("deal_contact", "classification"):
                said.append(dict(self.labels or {}))
            if choice.policy is not Flow.OFF:
                found[name] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        return found

    def watched(self) -> tuple[str, ...]:
        """The native CRM fields that the tenant's filters ask about."""
        asked = self.create.in_propstreet
        return tuple(sorted({*(self.only_when or {}), *(asked.when if isinstance(asked, WhenConfig) else {})}))

    def rules(self) -> KindRules:
        """The same as the planner takes it."""
        asked = self.create.in_propstreet
        when = When(dict(asked.when)) if isinstance(asked, WhenConfig) else When() if asked else None
        return KindRules(
            create_in_left=when,
            create_in_right=self.create.in_crm,
            deletes_to_left=self.deletes.to_propstreet,
            deletes_to_right=self.deletes.to_crm,
            scope=When(dict(self.only_when or {})),
            policies={name: Policy(each.policy, each.conflict or self.conflict) for name, each in self.fields.items()},
            default=Policy(conflict=self.conflict),
            settle_seconds=self.settle.total_seconds() if self.settle is not None else 0.0,
        )


class CompanyConfig(KindConfig):
    """Companies."""

    model_config = _for_editors("company")
    kind = "company"
    fields: Mapping[CompanyField, FieldConfig] = Field(default={}, description=_FIELDS_SAID)


class ContactConfig(KindConfig):
    """Contacts."""

    model_config = _for_editors("contact")
    kind = "contact"
    fields: Mapping[ContactField, FieldConfig] = Field(default={}, description=_FIELDS_SAID)


class EmploymentConfig(KindConfig):
    """Who works where."""

    model_config = _for_editors("employment")
    kind = "employment"
    deletes: RelationDeletesConfig = Field(
        default=RelationDeletesConfig(), description="What a deletion does to the other side."
    )
    fields: Mapping[EmploymentField, FieldConfig] = Field(default={}, description=_FIELDS_SAID)


class DealConfig(KindConfig):
    """Projects and deals."""

    model_config = _for_editors("deal")
    kind = "deal"
    create: DealCreateConfig = Field(
        default=DealCreateConfig(), description="Where a deal without counterpart gets one."
    )
    fields: Mapping[DealField, FieldConfig] = Field(default={}, description=_FIELDS_SAID)


class DealContactConfig(KindConfig):
    """Prospects: who is offered a deal."""

    model_config = _for_editors("deal_contact")
    kind = "deal_contact"
    deletes: RelationDeletesConfig = Field(
        default=RelationDeletesConfig(), description="What a deletion does to the other side."
    )
    fields: Mapping[DealContactField, FieldConfig] = Field(default={}, description=_FIELDS_SAID)


class KindsConfig(_Strict):
    """The kinds, each with settings of its own or off (None)."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _show_switches(schema))

    company: Annotated[CompanyConfig | None, BeforeValidator(_switch)] = Field(
        default=CompanyConfig(), description="Companies: settings, or off."
    )
    contact: Annotated[ContactConfig | None, BeforeValidator(_switch)] = Field(
        default=ContactConfig(), description="Contacts: settings, or off."
    )
    employment: Annotated[EmploymentConfig | None, BeforeValidator(_switch)] = Field(
        default=EmploymentConfig(), description="Who works where: settings, or off."
    )
    deal: Annotated[DealConfig | None, BeforeValidator(_switch)] = Field(
        default=DealConfig(), description="Projects and deals: settings, or off."
    )
    deal_contact: Annotated[DealContactConfig | None, BeforeValidator(_switch)] = Field(
        default=DealContactConfig(), description="Prospects, who is offered a deal: settings, or off."
    )


def _show_switches(schema: JsonSchemaValue) -> None:
    for kind in KINDS:
        choices = schema["properties"][kind]["anyOf"]
        choices[choices.index({"type": "null"})] = {"enum": [*_WORDS["enum"], None]}


class LimitConfig(_Strict):
    """One brake: at most ``floor`` or ``share`` of what is linked, whichever is more."""

    floor: int | None = Field(default=None, ge=0, description="So many are always allowed.")
    share: float | None = Field(
        default=None, ge=0, le=1, allow_inf_nan=False, description="This share of what is linked is allowed, 0 to 1."
    )

    def over(self, usual: Limit) -> Limit:
        return Limit(
            usual.floor if self.floor is None else self.floor, usual.share if self.share is None else self.share
        )


_USUAL: Final = Limits()


def _brake(what: str, usual: Limit) -> LimitConfig:
    said = f"{what} Default: floor {usual.floor}, share {usual.share}."
    found: LimitConfig = Field(default=LimitConfig(), description=said)
    return found


class LimitsConfig(_Strict):
    """The brakes of a pair, as far as they are not the usual ones."""

    deletes: LimitConfig = _brake("Deletions in one run, per kind and side.", _USUAL.deletes)
    deletes_in_a_day: LimitConfig = _brake(
        "Deletions within 24 hours that no person said yes to, per kind and side. What a run may, a day may: "
        "where it is not set, it grows with a higher limit of deletes.",
        _USUAL.deletes_in_a_day,
    )
    creates: LimitConfig = _brake("Creations in one run, per kind and side.", _USUAL.creates)
    blankings: LimitConfig = _brake("Records of which a run empties fields.", _USUAL.blankings)
    one_field: LimitConfig = _brake("Records on which a run changes one and the same field.", _USUAL.one_field)
    vanished: LimitConfig = _brake("Known records that a listing lacks.", _USUAL.vanished)


def _clock_time(said: object) -> object:
    """Hours and minutes as minutes after midnight."""
    text = str(said)
    if isinstance(said, str) and re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", text):
        return int(text[:2]) * 60 + int(text[3:])
    if isinstance(said, str):
        raise _refusal(f"{_shown(text)} is not a time of day", 'Write it like "22:00".')
    return said


def _time_zone(said: str) -> str:
    try:
        ZoneInfo(said)
    except (KeyError, ValueError, OSError):
        raise _refusal(f"{_shown(said)} is not a time zone", "Write it like Europe/Stockholm.") from None
    return said


ClockTime: TypeAlias = Annotated[
    int, BeforeValidator(_clock_time), WithJsonSchema({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"})
]


class QuietConfig(_Strict):
    """Hours of each day in which no scheduled run begins. What moves meanwhile travels afterwards."""

    since: ClockTime = Field(description='When they begin, by the clock of time_zone: "22:00".')
    until: ClockTime = Field(description='When they end: "06:00". Before since, it is on the next day.')
    time_zone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC", description="Whose clock: Europe/Stockholm."
    )

    def covers(self, at: datetime) -> bool:
        """Whether an instant is within them."""
        here = at.astimezone(ZoneInfo(self.time_zone))
        minute = here.hour * 60 + here.minute
        if self.since <= self.until:
            return self.since <= minute < self.until
        return minute >= self.since or minute < self.until


class PairConfig(ConnectionConfig):
    """A CRM connection, and what is synced with it."""

    connector: Annotated[str, _ENTRY] = Field(description="The connector by name: hubspot, salesforce.")
    name: Annotated[str, _PAIR] = Field(
        default_factory=lambda said: _fit(said["connector"], 63),
        description="What the pair is called, unique in the tenant. Default: the connector's name.",
    )
    namespace: Annotated[str, _SPACE] = Field(
        default_factory=lambda said: _fit(said["connector"], 50),
        description="How Propstreet's externalRefs name this CRM. Default: the connector's name. Keep it for good.",
    )
    every: Duration = Field(
        default=timedelta(seconds=30),
        description="How often to look for changes: 30s, 5m, 1h, 1d.",
        json_schema_extra={"default": "30s"},
    )
    quiet: QuietConfig | None = Field(
        default=None, description="Hours in which no scheduled run begins: since, until, time_zone. Default: none."
    )
    share_of_quota: float = Field(
        default=0.6,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the vendors' quotas syncd may use, 0 to 1.",
    )
    visits: int = Field(
        default=300, ge=1, description="Quiet projects to visit for their prospects in one run, at most."
    )
    choices: KindsConfig = Field(
        default=KindsConfig(), alias="kinds", description="The kinds to sync; one that is not named has its defaults."
    )
    limits: LimitsConfig = Field(
        default=LimitsConfig(), description="The brakes: beyond them a run waits for a person."
    )

    @property
    def kinds(self) -> Mapping[str, KindConfig]:
        """The kinds that are on, parents before children."""
        found: dict[str, KindConfig | None] = {kind: getattr(self.choices, kind) for kind in KINDS}
        return {kind: config for kind, config in found.items() if config is not None}


def _fit(name: str, length: int) -> str:
    return re.sub(r"[^a-z0-9_-]", "-", name.lower())[:length]


class AuditConfig(_Strict):
    """How often both sides are compared with what is remembered of them, in the background."""

    enabled: Flag = Field(default=True, description="Whether to audit this tenant in the background at all.")
    every: Duration = Field(
        default=timedelta(days=7),
        description="How often each kind of each pair has its turn: 12h, 7d.",
        json_schema_extra={"default": "7d"},
    )
    share: float = Field(
        default=0.05,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the vendors' quotas an audit may use beside the runs, 0 to 1.",
    )


class TenantConfig(_Strict):
    """One tenant: its Propstreet account and its pairs."""

    tenant: Annotated[str, _NAME] = Field(
        description="What the tenant is called, unique over all files. Default: the file's name without its ending."
    )
    enabled: Flag = Field(default=True, description="Whether to sync this tenant at all.")
    propstreet: ConnectionConfig = Field(description="The tenant's Propstreet account, with an auth block.")
    pairs: tuple[PairConfig, ...] = Field(
        min_length=1, description="The CRMs to keep in step with it, each with a connector and an auth block."
    )
    compare_every: Duration = Field(
        default=timedelta(hours=24),
        description="How often to compare both sides in full, for what no listing of changes shows: 6h, 1d.",
        json_schema_extra={"default": "24h"},
    )
    audit: AuditConfig = Field(
        default=AuditConfig(), description="The audit in the background; syncd audit does the same at once."
    )
    _file: Path = PrivateAttr(default=Path())

    @field_validator("pairs")
    @classmethod
    def _told_apart(cls, said: tuple[PairConfig, ...]) -> tuple[PairConfig, ...]:
        found: list[tuple[Place, str, str]] = []
        for index, pair in enumerate(said):
            if pair.namespace == "propstreet":
                fix = "Set namespace to the CRM's name, like hubspot."
                found.append(((index, "namespace"), "the namespace propstreet is Propstreet's own", fix))
            for before, other in enumerate(said[:index]):
                for key, mine, theirs in (
                    ("name", pair.name, other.name),
                    ("namespace", pair.namespace, other.namespace),
                ):
                    if mine == theirs:
                        what = f"pairs[{before}] has the {key} {_shown(mine)} too"
                        found.append(((index, key), what, f"Give one of them a {key} of its own."))
        if found:
            raise _refusals(found)
        return said

    @property
    def file(self) -> Path:
        """The file that it was read from."""
        return self._file

    def rules(self, pair: PairConfig) -> dict[str, KindRules]:
        """What the planner needs of each kind that is on.

        A deal's pipeline is not in its scope: ``pair.kinds["deal"].pipeline`` may be a label, and
        only the account knows its id.
        """
        return {kind: config.rules() for kind, config in pair.kinds.items()}

    def limits(self, pair: PairConfig) -> Limits:
        """The pair's brakes: the usual ones under the tenant's own."""
        own, day = pair.limits, _USUAL.deletes_in_a_day
        deletes = own.deletes.over(_USUAL.deletes)
        return Limits(
            deletes=deletes,
            deletes_in_a_day=own.deletes_in_a_day.over(
                Limit(max(day.floor, deletes.floor), max(day.share, deletes.share))
            ),
            creates=own.creates.over(_USUAL.creates),
            blankings=own.blankings.over(_USUAL.blankings),
            one_field=own.one_field.over(_USUAL.one_field),
            vanished=own.vanished.over(_USUAL.vanished),
        )

    def fingerprint(self, pair: PairConfig) -> str:
        """Changes when, and only when, a setting that is in force for this pair does. Knows no secret."""
        effective = {
            "tenant": self.tenant,
            "compare_every": self.compare_every.total_seconds(),
            "propstreet": self.propstreet.model_dump(mode="json", exclude={"webhooks"}),
            "pair": pair.model_dump(mode="json", exclude={"limits", "quiet", "webhooks"}),
            "limits": asdict(self.limits(pair)),
        }
        return hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()

    def secrets(self) -> Iterator[tuple[Place, SecretRef]]:
        """Every secret that it refers to, and where in the file."""
        for name, ref in self.propstreet.auth.items():
            yield ("propstreet", "auth", name), ref
        for index, pair in enumerate(self.pairs):
            for name, ref in pair.auth.items():
                yield ("pairs", index, "auth", name), ref

    def webhook_secrets(self) -> Iterator[tuple[Place, SecretRef]]:
        """Every secret that proves webhooks. A tenant is synced without them too: Propstreet's is made by a command."""
        connections: list[tuple[Place, ConnectionConfig]] = [(("propstreet",), self.propstreet)]
        connections += [(("pairs", index), pair) for index, pair in enumerate(self.pairs)]
        for place, connection in connections:
            said = connection.webhooks
            for number, ref in enumerate(said.refs if said is not None else ()):
                key = ("secret",) if said is not None and said.secret is not None else ("secrets", number)
                yield (*place, "webhooks", *key), ref


def missing_secrets(tenant: TenantConfig) -> list[Problem]:
    """The secrets that cannot be read now, each with its place in the file; their values stay unread."""
    return [problem for _, ref in tenant.secrets() if (problem := ref.problem()) is not None]


@cache
def json_schema() -> JsonSchemaValue:
    """The JSON Schema of a tenant file, for editors. It is the same for all who ask: leave it as it is."""
    found = TenantConfig.model_json_schema(by_alias=True)
    found["required"] = [key for key in found["required"] if key != "tenant"]
    for model in found["$defs"].values():
        for key in model.get("properties", {}).values():
            if "patternProperties" in key:
                key["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "A tenant of syncd"}


# --- YAML, with the lines that things stand on -----------------------------------------------

_YAML: Final = "tag:yaml.org,2002:"
_PLAIN: Final = frozenset(
    f"{_YAML}{tag}" for tag in ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
)
_MOST_NODES: Final = 20_000
_MOST_BYTES: Final = 1_000_000


@dataclass(slots=True)
class _Document:
    """One YAML file as mappings, tuples of items and text, with the line of each place."""

    file: Path
    data: object = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def refuse(self, place: Place, what: str, fix: str, line: int | None = None) -> None:
        self.problems.append(Problem(self.file, _dotted(place), what, fix, line or self.line(place)))

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest one around it that is in the file."""
        for end in range(len(place), -1, -1):
            if place[:end] in self.lines:
                return self.lines[place[:end]]
        return None

    def build(self, node: yaml.Node, place: Place, above: tuple[int, ...] = ()) -> object:
        """The value of a node. What cannot be read is refused and becomes None."""
        self.lines.setdefault(place, node.start_mark.line + 1)
        self.nodes += 1
        if id(node) in above or self.nodes > _MOST_NODES:
            if self.nodes <= _MOST_NODES + 1:
                self.refuse(place, "aliases (*) make this endless or far too large", "Write it out without aliases.")
            return None
        above = (*above, id(node))
        match node:
            case yaml.MappingNode(tag=tag) if tag == f"{_YAML}map":
                return self._mapping(node, place, above)
            case yaml.SequenceNode(tag=tag) if tag == f"{_YAML}seq":
                return [self.build(each, (*place, index), above) for index, each in enumerate(node.value)]
            case yaml.ScalarNode(tag=tag) if tag in _PLAIN:
                return None if tag == f"{_YAML}null" else str(node.value)
        self.refuse(place, "a YAML tag (!) stands here", "Remove it, or put the text in quotes.")
        return None

    def _mapping(self, node: yaml.MappingNode, place: Place, above: tuple[int, ...]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(place, "a key is not plain text", "Write KEY: VALUE, with text as the key.", line)
                continue
            key = str(key_node.value)
            inside = (*place, key)
            if key in found:
                what = f"the key {_shown(key)} stands here twice, on lines {self.lines[inside]} and {line}"
                self.refuse(inside, what, "Keep one of them.", line)
                continue
            self.lines[inside] = line
            found[key] = self.build(value_node, inside, above)
        return found


def _read(file: Path) -> _Document:
    found = _Document(file)
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8-sig")
        if len(raw) > _MOST_BYTES:
            found.refuse((), f"larger than {_MOST_BYTES} bytes", "A tenant file is a page or two of YAML.")
            return found
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        found.data = {} if node is None else found.build(node, ())
        if not isinstance(found.data, dict) and not found.problems:
            found.refuse((), f"expected keys with values, found {_noun(found.data)}", "Write KEY: VALUE lines.")
    except OSError as exc:
        found.refuse((), f"cannot be read ({exc.strerror})", "Make it readable by syncd.")
    except UnicodeDecodeError:
        found.refuse((), "not text in UTF-8", "Save it as UTF-8.")
    except RecursionError:
        found.refuse((), "nested too deeply", "A tenant file is a page or two of YAML.")
    except yaml.YAMLError as exc:
        _refuse_yaml(found, exc, text)
    return found


def _refuse_yaml(found: _Document, exc: yaml.YAMLError, text: str) -> None:
    """Say where reading stopped and why, without any of the file's own words: they may be a secret."""
    if not isinstance(exc, yaml.MarkedYAMLError):
        position = getattr(exc, "position", 0)
        line = text.count("\n", 0, position) + 1
        found.refuse((), "not readable as YAML: a control character", "Remove it.", line)
        return
    mark = exc.problem_mark or exc.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    said = exc.problem or "unreadable"
    if said.startswith("but ") and exc.context:
        said = f"{exc.context}, {said}"
    problem = re.sub(r"(['\"])(.*?)\1", lambda quoted: quoted[0] if _is_mark(quoted[2]) else "(not shown)", said)
    fix = "Correct the line; put text with special characters in quotes."
    lines = text.splitlines()
    if line < len(lines) and "\t" in lines[line][: column + 1]:
        problem, fix = "a tab", "Use spaces, not tabs."
    found.refuse((), f"not readable as YAML at column {column + 1}: {problem}", fix, line + 1)


def _is_mark(said: str) -> bool:
    """True for punctuation and for the reader's own names of tokens."""
    return len(said) <= 1 or said.startswith("<")


def _dotted(place: Place) -> str:
    said = ""
    for part in place:
        if isinstance(part, int):
            said += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            said += f".{part}" if said else part
        else:
            said += f"[{json.dumps(part[:60], ensure_ascii=False)}]"
    return said


def _noun(said: object) -> str:
    match said:
        case None:
            return "nothing"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "keys with values"
    return "a number"


# --- pydantic's errors in plain words --------------------------------------------------------

_EXPECTED: Final = {
    "string_type": ("text", "Write one text."),
    "bool_type": ("true or false", "Write true or false."),
    "bool_parsing": ("true or false", "Write true or false."),
    "int_type": ("a whole number", "Write a number without a fraction."),
    "int_parsing": ("a whole number", "Write a number without a fraction."),
    "int_from_float": ("a whole number", "Write a number without a fraction."),
    "float_type": ("a number", "Write a number, like 0.6."),
    "float_parsing": ("a number", "Write a number, like 0.6."),
    "finite_number": ("a number", "Write a number, like 0.6."),
    "tuple_type": ("a list", "Write one item per line, each after a dash."),
    "dict_type": ("keys with values", "Write KEY: VALUE lines below it."),
    "mapping_type": ("keys with values", "Write KEY: VALUE lines below it."),
    "model_type": ("keys with values", "Write KEY: VALUE lines below it."),
    "time_delta_type": ("a duration", "Write a number and its unit: 30s, 5m, 1h or 1d."),
}


def _explain(error: ErrorDetails, place: Place, schema: JsonSchemaValue) -> tuple[str, str]:
    """What is wrong at a place, and the fix. Words from the file are shown where no secret can stand."""
    context, said, kind = error.get("ctx", {}), error["input"], error["type"]
    key = place[-1] if place else ""
    is_secretive = bool({"auth", "database_url", "webhooks"} & set(place))
    match kind:
        case "refused":
            return context["what"], context["fix"]
        case "extra_forbidden":
            return _unknown("key", key, sorted(_schema_at(place[:-1], schema).get("properties", {})))
        case "missing":
            meaning = _schema_at(place, schema).get("description", f"{key}: ...")
            return f"{key} is missing", f"Add it: {meaning[0].lower()}{meaning[1:]}"
        case "enum" | "literal_error" if isinstance(said, str) and not is_secretive:
            return _unknown("word", said, re.findall(r"'([^']+)'", context["expected"]))
        case "greater_than" | "greater_than_equal" | "less_than_equal":
            bound = {"gt": "more than", "ge": "at least", "le": "at most"}
            name = next(name for name in bound if name in context)
            return f"{_shown(said)} is out of range", f"Write a number that is {bound[name]} {context[name]:g}."
        case "string_too_short" | "too_short":
            return "is empty", "Name at least one, or leave the key out."
    if said is None:
        return "has no value", "Give it one, or leave the key out."
    wanted, fix = _EXPECTED.get(kind, ("something else", "See config/tenants/example.yaml.disabled."))
    if place and place[-1] == "auth":
        fix = "Write the credentials below it, each NAME: {env: NAME} or NAME: {file: PATH}."
    return f"expected {wanted}, found {_noun(said)}", fix


def _schema_at(place: Place, whole: JsonSchemaValue) -> JsonSchemaValue:
    """The part of a JSON Schema that speaks of a place in the file; empty if none does."""

    def resolved(schema: JsonSchemaValue) -> JsonSchemaValue:
        if "$ref" in schema:
            target = whole["$defs"][schema["$ref"].rpartition("/")[2]]
            schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
        for key in ("anyOf", "oneOf"):
            for choice in schema.get(key, ()):
                if (inner := resolved(choice)).get("type") in ("object", "array"):
                    return {**inner, "description": schema.get("description", inner.get("description", ""))}
        return schema

    found = resolved(whole)
    for part in place:
        if isinstance(part, int):
            step = found.get("items")
        else:
            others = next(iter(found.get("patternProperties", {}).values()), found.get("additionalProperties"))
            step = found.get("properties", {}).get(part, others)
        if not isinstance(step, dict):
            return {}
        found = resolved(step)
    return found


def _place(location: Place, data: object) -> Place:
    """Where in the file pydantic means: without its own marks, and not inside of a text."""
    found: list[str | int] = []
    at = data
    for part in location:
        if isinstance(part, str) and (part == "[key]" or part.startswith("<")):
            continue
        if isinstance(at, Mapping):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            break
        found.append(part)
    return tuple(found)


def _refuse_all(document: _Document, exc: ValidationError, schema: JsonSchemaValue) -> None:
    unreadable = {problem.path for problem in document.problems}
    for error in exc.errors(include_url=False):
        place = _place(error["loc"], document.data)
        is_echo = error["type"] == "too_short" and error["input"]  # Its items were refused, so none are left.
        if is_echo or error["type"] == "default_factory_not_called" or _dotted(place) in unreadable:
            continue
        what, fix = _explain(error, place, schema)
        document.refuse(place[:-1] if _is_telling(place, document.data) else place, what, fix)


def _is_telling(place: Place, data: object) -> bool:
    """True for a key below auth that may be a secret itself: it has no value, or not the shape of a name."""
    if len(place) < 2 or place[-2] != "auth" or place[-1] in _CREDENTIALS:
        return False
    at = data
    for part in place:
        at = at[part] if isinstance(at, Mapping | list) else None  # type: ignore[index]  # the place is in the data
    return at is None or not re.fullmatch(_KEY.pattern, str(place[-1]))


# --- folders and files -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a folder says: the tenants that can be used, by name, and what is wrong with the rest."""

    tenants: tuple[TenantConfig, ...]
    problems: tuple[Problem, ...] = ()

    def require(self, *, is_strict: bool = False) -> Configuration:
        """Itself, if there is a tenant to work for; ``is_strict`` also wants every file right.

        Raises ConfigError with all problems, one per line.
        """
        if self.problems and (is_strict or not self.tenants):
            raise ConfigError("\n".join(str(problem) for problem in self.problems))
        return self

    def tenant(self, name: str) -> TenantConfig:
        """The tenant of this name. Raises ConfigError naming the ones there are, and what is wrong with the rest."""
        for each in self.tenants:
            if each.tenant == name:
                return each
        what, known = _unknown("tenant", name, [each.tenant for each in self.tenants])
        raise ConfigError("\n".join([f"{_sentence(what)} {known}", *(str(problem) for problem in self.problems)]))

    def after(self, last: Configuration) -> Configuration:
        """The same, with the last good tenants of files that are broken now."""
        broken = {problem.file for problem in self.problems}
        names = {each.tenant for each in self.tenants}
        kept = [each for each in last.tenants if each.file in broken and each.tenant not in names]
        return Configuration(_by_name([*self.tenants, *kept]), self.problems)


def load(folder: Path) -> Configuration:
    """Read every tenant file of a folder; a broken one becomes problems and stops no other.

    Hidden files and Kubernetes' ``..data`` are passed over, linked files are read. Of two files
    with one tenant neither is used. Raises ConfigError for a folder that is missing or has no file.
    """
    documents = [_read(file) for file in _files(folder)]
    schema = json_schema()
    found = [tenant for document in documents if (tenant := _tenant(document, schema)) is not None]
    problems = [problem for document in documents for problem in document.problems]
    twins = [each for each in found if sum(other.tenant == each.tenant for other in found) > 1]
    for each in twins:
        others = ", ".join(str(other.file) for other in twins if other.tenant == each.tenant and other is not each)
        what, fix = f"the tenant {each.tenant!r} is also in {others}", "Give one of them another name, or remove it."
        line = next(document for document in documents if document.file == each.file).line(("tenant",))
        problems.append(Problem(each.file, "tenant", what, fix, line))
    usable = [each for each in found if each not in twins]
    return Configuration(_by_name(usable), tuple(sorted(problems, key=lambda each: (str(each.file), each.line or 0))))


def _by_name(tenants: Sequence[TenantConfig]) -> tuple[TenantConfig, ...]:
    return tuple(sorted(tenants, key=lambda each: each.tenant))


def _files(folder: Path) -> list[Path]:
    fix = "Create config/tenants/NAME.yaml (see config/tenants/example.yaml.disabled), or name another folder with "
    fix += "--config DIR or SYNCD_CONFIG."
    try:
        inside = sorted(folder.iterdir())
    except FileNotFoundError:
        raise ConfigError(f"{folder}: there is no such folder of tenants. {fix}") from None
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be read as a folder of tenants ({exc.strerror}). {fix}") from None
    found = [
        file
        for file in inside
        if file.suffix in (".yaml", ".yml") and not file.name.startswith(".") and not file.is_dir()
    ]
    if not found:
        raise ConfigError(f"{folder}: no tenant (*.yaml) in this folder. {fix}")
    return found


def _tenant(document: _Document, schema: JsonSchemaValue) -> TenantConfig | None:
    if not isinstance(document.data, dict):
        return None
    if not document.data:
        document.refuse((), "the file is empty", "Write the tenant's settings into it, or remove it.")
        return None
    try:
        found = TenantConfig.model_validate({"tenant": document.file.stem, **document.data})
    except ValidationError as exc:
        _refuse_all(document, exc, schema)
        return None
    if document.problems:
        return None
    found._file = document.file
    for place, ref in (*found.secrets(), *found.webhook_secrets()):
        ref._origin = (document.file, _dotted(place), document.line(place))
    return found


class RetentionConfig(_Strict):
    """How long what happened is remembered. What is open, and why each value is what it is now, is kept anyway."""

    history: Duration = Field(default=timedelta(days=365), description="Changes and settled conflicts.")
    plans: Duration = Field(default=timedelta(days=30), description="Plans that ended, with their operations.")
    runs: Duration = Field(default=timedelta(days=90), description="Runs that changed nothing which is remembered.")


def _network(said: str) -> str:
    try:
        return str(ip_network(said))
    except ValueError:
        raise _refusal(f"{_shown(said)} is not a network", "Write it like 10.0.0.0/8 or 127.0.0.1/32.") from None


_LABEL: Final = _Shaped(r"[a-z0-9][a-z0-9._-]{0,62}", "a name", "Use a-z, 0-9, ., _ and -, at most 63, like ops.")
_HEADER: Final = _Shaped(r"[A-Za-z][A-Za-z0-9-]{0,62}", "the name of a header", "Write it like X-Forwarded-User.")

Role: TypeAlias = Literal["viewer", "operator"]


class TokenConfig(_Strict):
    """One token that signs somebody on to the operator's page."""

    name: Annotated[str, _LABEL] = Field(description="Whose it is; logs say it for each action.")
    role: Role = Field(default="viewer", description="viewer reads; operator acts too.")
    token: SecretRef = Field(description="Where it is kept; at least 24 characters, say from openssl rand -hex 32.")


class ProxyConfig(_Strict):
    """The cluster's own sign-on: a proxy in front says in headers who it is."""

    trusted: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...], Field(min_length=1), BeforeValidator(_listed)
    ] = Field(description="The proxy's addresses, like 10.0.0.0/8; headers from anywhere else are not believed.")
    user_header: Annotated[str, _HEADER] = Field(
        default="X-Forwarded-User", description="The header with the user's name."
    )
    role_header: Annotated[str, _HEADER] = Field(
        default="X-Forwarded-Groups", description="The header with the user's roles or groups, commas between them."
    )
    roles: Annotated[Mapping[Filled, Role], Field(min_length=1)] = Field(
        default={"viewer": "viewer", "operator": "operator"},
        description="Group: viewer or operator. Whoever is in none of them is not let in.",
    )


class SignOnConfig(_Strict):
    """Who may see the operator's page, and who may act on it. With neither of the two, nobody may."""

    tokens: tuple[TokenConfig, ...] = Field(default=(), description="Tokens, each with a name and a role.")
    proxy: ProxyConfig | None = Field(default=None, description="A proxy in front that signs people on.")


class WebConfig(_Strict):
    """Where the service listens, and what it is called from outside."""

    host: Filled = Field(default="127.0.0.1", description="The address to listen on; 0.0.0.0 in a container.")
    port: int = Field(
        default=8766,
        ge=1,
        le=65535,
        description="The port to listen on; if it is not set and the usual one is taken, a free one.",
    )
    public_url: Url | None = Field(
        default=None, description="How the outside reaches it, https://syncd.example.com: webhooks are sent there."
    )
    sign_on: SignOnConfig = Field(default_factory=SignOnConfig, description="Who may see the operator's page.")


#: What people can be told of.
NOTICES: Final = ("unapproved", "halted", "failing", "refused", "resting", "waiting", "config", "database")
Notice: TypeAlias = Annotated[str, _OneOf("kind of notice", NOTICES)]


class NotifyConfig(_Strict):
    """Somebody who is told when something is the matter and when it is over: a webhook or a program."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["url"]}, {"required": ["command"]}]})

    url: SecretRef | None = Field(
        default=None, description="Where a webhook's URL is kept, {env: NAME} or {file: PATH}: JSON is posted to it."
    )
    command: tuple[Filled, ...] | None = Field(
        default=None,
        min_length=1,
        description="A program and its arguments, run without a shell and with none of syncd's secrets: JSON on stdin.",
    )
    kinds: tuple[Notice, ...] = Field(
        default=NOTICES, min_length=1, description=f"What to tell: {', '.join(NOTICES)}. Default: all."
    )

    @model_validator(mode="after")
    def _has_one_way(self) -> NotifyConfig:
        if (self.url is None) == (self.command is None):
            raise _refusal("a notice goes to a url or to a command", "Write one of the two.")
        return self

    @property
    def name(self) -> str:
        """What it is called in logs: where its URL is kept, never the URL; of a command the program."""
        if self.url is not None:
            return f"url from {self.url.env or self.url.file}"
        return f"command {' '.join((self.command or ())[:1])}"

    @property
    def key(self) -> str:
        """What tells it from the others, and stays the same when only its kinds change."""
        said = self.model_dump_json(exclude={"kinds"})
        return hashlib.sha256(said.encode()).hexdigest()[:16]


class ServiceConfig(_Strict):
    """The service itself, as ``syncd.yaml`` and the environment say. Relative paths start at the working directory."""

    database_url: SecretRef | None = Field(
        default=None, description="Where the PostgreSQL URL is kept: {env: NAME} or {file: PATH}. Default: embedded."
    )
    data_dir: Path | None = Field(default=None, description="Where local data lives. Default: the platform's folder.")
    tenants: Path = Field(default=FOLDER, description="The folder of tenant files.")
    workers: int = Field(default=12, ge=1, le=64, description="How many pairs run at once.")
    grace: Duration = Field(
        default=timedelta(seconds=30),
        description="How long runs in hand may take to settle their last call after SIGTERM.",
        json_schema_extra={"default": "30s"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What syncd serve logs."
    )
    retention: RetentionConfig = Field(default_factory=RetentionConfig, description="How long history is kept.")
    web: WebConfig = Field(default_factory=WebConfig, description="Health, metrics, webhooks, the operator's page.")
    notify: tuple[NotifyConfig, ...] = Field(
        default=(), description="Who is told when something is the matter, and when it is over."
    )


#: Environment variables that win over the file.
_ENVIRONMENT: Final = {"SYNCD_DATA_DIR": "data_dir", "SYNCD_CONFIG": "tenants"}


def load_service(path: Path | None = None) -> ServiceConfig:
    """The service's settings: the environment, over the file, over defaults. Raises ConfigError.

    Without a path, ``config/syncd.yaml`` is read if it is there.
    """
    document = _Document(path or SERVICE_FILE, {})
    if path is not None or SERVICE_FILE.exists():
        document = _read(document.file)
    said = dict(document.data) if isinstance(document.data, dict) else {}
    said |= {key: value for name, key in _ENVIRONMENT.items() if (value := os.environ.get(name))}
    if os.environ.get("SYNCD_DATABASE_URL"):
        said["database_url"] = {"env": "SYNCD_DATABASE_URL"}
    found = ServiceConfig()
    try:
        found = ServiceConfig.model_validate(said)
    except ValidationError as exc:
        _refuse_all(document, exc, ServiceConfig.model_json_schema())
    if document.problems:
        raise ConfigError("\n".join(str(problem) for problem in document.problems))
    if found.database_url is not None:
        found.database_url._origin = (document.file, "database_url", document.line(("database_url",)))
    for index, told in enumerate(found.notify):
        if told.url is not None:
            place: Place = ("notify", index, "url")
            told.url._origin = (document.file, _dotted(place), document.line(place))
    for index, each in enumerate(found.web.sign_on.tokens):
        place = ("web", "sign_on", "tokens", index, "token")
        each.token._origin = (document.file, _dotted(place), document.line(place))
    return found
