"""The tabs that make videos: a form each, what its video needs, and the button."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ...errors import CogVideoXError, InvalidInputError
from ..service import FILES, Service, VideoRequest
from .fitting import changes_in_words, nearest_that_fits
from .forms import EXAMPLES, HIDDEN, TABS, Form
from .made import copied
from .theme import SPEAKS
from .words import (
    escape,
    memory_in_words,
    place_in_words,
    problem,
    size_in_words,
    time_in_words,
)

_RAW = {**HIDDEN, "preprocess": False}
"""How events that get files are set up: Gradio would open pictures, and knows fewer kinds."""


@dataclass(frozen=True)
class Making:
    """The forms of all tabs, to be filled from elsewhere, such as from a gallery.

    In the function of a button, with `outputs` as its outputs::

        button.click(lambda job_id: making.fill(about_of(job_id)), chosen, making.outputs)

    Attributes:
        service: makes the jobs.
        tabs: those of the page, of which `fill` selects one.
        forms: by the name of the tab.
    """

    service: Service
    tabs: gr.Tabs
    forms: Mapping[str, Form]

    @property
    def outputs(self) -> list:
        """What `fill` returns updates for."""
        return [self.tabs, *(each for form in self.forms.values() for each in form.outputs)]

    def fill(
        self, about: Mapping[str, Any], sources: Mapping[str, Path] | None = None
    ) -> list[Any]:
        """Fills the form that a video was made with, and shows its tab.

        Args:
            about: of a job, or the same from a record: `model`, `settings`, `adapters` and
                `sources`; each may be absent. Leave `seed` out of the settings for another one.
            sources: see `Form.fill`.
        """
        kinds = about.get("sources") or list(sources or ())
        tab = next((each for each in ("image", "video") if each in kinds), "text")
        updates: list[Any] = [gr.Tabs(selected=tab)]
        for name, form in self.forms.items():
            if name == tab:
                updates += form.fill(about, sources)
            else:
                updates += [gr.skip() for _ in form.outputs]
        return updates

    def refresh(self, *values: Any) -> list[Any]:
        """The lists of models and adapters as they are now, for `lists` as in- and outputs."""
        updates = []
        for number, form in enumerate(self.forms.values()):
            updates += form.refresh(*values[3 * number : 3 * number + 2])
        return updates

    @property
    def lists(self) -> list:
        """The fields whose choices grow while the page is open."""
        names = ("model", "adapters", "weights")
        return [form.components[name] for form in self.forms.values() for name in names]


def add_making_tabs(service: Service, blocks: gr.Blocks, tabs: gr.Tabs) -> Making:
    """Adds the tabs to `tabs` of the page `blocks`, within which it has to be called."""
    forms = {}
    for tab, title in TABS.items():
        with gr.Tab(title, id=tab, elem_id=f"tab-{tab}"):
            forms[tab] = _add_tab(service, blocks, tab)
    return Making(service, tabs, forms)


def _add_tab(service: Service, blocks: gr.Blocks, tab: str) -> Form:
    form = Form(service, tab)
    needs = gr.HTML(elem_id=f"{tab}-estimate", elem_classes=["said", "needs"], js_on_load=SPEAKS)
    changes = gr.State(None)
    use = gr.Button("Use what fits", visible=False, elem_id=f"{tab}-use-what-fits")
    said = gr.HTML(elem_id=f"{tab}-said", elem_classes=["said", "answer"], js_on_load=SPEAKS)
    make = gr.Button("Make video", variant="primary", elem_id=f"{tab}-make")
    form.add_folds()

    def estimated(*values: Any) -> tuple[str, Any, dict[str, Any] | None]:
        text, fits = _estimate(form, values)
        return text, gr.update(visible=bool(fits)), fits

    def made(*values: Any) -> str:
        return _make(form, values)

    fields = form.components.values()
    watched = [event for each in fields for event in _watch(each)]
    gr.on(
        [blocks.load, form.filled.change, *watched],
        estimated,
        form.inputs,
        [needs, use, changes],
        trigger_mode="always_last",
        **_RAW,
    )
    changed = [each.change for each in fields]
    gr.on([form.filled.change, use.click, *changed], None, None, said, js="() => ['']", **HIDDEN)
    owners = [form.components[name] for name in ("model", *form.owners)]
    dependent = [form.components[name] for name in form.dependent]
    gr.on([each.change for each in owners], form.adapt, owners, dependent, **HIDDEN)
    names = ("num_frames", "width", "height", "quantize")
    use.click(
        lambda found: [gr.update(value=found[n]) if n in found else gr.skip() for n in names],
        changes,
        [form.components[name] for name in names],
        **HIDDEN,
    ).then(estimated, form.inputs, [needs, use, changes], **_RAW)
    make.click(made, form.inputs, said, **_RAW)
    return form


def _watch(component: gr.components.Component) -> list[Any]:
    """The events of a field after which the estimate is worked out again."""
    if isinstance(component, gr.Textbox):  # not after each letter
        return [component.blur, component.submit]
    return [component.change]


def _estimate(form: Form, values: tuple[Any, ...]) -> tuple[str, dict[str, Any] | None]:
    """What a form's video needs, as HTML, and what to change if it doesn't fit in memory."""
    try:
        request = form.collect(values)
        if (lacks := _lacks_file(form, request)) is not None:
            return f'<p class="quiet">{escape(lacks)}</p>', None
        if "prompt" not in request.settings:  # it isn't written yet
            request = replace(request, settings={**request.settings, "prompt": EXAMPLES[0]})
        found = form.service.estimate(request)
        changes = None if found.fits else nearest_that_fits(form.service, request)
    except CogVideoXError as error:
        return _bad(error, form.service), None
    lines = [
        f"<p><strong>{escape(size_in_words(found))}</strong></p>",
        f'<p class="quiet">{escape(time_in_words(found.seconds))}. '
        f"{escape(memory_in_words(found.memory, found.largest))}.</p>",
    ]
    if not found.fits:
        advice = changes_in_words(changes) if changes else "choose a smaller model"
        lines.append(
            '<p class="bad">It needs more memory than this machine has. '
            f"What fits: {escape(advice)}.</p>"
        )
    home = form.service.home.folder
    lines += [f'<p class="quiet">Note: {escape(problem(w, home))}</p>' for w in found.warnings]
    return "".join(lines), changes


def _lacks_file(form: Form, request: VideoRequest) -> str | None:
    if form.tab == "image" and request.image is None:
        return "Add a picture first."
    if form.tab == "video" and request.video is None:
        return "Add a clip first."
    return None


def _make(form: Form, values: tuple[Any, ...]) -> str:
    """Queues a form's video; returns what to say of it, as HTML."""
    service, copies = form.service, {}
    try:
        request = form.collect(values)
        if (lacks := _lacks_file(form, request)) is not None:
            raise InvalidInputError(lacks)
        if "prompt" not in request.settings:
            raise InvalidInputError("Describe what the video shows first.")
        for name in FILES:
            if (file := getattr(request, name)) is not None:
                copies[name] = copied(service.home, file)
        job = service.add_video(replace(request, **copies))
    except CogVideoXError as error:
        return _bad(error, service)
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)
    where = place_in_words(service.runner, job)
    return f'<p class="well">Your video {where}: <a href="#now">watch it under Now</a>.</p>'


def _bad(error: CogVideoXError, service: Service) -> str:
    return f'<p class="bad">{escape(problem(error, service.home.folder))}</p>'
