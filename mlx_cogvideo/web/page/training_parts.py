"""What the tab "Fine-tuning" shows of trainings, as HTML and as points of a plot."""

from collections.abc import Sequence

import pandas as pd

from ...device import size
from ..adapters import curve_of, samples_of
from ..jobs import FAILED, RUNNING, STOPPED, Job
from ..service import Service
from ..trainings import TrainingEstimate
from .shown import sample_url
from .words import STATES, escape, left_in_words, problem

_MOST_SAMPLES = 6
_COLUMNS = {"step": "int64", "loss": "float64", "of": "object"}


def needs_in_html(e: TrainingEstimate) -> str:
    """What a training needs."""
    lines = [
        f"<p><strong>{e.steps} steps; clips of {e.frames} frames of {e.width}x{e.height} pixels, "
        f"{e.fps:g} a second</strong></p>",
        f'<p class="quiet">Memory: {size(e.need)}; this machine has {size(e.largest)} for it. '
        f"Disk: at most {size(e.disk)}.</p>",
    ]
    if not e.fits:
        what = f"{e.fitting} frames" if e.fitting else "a model in 4 bits, or a smaller size"
        lines.append(
            f'<p class="bad">It needs more memory than this machine has. What fits: {what}.</p>'
        )
    return "".join(lines)


def list_in_html(service: Service, jobs: Sequence[Job], chosen: str) -> str:
    """The trainings, each with a button that chooses it."""
    if not jobs:
        return '<h2>Your trainings</h2><p class="quiet">There are none yet.</p>'
    items = "".join(f"<li>{_item(service, job, job.id == chosen)}</li>" for job in jobs)
    return f"<h2>Your trainings ({len(jobs)})</h2><ul>{items}</ul>"


def _item(service: Service, job: Job, is_chosen: bool) -> str:
    title = escape(job.about["title"])
    return (
        f'<p><span class="title">{title}</span> <span class="quiet">{_far(service, job)}</span></p>'
        f'<div class="buttons"><button type="button" data-job="{escape(job.id)}" '
        f'aria-pressed="{str(is_chosen).lower()}" aria-label="Show {title}">Show</button></div>'
    )


def _far(service: Service, job: Job) -> str:
    """How far a training is, as escaped text."""
    progress = service.runner.progress(job.id)
    words = ["Learning" if job.state == RUNNING else STATES[job.state]]
    if job.state in (RUNNING, STOPPED) and progress.stage == "train":
        words.append(f"step {progress.step} of {progress.total}")
    if job.state == RUNNING and (left := left_in_words(progress)):
        words.append(left)
    return escape(", ".join(words))


def training_in_html(service: Service, job: Job) -> str:
    """A training's own part of the page, but for its curve."""
    about, error = job.about, ""
    if job.state == FAILED and job.error:
        error = f'<p class="bad">{escape(problem(job.error, service.home.folder))}</p>'
    videos = "".join(
        f'<li><video src="{escape(sample_url(job.id, each.step))}" controls loop muted playsinline '
        f'preload="auto" aria-label="Sample after {each.step} steps"></video>'
        f'<p class="quiet">after {each.step} steps</p></li>'
        for each in samples_of(service.home, job.id)[-_MOST_SAMPLES:]
    )
    samples = f'<h3>Samples</h3><ul class="grid">{videos}</ul>' if videos else ""
    return (
        f"<h3>{escape(about['title'])}</h3><p>{_far(service, job)}</p>"
        f'<p class="quiet">Model {escape(about["model"])}, {about["clips"]} clips, '
        f"{about['estimate']['steps']} steps</p>{error}{samples}"
    )


def points(service: Service, job: Job) -> pd.DataFrame:
    """The points of a training's curve, for the plot."""
    curve = curve_of(service.home, job.id)
    rows = [(step, loss, "in training") for step, loss in curve.loss]
    rows += [(step, loss, "at fixed noise") for step, loss in curve.validation]
    return frame(rows)


def frame(rows: Sequence[tuple[int, float, str]]) -> pd.DataFrame:
    """The plot's points. Their types are given, too: without rows they can't be seen."""
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)
