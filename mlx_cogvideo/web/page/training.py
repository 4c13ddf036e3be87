"""The tab "Fine-tuning": clips in, an adapter out, and how its training goes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from ...errors import CogVideoXError, InvalidInputError
from ..jobs import DONE, FAILED, STOPPED, UnknownJobError
from ..models import list_models
from ..service import Service
from ..trainings import TrainingRequest
from .forms import HIDDEN
from .made import copied
from .making import Making
from .theme import SPEAKS
from .training_parts import frame, list_in_html, needs_in_html, points, training_in_html
from .words import escape, model_choices, place_in_words, problem, short

_EVERY = 2.0
_CHOOSES = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-job]');
  if (button) trigger('click', {job: button.dataset.job});
});
"""
_MAY_BE_EMPTY = {
    "frames": "Length (frames)",
    "width": "Width (pixels)",
    "height": "Height (pixels)",
}
"""Numbers that the model has its own of, and what they are called. A Number can't be empty."""
_LOSS = "Loss after each step, smoothed"
_ENOUGH_POINTS = 20
_INTRODUCTION = """<p>Teach a model a subject or a style from short clips. Four clips are enough to
begin with; ten to fifty are better. Write for each what it shows.</p>"""
_SAMPLES = """
ul, ul li { list-style: none; margin: 0; padding: 0; }
ul.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: .6rem; }
ul.grid li { border: 0; }
"""


def add_tab(service: Service, making: Making) -> None:
    """Adds what the tab holds, within which it has to be called.

    Args:
        making: the forms that "Try the adapter" fills.
    """
    tab = Tab(service, making)
    tab.add_form()
    tab.add_trainings()


class Tab:
    """The tab's parts and what its buttons do. What is chosen is in the browser's session."""

    def __init__(self, service: Service, making: Making):
        self.service, self.making = service, making

    def add_form(self) -> None:
        """Adds what a training is made of, and the button that starts it."""
        models = [model for model in list_models(self.service.home) if model.is_here]
        gr.HTML(_INTRODUCTION, elem_classes="part")
        title = gr.Textbox(
            label="Name", info="What you call the adapter.", elem_id="training-title"
        )
        clips = gr.File(
            label="Clips", file_count="multiple", file_types=["video"], elem_id="training-clips"
        )
        captions = gr.Textbox(
            label="Captions",
            info="What each clip shows: a line for each, in the order of the clips above.",
            lines=4,
            elem_id="training-captions",
        )
        with gr.Row():
            model = gr.Dropdown(
                choices=model_choices(models),
                value=models[0].name if models else None,
                label="Model",
                filterable=False,
                elem_id="training-model",
            )
            steps = _number("Steps", "iters", 1000, "Updates. 500 to 2000 are usual.")
        with gr.Accordion("More", open=False, elem_id="training-fold"):
            more = _more()
        needs = gr.HTML(elem_id="training-needs", elem_classes="said", js_on_load=SPEAKS)
        start = gr.Button("Start fine-tuning", variant="primary", elem_id="training-start")
        said = gr.HTML(elem_id="training-said", elem_classes="said", js_on_load=SPEAKS)
        inputs = [title, clips, captions, model, steps, *more.values()]
        events = [each.change for each in (model, steps, more["quantize"], more["rank"])]
        for name in _MAY_BE_EMPTY:
            events += [more[name].blur, more[name].submit]
        gr.on(events, self.estimate, inputs, needs, trigger_mode="always_last", **HIDDEN)
        start.click(self.start, inputs, [said, clips, captions], **HIDDEN)

    def add_trainings(self) -> None:
        """Adds the trainings that there are, and how the chosen one goes."""
        chosen, drawn = gr.State(""), gr.State(("", "", 0))
        listed = gr.HTML(
            elem_id="training-list",
            elem_classes="part",
            css_template="ul, ul li { list-style: none; margin: 0; padding: .3rem 0; }",
            js_on_load=_CHOOSES,
        )
        with gr.Column(visible=False, elem_id="training-one") as one:
            about = gr.HTML(elem_id="training-about", elem_classes="part", css_template=_SAMPLES)
            plot = gr.LinePlot(
                frame([]),
                x="step",
                y="loss",
                color="of",
                color_title="Loss",
                colors_in_legend=[],
                x_title="Steps",
                y_title="Loss",
                label=_LOSS,
                height=260,
                elem_id="training-loss",
            )
            with gr.Row():
                try_it = gr.Button("Try the adapter", elem_id="training-try")
                stop = gr.Button("Stop", elem_id="training-stop")
                resume = gr.Button("Resume", elem_id="training-resume")
        said = gr.HTML(elem_id="training-done", elem_classes="said", js_on_load=SPEAKS)
        parts = [drawn, listed, one, about, plot, try_it, stop, resume]
        gr.Timer(_EVERY).tick(self.update, [chosen, drawn], parts, queue=False, **HIDDEN)
        listed.click(self.choose, None, [chosen, said], **HIDDEN).then(
            self.update, [chosen, drawn], parts, queue=False, **HIDDEN
        )
        stop.click(lambda name: self._act(self.service.runner.stop, name), chosen, said, **HIDDEN)
        resume.click(
            lambda name: self._act(self.service.runner.resume, name), chosen, said, **HIDDEN
        )
        lists = self.making.lists  # they don't know the newest adapters and models yet
        try_it.click(self.making.refresh, lists, lists, **HIDDEN).then(
            self.try_adapter, chosen, [said, *self.making.outputs], **HIDDEN
        )

    def estimate(self, *values: Any) -> str:
        """What a training needs, as HTML."""
        try:
            return needs_in_html(self.service.estimate_training(_request(values, clips=())))
        except CogVideoXError as error:
            return self._bad(error)

    def start(self, *values: Any) -> list[Any]:
        """Queues a training, for which the uploads are copied."""
        copies: list[Path] = []
        try:
            request = _request(values, clips=_with_captions(values[1] or [], values[2] or ""))
            for path, _ in request.clips:
                copies.append(copied(self.service.home, path))
            captions = [caption for _, caption in request.clips]
            clips = list(zip(copies, captions, strict=True))
            job = self.service.add_training(replace(request, clips=clips))
        except CogVideoXError as error:
            return [self._bad(error), gr.skip(), gr.skip()]
        finally:
            for copy in copies:
                copy.unlink(missing_ok=True)
        title, where = escape(job.about["title"]), place_in_words(self.service.runner, job)
        message = f'<p class="well">“{title}” {where}.</p>'
        return [message, gr.update(value=None), gr.update(value="")]

    def choose(self, event: gr.EventData) -> list[str]:
        return [str(getattr(event, "job", "")), ""]

    def update(self, chosen: str, drawn: Sequence[Any]) -> list[Any]:
        """What has changed of the list and of the chosen training."""
        jobs = [job for job in self.service.store.all() if job.kind == "training"][::-1]
        html = list_in_html(self.service, jobs, chosen)
        job = next((job for job in jobs if job.id == chosen), None)
        if job is None:
            hidden = gr.update(visible=False)
            return [(html, "", 0), _if_new(html, drawn[0]), hidden, *[gr.skip()] * 5]
        about = training_in_html(self.service, job)
        found = points(self.service, job)
        return [
            (html, about, len(found)),
            _if_new(html, drawn[0]),
            gr.update(visible=True),
            _if_new(about, drawn[1]),
            gr.skip() if len(found) == drawn[2] and about == drawn[1] else _plot(found),
            gr.update(interactive=job.state == DONE),
            gr.update(interactive=not job.is_over),
            gr.update(interactive=job.state in (STOPPED, FAILED)),
        ]

    def try_adapter(self, chosen: str) -> list[Any]:
        """Fills the form that makes videos with the adapter and one of its captions."""
        try:
            job = self.service.store.get(chosen)
            self.service.adapter(chosen)
            prompt = next(filter(None, job.about["captions"]), "")
            about = {"model": job.about["model"], "adapters": [(job.id, 1.0)]}
            about |= {"settings": {"prompt": prompt}}
            takes_image = self.service.model(job.about["model"]).takes_image
            about |= {"sources": ["image"]} if takes_image else {}
            updates = self.making.fill(about)
        except CogVideoXError as error:
            return [self._bad(error), *[gr.skip()] * len(self.making.outputs)]
        gr.Info(f"The form has the adapter “{escape(short(job.about['title']))}”.")
        return ["", *updates]

    def _act(self, action: Any, job_id: str) -> str:
        try:
            action(job_id)
        except UnknownJobError:
            return '<p class="quiet">It was removed already.</p>'
        except CogVideoXError as error:
            return self._bad(error)
        return ""

    def _bad(self, error: CogVideoXError) -> str:
        return f'<p class="bad">{escape(problem(error, self.service.home.folder))}</p>'


def _number(label: str, name: str, value: float, info: str | None = None) -> Any:
    return gr.Number(label=label, value=value, info=info, precision=0, elem_id=f"training-{name}")


def _more() -> dict[str, Any]:
    """The fields that are folded, by name."""
    own = "If empty: the model's own."
    fields: dict[str, Any] = {}
    with gr.Row():
        infos = (f"8N+1. {own}", own, own)
        for name, info in zip(_MAY_BE_EMPTY, infos, strict=True):
            label = _MAY_BE_EMPTY[name]
            fields[name] = gr.Textbox(label=label, info=info, elem_id=f"training-{name}")
    with gr.Row():
        fields["rank"] = _number("Rank", "rank", 64, "A higher one learns more, and needs more.")
        fields["learning_rate"] = gr.Textbox(
            label="Learning rate", value="0.0001", elem_id="training-rate"
        )
        fields["quantize"] = gr.Dropdown(
            choices=[("as it is stored", 0), ("8 bits", 8), ("4 bits", 4)],
            value=0,
            label="Quantize the model",
            info="Needs less memory.",
            filterable=False,
            elem_id="training-quantize",
        )
        fields["save_every"] = _number(
            "Save every (steps)", "save", 100, "After a crash it goes on from there."
        )
    with gr.Row():
        fields["sample_prompt"] = gr.Textbox(
            label="Sample video",
            info="What a video shows that is made during the training. If empty: none.",
            elem_id="training-sample",
        )
        fields["sample_every"] = _number("Sample every (steps)", "sample-every", 250)
        fields["sample_steps"] = _number("Steps of a sample", "sample-steps", 25)
    return fields


def _request(values: Sequence[Any], clips: Sequence[tuple[Path, str]]) -> TrainingRequest:
    """The request in the form's values, in the order of its fields."""
    names = ("frames", "width", "height", "rank", "rate", "quantize", "save_every")
    names += ("sample_prompt", "sample_every", "sample_steps")
    title, _, _, model, steps, *rest = values
    given = dict(zip(names, rest, strict=True))
    if not model:
        raise InvalidInputError("choose a model; the tab Models downloads one")
    try:
        rate = float(given["rate"]) if str(given["rate"] or "").strip() else None
    except ValueError:
        raise InvalidInputError("the learning rate must be a number, such as 0.0001") from None
    return TrainingRequest(
        title=title or "",
        model=model,
        clips=clips,
        settings={"iters": steps, "rank": given["rank"], "learning_rate": rate},
        **{name: _whole(given[name], label) for name, label in _MAY_BE_EMPTY.items()},
        quantize=given["quantize"] or None,
        save_every=given["save_every"] or 100,
        sample_prompt=given["sample_prompt"] or "",
        sample_every=given["sample_every"] or 0,
        sample_steps=given["sample_steps"] or 25,
    )


def _whole(text: str | None, label: str) -> int | None:
    try:
        return int(text) if text and text.strip() else None
    except ValueError:
        raise InvalidInputError(f"“{label}” must be a whole number; got {text[:80]!r}") from None


def _with_captions(files: Sequence[str], captions: str) -> list[tuple[Path, str]]:
    lines = [line for line in captions.splitlines() if line.strip()]
    if not files:
        raise InvalidInputError("add the clips first")
    if len(lines) != len(files):
        raise InvalidInputError(
            f"there are {len(files)} clips and {len(lines)} captions: write a line for each clip"
        )
    return [(Path(file), line) for file, line in zip(files, lines, strict=True)]


def _plot(found: pd.DataFrame) -> Any:
    """The curve. A few points don't show yet whether the loss falls; one kind needs no legend."""
    label = f"{_LOSS}: it should fall" if len(found) >= _ENOUGH_POINTS else _LOSS
    kinds = list(found["of"].unique())
    return gr.update(value=found, label=label, colors_in_legend=kinds if len(kinds) > 1 else [])


def _if_new(now: str, before: str) -> Any:
    return gr.skip() if now == before else now
