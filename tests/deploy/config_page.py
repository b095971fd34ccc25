"""docs/config.md, made from the schemas of the two files: ``python -m tests.deploy.config_page > docs/config.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from syncd.config import ServiceConfig, json_schema

Schema = Mapping[str, Any]

HEAD = """\
# Every key

What may stand in a tenant's file and in the service's file, made from the schemas that the files are read by
(`python -m tests.deploy.config_page > docs/config.md`). An unknown key is refused with the nearest known one.
`syncd config check` reads all tenants' files and calls nobody; `syncd config schema` prints their schema for an editor.

`config/tenants/example.yaml.disabled` shows the keys of a tenant in one file, `config/syncd.yaml` those of the service.

A **duration** is a number and its unit: `30s`, `5m`, `1h`, `1d`. A **native** field, value, stage or label is one of
the CRM's own. **-** as a default means: not set.
"""

SERVICE_TAIL = """\
The file is `config/syncd.yaml` below the working directory, and may be left out. It is read at the start. The
environment wins over it:

| variable | over |
|---|---|
| `SYNCD_DATABASE_URL` | `database_url`; the URL itself |
| `SYNCD_DATA_DIR` | `data_dir` |
| `SYNCD_CONFIG` | `tenants`; so does `--config` of every command |
| `SYNCD_LOG_LEVEL` | `log_level`, and what other commands log; so does `--log-level` |
"""

#: What has a table of its own, in the order of the page: its definition, and what it is called.
SECTIONS: Mapping[str, str] = {
    "ConnectionConfig": "The Propstreet account: `propstreet`",
    "PairConfig": "A pair: one of `pairs`",
    "CompanyConfig": "Companies: `kinds.company`",
    "ContactConfig": "Contacts: `kinds.contact`",
    "EmploymentConfig": "Who works where: `kinds.employment`",
    "DealConfig": "Projects and deals: `kinds.deal`",
    "DealContactConfig": "Prospects: `kinds.deal_contact`",
    "FieldConfig": "One field: below `fields`",
    "LimitConfig": "One brake: below `limits`",
    "SecretRef": "A secret: wherever a credential belongs",
}
#: Patterns that the schemas use again and again, in words.
_SHAPES: Mapping[str, str] = {
    "^[1-9][0-9]{0,5}[smhd]$": "duration",
    "^https?://": "URL",
    "^([01][0-9]|2[0-3]):[0-5][0-9]$": "time of day",
}
_FLAG = [True, False, "on", "off", "yes", "no"]


@dataclass(frozen=True, slots=True)
class Row:
    """One key, as the page tells it."""

    key: str
    holds: str
    default: str
    meaning: str

    def __str__(self) -> str:
        return f"| `{self.key}` | {self.holds} | {self.default} | {self.meaning} |"


def page() -> str:
    """The whole of docs/config.md."""
    tenant, service = json_schema(), ServiceConfig.model_json_schema()
    parts = [HEAD, "## A tenant's file\n", _table(tenant, tenant)]
    for name, title in SECTIONS.items():
        model = _object(tenant["$defs"][name])
        parts += [f"## {title}\n", f"{_told(model['description'])}\n", _table(model, tenant)]
    parts += ["## The service's file: `config/syncd.yaml`\n", SERVICE_TAIL, _table(service, service)]
    return "\n".join(parts)


def _table(model: Schema, whole: Schema) -> str:
    head = "| key | holds | default | meaning |\n|---|---|---|---|"
    return "\n".join([head, *map(str, _rows(model, whole)), ""])


def _rows(model: Schema, whole: Schema, above: str = "") -> Iterator[Row]:
    needed = model.get("required", ())
    for name, schema in model["properties"].items():
        inner = _inner(schema, whole)
        if inner is not None:
            if {"type": "null"} in schema.get("anyOf", ()):
                yield Row(f"{above}{name}", "the keys below", "-", _told(schema["description"]))
            yield from _rows(inner, whole, f"{above}{name}.")
            continue
        default = "**required**" if name in needed else _default(schema)
        yield Row(f"{above}{name}", _holds(schema, whole), default, _told(schema["description"]))


def _inner(schema: Schema, whole: Schema) -> Schema | None:
    """The object whose keys are told in the same table, if it is one."""
    name = _only_ref(schema)
    if name is None or name in SECTIONS:
        return None
    found: Schema = whole["$defs"][name]
    return found if "properties" in found else None


def _only_ref(schema: Schema) -> str | None:
    """The one definition that a key refers to, be it there or null."""
    choices = [each for each in schema.get("anyOf", [schema]) if each != {"type": "null"}]
    return choices[0]["$ref"].rpartition("/")[2] if len(choices) == 1 and "$ref" in choices[0] else None


def _object(schema: Schema) -> Schema:
    """The object among the ways in which something may be written."""
    found: Schema = next((each for each in schema.get("anyOf", ()) if "properties" in each), schema)
    return found


def _holds(schema: Schema, whole: Schema) -> str:
    choices = [each for key in ("anyOf", "oneOf") for each in schema.get(key, ()) if each != {"type": "null"}]
    if choices and all("required" not in each for each in choices):
        return " or ".join(dict.fromkeys(_holds(each, whole) for each in choices))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in SECTIONS:
            return f"[keys](#{_anchor(SECTIONS[name])})"
        return "`{when: {FIELD: VALUES}}`" if name == "WhenConfig" else _holds(whole["$defs"][name], whole)
    if "enum" in schema:
        words = schema["enum"]
        if words[: len(_FLAG)] == _FLAG:
            return "true or false"
        return ", ".join(f"`{str(word).lower()}`" for word in words if word is not False)
    if schema.get("type") == "array":
        return f"list of {_holds(schema['items'], whole)}"
    if schema.get("type") == "object":
        return _mapping(schema, whole)
    return _scalar(schema)


def _mapping(schema: Schema, whole: Schema) -> str:
    inner = next(iter(schema.get("patternProperties", {}).values()), None) or schema["additionalProperties"]
    names = schema.get("propertyNames", {}).get("enum")
    told = f"each {_holds(inner, whole)}" if inner else "text"
    return f"{', '.join(f'`{name}`' for name in names)}: {told}" if names else f"names, {told}"


def _scalar(schema: Schema) -> str:
    if schema.get("pattern") in _SHAPES:
        return _SHAPES[schema["pattern"]]
    if isinstance(schema.get("type"), list):
        return "native"
    if schema.get("type") in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        word = "above" if "exclusiveMinimum" in schema else "from"
        most = f" to {schema['maximum']}" if "maximum" in schema else ""
        return f"number {word} {low}{most}" if low is not None else "number"
    return "path" if schema.get("format") == "path" else "text"


def _default(schema: Schema) -> str:
    value = schema.get("default")
    if value in (None, "", {}) or isinstance(value, Mapping):
        return "-"
    if isinstance(value, str) and (found := re.fullmatch(r"P(\d+)([YD])", value)):
        value = f"{int(found[1]) * (365 if found[2] == 'Y' else 1)}d"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _told(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    click.echo(page(), nl=False)
