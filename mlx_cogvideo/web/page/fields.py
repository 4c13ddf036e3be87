"""One setting as a field of a form: which kind it is, and how its value is read and shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import gradio as gr

from ...checkpoints.packing import BITS
from ...errors import InvalidInputError
from ...pipeline.fields import Setting
from ...runs.settings import RUN_SETTINGS, RunSettings
from ..models import Model
from ..service import SETTINGS, list_length, may_be_one
from .words import default_of, help_of, label_of, lasts

_TYPES = get_type_hints(RunSettings)
_YES, _NO = "yes", "no"
_LINES = {"prompt": 4, "negative_prompt": 2}
_MOST_LENGTHS = 12
"""Numbers of frames in the list; others can be typed."""


@dataclass(frozen=True)
class Field:
    """A setting in a form. An empty field leaves the setting to the model, the machine or chance.

    Attributes:
        name: of the setting.
    """

    name: str

    @property
    def about(self) -> Setting:
        return RUN_SETTINGS[self.name]

    @property
    def default(self) -> Any:
        return RunSettings.__dataclass_fields__[self.name].default

    @property
    def kind(self) -> str:
        """`file`, `length`, `choice`, `truth`, `numbers`, `number` or `text`."""
        kinds = set(get_args(_TYPES[self.name])) or {_TYPES[self.name]}
        if self.name in ("image", "video"):
            return "file"
        if self.name == "num_frames":
            return "length"
        if self.about.choices or self.name == "quantize" or kinds == {bool, type(None)}:
            return "choice"
        if kinds == {bool}:
            return "truth"
        if list_length(self.name) is not None:
            return "numbers"
        return "number" if kinds & {int, float} else "text"

    def component(
        self, elem_id: str, model: Model | None, *, visible: bool
    ) -> gr.components.Component:
        """The field, with its label and help. It has to be made within Blocks."""
        common = {
            "label": label_of(self.name),
            "elem_id": elem_id,
            "visible": visible,
            "interactive": True,
        }
        if self.name == "image":
            return gr.Image(
                type="filepath",
                image_mode=None,  # the file stays as it is
                sources=["upload", "clipboard"],
                height=240,
                **common,
            )
        if self.name == "video":
            return gr.Video(sources=["upload"], height=240, **common)
        common |= {"value": self.show(self.default), "info": help_of(self.name)}
        own = {} if model is None else self.for_model(model)
        match self.kind:
            case "choice":
                return gr.Dropdown(choices=self._choices(), filterable=False, **common)
            case "truth":
                return gr.Checkbox(**common)
            case "length":
                return gr.Dropdown(**{"choices": [], "allow_custom_value": True, **common, **own})
            case "text":
                lines = _LINES[self.name]
                return gr.Textbox(lines=lines, max_lines=12, **common)
            case _:  # a number of Gradio can't be empty, and is exact only up to 2**53
                placeholder = own.get("placeholder") or self._placeholder()
                return gr.Textbox(max_lines=1, placeholder=placeholder, **common)

    def for_model(self, model: Model) -> dict[str, Any]:
        """What of the field depends on the model: what an empty one stands for."""
        match self.name:
            case "num_frames":
                return {"choices": _lengths(model)}
            case "width" | "height" | "fps":
                return {"placeholder": f"{getattr(model, self.name):g}"}
            case _:
                return {}

    def read(self, value: Any) -> Any:
        """The setting in a field's value; None if it is empty.

        Raises:
            InvalidInputError: it is no such value.
        """
        if value is None or value == "" or value == []:
            return None
        match self.kind:
            case "file":
                return value["path"] if isinstance(value, Mapping) else value
            case "choice" if self.name == "quantize":
                return int(value)
            case "choice" if not self.about.choices:
                return value == _YES
            case "numbers":
                numbers = tuple(self._number(each) for each in self._split(value))
                return numbers[0] if may_be_one(self.name) and len(numbers) == 1 else numbers
            case "number" | "length":
                return self._number(str(value).strip())
            case "text" if self.name != "prompt":
                return value
            case "text":
                return value.strip() or None
            case _:
                return value

    def show(self, value: Any) -> Any:
        """What a field has for a setting; the opposite of `read`."""
        about = self.about
        if about.aliases is not None and isinstance(value, str):
            value = about.aliases.get(value, value)
        match self.kind:
            case "choice" if value is None or str(value) == about.if_none:
                return ""
            case "choice" if self.name == "dynamic_cfg":  # records of old versions have truths
                return {False: "constant", True: "wave"}.get(value, value)
            case "choice" if not about.choices and self.name != "quantize":
                return _YES if value else _NO
            case "numbers":
                values = value if isinstance(value, list | tuple) else [value]
                return "" if value is None else ", ".join(f"{each:g}" for each in values)
            case "number" | "length":
                return "" if value is None else str(value)
            case "text":
                return value or ""
            case _:
                return value

    def _choices(self) -> list[tuple[str, Any]]:
        about = self.about
        if self.name == "quantize":
            named: list[tuple[str, Any]] = [(str(bits), bits) for bits in sorted(BITS)]
        else:
            named = [(each, each) for each in about.choices or (_YES, _NO) if each != about.if_none]
        if self.default is None:
            named.insert(0, (default_of(self.name), ""))
        return named

    def _placeholder(self) -> str:
        default = default_of(self.name)
        if isinstance(self.about.metavar, tuple):
            return f"{default} ({', '.join(self.about.metavar).lower()})"
        return default if self.about.if_none else ""

    def _split(self, value: str) -> list[str]:
        parts = value.replace(",", " ").split()
        if len(parts) != (list_length(self.name) or len(parts)):
            raise InvalidInputError(f"{self.name} must be two numbers; got {value[:80]!r}")
        return parts

    def _number(self, text: str) -> int | float:
        for convert in (int, float):
            try:
                return convert(text)
            except ValueError:
                continue
        raise InvalidInputError(f"{self.name} must be a number; got {text[:80]!r}")


def _lengths(model: Model) -> list[tuple[str, str]]:
    """Numbers of frames that a model can make, up to its own, with their time."""
    shorter = range(model.frames - 8, 8, -8)[:_MOST_LENGTHS]
    own = (f"{model.frames} ({lasts(model.frames, model.fps)})", "")
    return [own, *((f"{n} ({lasts(n, model.fps)})", str(n)) for n in shorter)]


_OF_CLIPS = ("video", "video_start", "video_end", "strength")
_ABSENT = {
    "text": (*_OF_CLIPS, "image", "image_fit", "image_latent_scale"),
    "image": _OF_CLIPS,
    "video": ("image", "image_latent_scale", "extend", "overlap"),
}
"""Settings that a tab's videos can't have, whichever model makes them."""
DEPENDENT = (
    *("num_frames", "width", "height", "fps", "image_latent_scale", "overlap"),
    *("source_tiling", "cache", "cache_threshold", "computed_steps", "tile_size", "tile_overlap"),
)
"""Settings whose fields change with the model or with the setting that they belong to."""
BY_ID = "lora"
"""The setting whose field is made by the form: adapters are chosen by id, not by file."""


def settings_of_tab(tab: str) -> list[str]:
    """Names of the settings that the tab `text`, `image` or `video` has fields for."""
    return [name for name in SETTINGS if name not in (*_ABSENT[tab], BY_ID)]


def visible_fields(tab: str, model: Model, values: Mapping[str, Any]) -> set[str]:
    """Names of the settings that a form shows.

    Args:
        tab: `text`, `image` or `video`.
        model: the one that is chosen.
        values: of the settings that others belong to, by name; None or absent where empty.
    """
    extended, preset = bool(values.get("extend")), bool(values.get("preset"))
    hidden = {  # all of them are in DEPENDENT
        "image_latent_scale": not model.scales_picture,
        "width": model.has_one_size,
        "height": model.has_one_size,
        "overlap": not extended,
        "source_tiling": tab == "text" and not extended,
        "cache": preset,
        "cache_threshold": preset or values.get("cache") not in ("teacache", "first-block"),
        "computed_steps": preset or values.get("cache") not in ("latents", "guidance"),
        "tile_size": values.get("tiling") != "tiled",
        "tile_overlap": values.get("tiling") != "tiled",
    }
    return {name for name in settings_of_tab(tab) if not hidden.get(name)}
