"""What pages are made of: templates and what they may ask, files whose addresses change with them, forms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from syncd import __version__
from syncd.errors import NotFoundError

LONGEST_FORM: Final = 64 * 1024
_MEDIA: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}


class Paper:
    """The templates and files of this package, and of others that go before it; ``words`` is what templates may ask."""

    def __init__(self, *packages: str, **words: Any):
        every = (*packages, "syncd.web")
        self._files = {
            file.name: (file.read_bytes(), _MEDIA[file.name[file.name.rindex(".") :]])
            for package in every
            for file in files(package).joinpath("static").iterdir()
        }
        self._templates = Environment(
            loader=ChoiceLoader([PackageLoader(package) for package in every]), autoescape=True,
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._templates.globals |= {
            "static": {name: f"/static/{name}?v={_digest(body)[:12]}" for name, (body, _) in self._files.items()},
            "version": __version__, "moment": _moment, "told": _told, "noun": _noun, **words,
        }  # fmt: skip

    def text(self, template: str, **context: Any) -> str:
        return self._templates.get_template(template).render(**context)

    def page(self, request: Request, template: str, **context: Any) -> Response:
        """A page, or that it is the one which the browser has: then nothing on it moves."""
        text = self.text(template, **context)
        etag = f'"{_digest(text.encode())[:32]}"'
        if request.headers.get("if-none-match") == etag:
            return Response(None, 304, {"ETag": etag})
        return Response(text, 200, {"ETag": etag}, media_type="text/html")

    def file(self, name: str) -> Response:
        """A static file, which may be kept for good: its address changes with its content. Raises NotFoundError."""
        known = self._files.get(name)
        if known is None:
            raise NotFoundError("There is no such file.")
        return Response(known[0], media_type=known[1], headers={"Cache-Control": "public, max-age=31536000, immutable"})


async def form(request: Request) -> Mapping[str, str] | None:
    """The fields of a posted form, each once; None if it is too long to be one."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_FORM:
            return None
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20))
    except ValueError:
        return {}


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- what templates ask -------------------------------------------------------------------


def _moment(told: datetime | str) -> str:
    """An instant as a machine and, cut, a person reads it."""
    at = datetime.fromisoformat(told) if isinstance(told, str) else told
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _told(value: Any) -> str:
    """A single value in words; templates show empty ones and lists themselves."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _noun(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
