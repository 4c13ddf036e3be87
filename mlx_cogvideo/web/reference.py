"""The API's description: OpenAPI, and a page of it that loads nothing from anywhere."""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ..cli.options import option_name
from ..runs.settings import RUN_SETTINGS, RunSettings
from .service import TAKEN, list_length

_NAMES = {option_name(RunSettings, name): name for name in TAKEN} | dict.fromkeys(
    ("--image", "--video"), "input_reference"
)
_OPTION = re.compile(r"--[a-z][a-z-]*")
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_EXAMPLE = {
    "model": "demo",
    "prompt": "a red circle moves right on a white background",
    "size": "96x96",
    "seconds": "2",
    "num_inference_steps": 10,
    "seed": 1,
}
_VIDEO = {
    "id": "video_0f3a5b1c9d2e4f60718293a4",
    "object": "video",
    "model": "demo",
    "status": "in_progress",
    "progress": 42,
    "created_at": 1790000000,
    "completed_at": None,
    "error": None,
    "prompt": _EXAMPLE["prompt"],
    "seconds": "2.125",
    "size": "96x96",
    "state": "running",
    "queue_position": None,
    "stage": "denoise",
    "seconds_left": 31.0,
    "frames": 17,
    "fps": 8,
    "seed": 1,
}
VIDEO: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The video.",
        "content": {"application/json": {"schema": {"type": "object"}, "example": _VIDEO}},
    }
}
"""Responses of calls that answer with a video."""


def _schema_of(name: str, hint: Any) -> dict[str, Any]:
    """What a setting may be, from its type."""
    kinds = []
    for member in get_args(hint) or (hint,):
        if get_origin(member) is tuple:
            items = {"type": _TYPES[get_args(member)[0]]}
            length = list_length(name)
            bounds = {"minItems": length, "maxItems": length} if length else {"minItems": 1}
            kinds.append({"type": "array", "items": items, **bounds})
        elif member in _TYPES:
            kinds.append({"type": _TYPES[member]})
        elif member is not NoneType:
            continue  # what Python's callers alone can give
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _fields() -> dict[str, Any]:
    """The schema of each field of a request for a video."""
    own = {
        "model": ("string", "Name of a model of /v1/models. Default: the first one here."),
        "size": ("string", "WIDTHxHEIGHT in pixels, instead of width and height."),
        "seconds": ("string", "Length, rounded to 8N+1 frames, instead of num_frames."),
        "input_reference": (
            "string",
            "Picture or clip: an uploaded file, or in JSON an object whose image_url is a data: "
            "URL.",
        ),
    }
    fields: dict[str, Any] = {
        name: {"type": kind, "description": text} for name, (kind, text) in own.items()
    }
    fields["adapters"] = {
        "type": "array",
        "items": {"type": "string"},
        "description": "Adapters that were trained here, each ID or ID:SCALE.",
    }
    hints = get_type_hints(RunSettings)
    for name in TAKEN:
        about, kind = RUN_SETTINGS[name], _schema_of(name, hints[name])
        if about.choices and kind.get("type") == "string":
            kind["enum"] = list(about.choices)
        default = "" if about.if_none is None else f" Default: {about.if_none}."
        fields[name] = kind | {"description": _OPTION.sub(_as_field, f"{about.help}{default}")}
    return fields


def _as_field(option: re.Match) -> str:
    """An option of the command, in a help text, as the field of a request."""
    return _NAMES.get(option[0], option[0].removeprefix("--").replace("-", "_"))


def _body(fields: Mapping[str, Any], required: list[str], example: Any, form: bool) -> Any:
    schema = {"type": "object", "properties": dict(fields), "required": required}
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    if form:
        file = {**fields, "input_reference": {"type": "string", "format": "binary"}}
        content["multipart/form-data"] = {"schema": {**schema, "properties": file}}
    return {"requestBody": {"required": True, "content": content}}


CREATE = _body(_fields(), ["prompt"], _EXAMPLE, form=True)
REMIX = _body(_fields(), ["prompt"], {"prompt": "a blue circle moves right"}, form=False)
MOVE = _body(
    {"position": {"type": "integer", "minimum": 1, "description": "1 is the next one."}},
    ["position"],
    {"position": 1},
    form=False,
)

_STYLE = """
body { font: 1rem/1.5 system-ui; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color-scheme: light dark }
pre { overflow: auto; padding: .75rem; border: 1px solid }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
"""Content security policy of the page."""


def reference_page(openapi: Mapping[str, Any]) -> str:
    """The description of the API as HTML."""
    about = openapi["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(about['title'])}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1>",
        f'<p>{escape(about["description"])} <a href="/openapi.json">OpenAPI</a></p>',
    ]
    for path, calls in openapi["paths"].items():
        for method, call in calls.items():
            parts.extend(_call(method.upper(), path, call))
    return "\n".join([*parts, "</main></body></html>"])


def _call(method: str, path: str, call: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method} {escape(path)}</code></h2>"
    yield f"<p>{escape(call.get('description', ''))}</p>"
    rows = [
        (each["name"], each["schema"], each.get("description", ""))
        for each in call.get("parameters", ())
    ]
    body = call.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        fields = body["schema"]["properties"]
        rows += [(name, each, each.get("description", "")) for name, each in fields.items()]
    if rows:
        yield "<table><tr><th>field</th><th>type</th><th>meaning</th></tr>"
        for name, schema, text in rows:
            cells = (f"<code>{escape(name)}</code>", escape(_words(schema)), escape(text))
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        yield "</table>"
    if body is not None:
        yield f"<p>Example:</p><pre>{_shown(body['example'])}</pre>"
    answer = call["responses"].get("200", {}).get("content", {}).get("application/json", {})
    if "example" in answer:
        yield f"<p>Answer:</p><pre>{_shown(answer['example'])}</pre>"


def _words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"] if each.get("type") != "null")
    kind = str(schema.get("type", ""))
    return f"list of {_words(schema['items'])}s" if kind == "array" else kind


def _shown(value: Any) -> str:
    return escape(json.dumps(value, indent=2))
