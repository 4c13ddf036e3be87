"""What the API takes: the fields of requests as settings."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InvalidInputError, did_you_mean
from ..runs.settings import RunSettings
from .refusals import Refusal
from .service import TAKEN, list_length, may_be_one

OWN_FIELDS = ("model", "size", "seconds", "input_reference", "adapters")
FIELDS = (*TAKEN, *OWN_FIELDS)
LONGEST_TEXT = 10_000
"""Characters of a prompt."""
MOST = {"num_frames": 1_001, "extend": 100, "height": 8_192, "width": 8_192, "fps": 1_000}
"""Numbers above which a request is refused at once, whatever the model takes."""
MOST_ADAPTERS = 16
_BEGINNINGS = {
    "the number of frames": "num_frames",
    "there is no model": "model",
    "the model": "model",
    "there is no adapter": "adapters",
    "the uploaded": "input_reference",
    "this model": "input_reference",
}
"""Fields that a message is about which doesn't begin with the field's name."""
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_MOST_DIGITS = 20
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}
_HINTS = {name: get_type_hints(RunSettings)[name] for name in TAKEN}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The fields of a request for a video.

    Attributes:
        model: its name, or None for the default.
        settings: of ``RunSettings``, with their types.
        seconds: how long the video is to be.
        adapters: ids and weights.
        reference: a ``data:`` URL of a picture or clip.
    """

    model: str | None
    settings: dict[str, Any]
    seconds: float | None = None
    adapters: tuple[tuple[str, float], ...] = ()
    reference: str | None = None


def wanted_from_json(body: bytes) -> Wanted:
    """The fields of a request in JSON; raises Refusal."""
    values = read_json(body)
    return _wanted({name: value for name, value in values.items() if value is not None})


def read_json(body: bytes) -> dict[str, Any]:
    """An object in JSON; raises Refusal for anything else."""
    try:
        values = json.loads(body, parse_constant=_no_constant, parse_int=_whole_number)
    except (ValueError, RecursionError):
        raise Refusal(400, "the request isn't JSON", code="bad_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, "the request must be a JSON object", code="bad_json")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _whole_number(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise Refusal(400, f"a number has {len(text)} digits", code="bad_json")
    return int(text)


def wanted_from_form(fields: Mapping[str, list[str]]) -> Wanted:
    """The fields of a multipart form, where all are texts and lists are ``name[]``."""
    values: dict[str, Any] = {}
    for field, texts in fields.items():
        name, bracket, inner = field.partition("[")
        if name == "input_reference" and inner == "image_url]":
            value: Any = {"image_url": _only(name, texts)}
        elif bracket and inner != "]":
            raise _unknown(field)
        elif bracket:
            value = texts
        else:
            value = _only(name, texts)
        if name in values:
            raise Refusal(400, f"{name[:80]} is given twice", param=name[:80])
        values[name] = value
    typed = {name: _from_text(name, value) for name, value in values.items()}
    return _wanted({name: value for name, value in typed.items() if value is not None})


def _only(name: str, texts: list[str]) -> str:
    if len(texts) > 1:
        raise Refusal(400, f"{name[:80]} is given twice", param=name[:80])
    return texts[0]


def _from_text(name: str, value: Any) -> Any:
    """A field of a form as the type of its setting; a text that is no such value stays one."""
    if isinstance(value, list):
        return [_from_text(name, each) for each in value]
    if name not in _HINTS or not isinstance(value, str):
        return value
    kinds = _kinds(name)
    if str not in kinds and not value:
        return None
    if bool in kinds and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    for kind in (int, float):
        if kind in kinds and len(value) <= _MOST_DIGITS:
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _kinds(name: str) -> set[type]:
    """The types that a setting, or each value of its list, may have."""
    members = set()
    for member in get_args(_HINTS[name]) or (_HINTS[name],):
        members |= set(get_args(member)) if get_origin(member) is tuple else {member}
    return members - {NoneType}


def _wanted(values: dict[str, Any]) -> Wanted:
    for name in values:
        if name not in FIELDS:
            raise _unknown(name)
    if not isinstance(values.get("prompt"), str) or not values["prompt"].strip():
        raise Refusal(400, "prompt must say what the video shows", param="prompt")
    settings = {name: values[name] for name in TAKEN if name in values} | _size(values)
    for name, value in settings.items():
        _check(name, value)
    try:
        checked = RunSettings(**settings)
    except InvalidInputError as error:
        raise wrong_setting(error) from None
    model = values.get("model")
    if model is not None and not isinstance(model, str):
        raise Refusal(400, "model must be a text", param="model")
    return Wanted(
        model=model,
        settings={name: getattr(checked, name) for name in settings},
        seconds=_seconds(values),
        adapters=_adapters(values.get("adapters", [])),
        reference=_reference(values.get("input_reference")),
    )


def wrong_setting(error: InvalidInputError) -> Refusal:
    """The refusal of a request whose settings can't be; their messages begin with the name."""
    words = str(error)
    param = next((name for start, name in _BEGINNINGS.items() if words.startswith(start)), None)
    first = words.partition(" ")[0]
    return Refusal(400, words, param=first if first in FIELDS else param)


def _unknown(name: str) -> Refusal:
    problem = f"unknown field {name[:80]!r}{did_you_mean(name[:80], FIELDS)}"
    return Refusal(400, problem, param=name[:80], code="unknown_field")


def _check(name: str, value: Any) -> None:
    """Raises Refusal for what the class of settings doesn't check."""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            problem = f"{name} has {len(value)} characters: at most {LONGEST_TEXT} are taken"
            raise Refusal(400, problem, param=name)
        if "\0" in value or not _is_unicode(value):
            raise Refusal(400, f"{name} must be Unicode text without NUL", param=name)
    if not _has_its_form(name, value):
        length = list_length(name)
        what = f"a list of {length} numbers" if length else "one value"
        raise Refusal(400, f"{name} must be {what}", param=name)
    if str in _kinds(name) and not isinstance(value, tuple(_kinds(name) & {str, bool})):
        raise Refusal(400, f"{name} must be a text", param=name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value > MOST.get(name, value):
        raise Refusal(400, f"{name} must be at most {MOST[name]}; got {value:.6g}", param=name)


def _has_its_form(name: str, value: Any) -> bool:
    """Whether a value is a list of the length that its setting has, or one value."""
    length = list_length(name)
    if not isinstance(value, list):
        return length is None or may_be_one(name)
    return length is not None and len(value) == (length or len(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _size(values: Mapping[str, Any]) -> dict[str, int]:
    size = values.get("size")
    if size is None:
        return {}
    found = _SIZE.fullmatch(size) if isinstance(size, str) and size.isascii() else None
    if found is None:
        raise Refusal(400, "size must be WIDTHxHEIGHT in pixels, such as 720x480", param="size")
    if "width" in values or "height" in values:
        raise Refusal(400, "give size, or width and height, but not both", param="size")
    return {"width": int(found[1]), "height": int(found[2])}


def _seconds(values: Mapping[str, Any]) -> float | None:
    seconds = values.get("seconds")
    if seconds is None:
        return None
    try:
        number = float(seconds) if isinstance(seconds, str | int | float) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if isinstance(seconds, bool) or not 0 < number <= 3600:
        raise Refusal(400, "seconds must be a number above 0 and at most 3600", param="seconds")
    if "num_frames" in values:
        raise Refusal(400, "give seconds or num_frames, but not both", param="seconds")
    return number


def _adapters(values: Any) -> tuple[tuple[str, float], ...]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or len(values) > MOST_ADAPTERS:
        raise _bad_adapters()
    return tuple(map(_adapter, values))


def _adapter(value: Any) -> tuple[str, float]:
    if isinstance(value, str):
        name, colon, scale = value.partition(":")
        value = {"id": name, "scale": scale} if colon else {"id": name}
    if not isinstance(value, dict) or not value.keys() <= {"id", "scale"}:
        raise _bad_adapters()
    name, scale = value.get("id"), value.get("scale", 1.0)
    if not isinstance(name, str) or isinstance(scale, bool):
        raise _bad_adapters()
    try:
        number = float(scale)
    except (TypeError, ValueError, OverflowError):
        raise _bad_adapters() from None
    if not abs(number) <= 100:
        raise _bad_adapters()
    return name, number


def _bad_adapters() -> Refusal:
    return Refusal(
        400,
        f"adapters must be a list of at most {MOST_ADAPTERS}, each ID, ID:SCALE or "
        '{"id": ID, "scale": SCALE} with a scale of at most 100',
        param="adapters",
    )


def _reference(value: Any) -> str | None:
    if value is None:
        return None
    url = value.get("image_url") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(url, str):
        problem = 'input_reference must be an uploaded file, or {"image_url": "data:..."}'
        raise Refusal(400, problem, param="input_reference")
    return url


def frames_for(seconds: float, fps: float) -> int:
    """The number of frames, 8N+1 and at least 9, that lasts nearest to so long."""
    return 8 * max(round((seconds * fps - 1) / 8), 1) + 1
