"""The form of a tab that makes videos, made from the class of the settings."""

import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from ...errors import InvalidInputError
from ...runs.settings import RUN_SETTINGS
from ..jobs import DONE
from ..models import Model, list_models
from ..service import FILES, Service, VideoRequest
from .fields import DEPENDENT, Field, settings_of_tab, visible_fields
from .made import copied
from .words import HEADINGS, HELP, LABELS, model_choices

HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How the page's events are set up: they aren't an API, and nothing flickers."""
TABS = {"text": "Text to video", "image": "Image to video", "video": "Video to video"}
"""The tabs that make videos, and their titles."""
EXAMPLES = (
    "a red circle moves right on a white background",
    "a purple triangle moves right on a black background",
)
"""Descriptions for the bundled demo, which knows moving shapes."""
OF_PICTURE = EXAMPLES[1]
"""The description that suits the drawn picture."""
_ABOVE = ("image", "video", "prompt")
_ROWS = (("num_frames", "width", "height"), ("num_inference_steps", "seed"))
IN_SIGHT = (*_ABOVE, *_ROWS[0], *_ROWS[1])
"""Settings that aren't folded away."""
OWNERS = ("extend", "preset", "cache", "tiling")
"""Settings that decide whether others are shown."""


class Form:
    """The fields of a tab. What they hold is in the browser; a form itself holds nothing.

    To fill a form from elsewhere, such as from a gallery, use `fill` with `outputs`::

        button.click(lambda: form.fill(job.about), outputs=form.outputs)

    Attributes:
        tab: `text`, `image` or `video`.
        fields: of each setting that the tab may take, by name.
        filled: changes whenever the form is filled.
        components: the field's component, by name, with `model`, `adapters` and `weights`.
    """

    def __init__(self, service: Service, tab: str):
        """Makes the components in sight; `add_folds` makes the others, and is called once."""
        self.service, self.tab = service, tab
        self.fields = {name: Field(name) for name in settings_of_tab(tab)}
        self.components: dict[str, gr.components.Component] = {}
        self.filled = gr.State(0.0)
        models = self.models()
        self._first = models[0] if models else None
        self._shown = visible_fields(tab, models[0], {}) if models else set()
        self._place(_ABOVE)
        self._place_examples()
        self.components["model"] = gr.Dropdown(
            choices=model_choices(models),
            value=models[0].name if models else None,
            label="Model",
            info="The tab Models has more, and downloads them.",
            elem_id=f"{tab}-model",
            filterable=False,
            interactive=True,
        )
        for names in _ROWS:
            with gr.Row():
                self._place(names)

    def add_folds(self) -> None:
        """Makes the other components: a fold for each group of settings."""
        for group, heading in HEADINGS.items():
            names = [name for name in self.fields if self._folded_in(name, group)]
            if names:
                with gr.Accordion(heading, open=False, elem_id=f"{self.tab}-fold-{group}"):
                    self._place(names)
                    if group == "sampling":
                        self._place_adapters()

    def models(self) -> list[Model]:
        """The models that suit the tab and are on this machine."""
        wants_image = self.tab == "image"
        known = list_models(self.service.home)
        return [m for m in known if m.is_here and m.takes_image == wants_image]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """What `collect` gets the values of."""
        return list(self.components.values())

    @property
    def outputs(self) -> list[gr.components.Component]:
        """What `fill` returns updates for: `inputs`, and `filled`."""
        return [*self.inputs, self.filled]

    def collect(self, values: Sequence[Any]) -> VideoRequest:
        """The request in a form; fields that aren't shown don't count.

        Args:
            values: those of `inputs`, in order.

        Raises:
            InvalidInputError: a value can't be read, or something is missing.
        """
        given = dict(zip(self.components, values, strict=True))
        if not given["model"]:
            raise InvalidInputError("choose a model; the tab Models downloads one")
        model = self.service.model(given["model"])
        shown = visible_fields(self.tab, model, self._owners(given))
        read = {n: field.read(given[n]) for n, field in self.fields.items() if n in shown}
        files = {n: Path(read.pop(n)) for n in FILES if read.get(n) is not None}
        settings = {n: value for n, value in read.items() if value not in (None, "")}
        adapters = _with_weights(given["adapters"] or [], given["weights"] or "")
        return VideoRequest(model=model.name, settings=settings, adapters=adapters, **files)

    def fill(self, about: Mapping[str, Any], sources: Mapping[str, Path] | None = None) -> list:
        """Updates that fill the form, for `outputs`.

        Args:
            about: of a job: `model`, `settings` by name as in a record, `adapters` as pairs of id
                and weight; each may be absent. The first model takes the place of one that isn't
                here; settings that this form hasn't are left out. Without `seed`, the video gets
                another one.
            sources: the picture or the clip, by the name of its setting. They are copied.
        """
        models = self.models()
        model = next((m for m in models if m.name == about.get("model")), (models or [None])[0])
        settings = {n: v for n, v in about.get("settings", {}).items() if n in self.fields}
        shown = set() if model is None else visible_fields(self.tab, model, settings)
        updates: dict[str, dict[str, Any]] = {}
        for n, field in self.fields.items():
            value = settings.get(n, field.default)
            if field.kind == "file":
                value = self._source(n, sources or {})
            more = {} if model is None else field.for_model(model)
            updates[n] = {"value": field.show(value), "visible": n in shown, **more}
        chosen = None if model is None else model.name
        adapters = [(each[0], float(each[1])) for each in about.get("adapters", [])]
        updates["model"] = {"choices": model_choices(models), "value": chosen}
        updates["adapters"] = {"value": [each for each, _ in adapters]}
        updates["weights"] = {"value": ", ".join(f"{weight:g}" for _, weight in adapters)}
        return [*(gr.update(**updates[n]) for n in self.components), time.time()]

    def adapt(self, *values: Any) -> list:
        """Updates, for `dependent`, of what is shown for the chosen model and the owners."""
        given = dict(zip(("model", *self.owners), values, strict=True))
        if not given["model"]:
            return [gr.skip() for _ in self.dependent]
        model = self.service.model(given["model"])
        shown = visible_fields(self.tab, model, self._owners(given))
        return [
            gr.update(visible=name in shown, **self.fields[name].for_model(model))
            for name in self.dependent
        ]

    def refresh(self, chosen: str | None, adapters: list[str] | None) -> list:
        """Updates of the lists of models and adapters, which grow while the page is open."""
        models = self.models()
        names = [model.name for model in models]
        model = chosen if chosen in names else next(iter(names), None)
        known = adapter_choices(self.service)
        kept = [each for each in adapters or [] if each in dict(known).values()]
        return [
            gr.update(choices=model_choices(models), value=model),
            gr.update(choices=known, value=kept, visible=bool(known)),
            gr.update(visible=bool(known)),
        ]

    @property
    def dependent(self) -> list[str]:
        """Names of the fields that change with the model or an owner."""
        return [name for name in DEPENDENT if name in self.fields]

    @property
    def owners(self) -> list[str]:
        """Names of the fields on which it depends whether others are shown."""
        return [name for name in OWNERS if name in self.fields]

    def _owners(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.fields[name].read(given[name]) for name in self.owners}

    def _place_examples(self) -> None:
        if self.tab == "image":
            text = f"Try with a drawn picture: {OF_PICTURE}"
            button = gr.Button(text, size="sm", elem_id="image-example")
            outputs = [self.components["prompt"], self.components["image"]]
            button.click(lambda: (OF_PICTURE, self._drawn()), None, outputs, **HIDDEN)
            return
        with gr.Row():
            for number, text in enumerate(EXAMPLES):
                name = f"{self.tab}-example-{number}"
                button = gr.Button(f"Try: {text}", size="sm", elem_id=name)
                outputs = [self.components["prompt"]]
                button.click(partial(self._example, number), None, outputs, **HIDDEN)

    def _example(self, number: int) -> str:
        return EXAMPLES[number]

    def _drawn(self) -> str:
        """A picture like those that the bundled demo has learned from."""
        picture = Image.new("RGB", (96, 96), "black")
        ImageDraw.Draw(picture).polygon([(24, 30), (8, 62), (40, 62)], fill=(128, 0, 160))
        path = self.service.home.uploads / f"{secrets.token_hex(16)}.png"
        picture.save(path)
        return str(path)

    def _source(self, name: str, sources: Mapping[str, Path]) -> str | None:
        return str(copied(self.service.home, sources[name])) if name in sources else None

    def _place(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.fields:
                made = self.fields[name].component(
                    f"{self.tab}-{name}", self._first, visible=name in self._shown
                )
                self.components[name] = made

    def _folded_in(self, name: str, group: str) -> bool:
        return RUN_SETTINGS[name].group == group and name not in IN_SIGHT

    def _place_adapters(self) -> None:
        known = adapter_choices(self.service)
        self.components["adapters"] = gr.Dropdown(
            choices=known,
            value=[],
            multiselect=True,
            label=LABELS["lora"],
            info=HELP["lora"],
            elem_id=f"{self.tab}-adapters",
            visible=bool(known),
            interactive=True,
        )
        self.components["weights"] = gr.Textbox(
            label="Weights of the adapters",
            info="A number for each, such as 1, 0.5. If empty: 1.",
            elem_id=f"{self.tab}-weights",
            visible=bool(known),
            interactive=True,
        )


def adapter_choices(service: Service) -> list[tuple[str, str]]:
    """Names and ids of the adapters that were trained here, the newest first."""
    done = [job for job in service.store.all() if job.kind == "training" and job.state == DONE]
    return [(_adapter_title(job.about, job.id), job.id) for job in reversed(done)]


def _adapter_title(about: Mapping[str, Any], job_id: str) -> str:
    return str(about.get("title") or about.get("name") or job_id[-6:])


def _with_weights(ids: Sequence[str], weights: str) -> tuple[tuple[str, float], ...]:
    """Adapters with their weights, which are 1 where none are given."""
    try:
        numbers = [float(each) for each in weights.replace(",", " ").split()]
    except ValueError:
        raise InvalidInputError(f"weights must be numbers; got {weights[:80]!r}") from None
    if numbers and len(numbers) != len(ids):
        raise InvalidInputError(f"{len(ids)} adapters need {len(ids)} weights; got {len(numbers)}")
    return tuple(zip(ids, numbers or [1.0] * len(ids), strict=True))
