"""How a fine-tuning goes, and the adapters that have been made."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import holds_adapter
from ..cli.publishing import SAMPLES
from ..training.log import LOG, read_rows, smoothed
from .home import Home
from .jobs import DONE, ID, JobStore, UnknownJobError

ABOUT = "about.json"
"""File in an adapter's folder with its title, model and steps."""
MOST_POINTS = 400
"""Points of a curve."""


@dataclass(frozen=True, kw_only=True)
class TrainedAdapter:
    """A finished adapter.

    Attributes:
        id: of the training.
        title: what people call it.
        model: name of the model that it is for.
        steps: updates of its training.
        loss: of the last ones, smoothed; None if the log is missing.
        created: when its training was begun, in seconds since 1970.
    """

    id: str
    title: str
    model: str
    steps: int
    loss: float | None
    created: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A video that an unfinished adapter has made.

    Attributes:
        step: updates done.
        path: the file.
    """

    step: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss over a training's steps, as steps and values.

    Attributes:
        loss: of the training, smoothed.
        validation: at fixed noise.
    """

    loss: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()


def curve_of(home: Home, training_id: str) -> Curve:
    """The losses of a training so far, some of them where there are many."""
    rows = list(read_rows(home.adapters / training_id / LOG))
    loss = [*smoothed(rows)]
    validation = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    return Curve(loss=_thinned(loss), validation=_thinned(validation))


def _thinned(points: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """At most about `MOST_POINTS` of the points, the last one included."""
    every = len(points) // MOST_POINTS + 1
    return tuple(points[::-1][::every][::-1])


def samples_of(home: Home, training_id: str) -> list[Sample]:
    """The videos that a training has made so far, oldest first."""
    found = (home.adapters / training_id / SAMPLES).glob("[0-9]*-0.mp4")
    return [
        Sample(step=int(step), path=path)
        for path in sorted(found)
        if (step := path.name.partition("-")[0]).isdigit()
    ]


def find_adapters(store: JobStore) -> list[TrainedAdapter]:
    """The finished adapters, newest first; also those whose jobs have been forgotten."""
    found = [*_finished(store)]
    return sorted(found, key=lambda adapter: adapter.created, reverse=True)


def _finished(store: JobStore) -> Iterator[TrainedAdapter]:
    for folder in store.home.adapters.iterdir():
        if not is_finished(store, folder.name):
            continue
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            known = {"title": str(about["title"]), "model": str(about["model"])}
            steps, created = int(about["steps"]), (folder / ABOUT).stat().st_mtime
        except (OSError, ValueError, TypeError, KeyError):
            continue
        points = curve_of(store.home, folder.name).loss
        loss = points[-1][1] if points else None
        yield TrainedAdapter(id=folder.name, steps=steps, loss=loss, created=created, **known)


def is_finished(store: JobStore, training_id: str) -> bool:
    """Whether this is the id of a training that has made its adapter."""
    if ID.fullmatch(training_id) is None or not training_id.startswith("training_"):
        return False
    try:
        if store.get(training_id).state != DONE:
            return False
    except UnknownJobError:  # it is forgotten, as only a finished one's adapter stays
        pass
    folder = store.home.adapters / training_id
    return folder.is_dir() and holds_adapter(folder)
