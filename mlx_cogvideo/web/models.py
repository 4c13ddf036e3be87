"""The models that the page and the API offer, under names that are no paths."""

import re
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import BUNDLED
from ..checkpoints.variants import ALIASES
from ..errors import CogVideoXError, InvalidInputError, did_you_mean
from ..pipeline.planned import open_to_plan
from .home import Home

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that can be chosen.

    Attributes:
        name: how it is chosen: a bundled model, a short name of an official one, or the name of a
            folder among the models.
        title: what pages call it.
        source: what a command gets as ``--model``.
        download: bytes that are still to download.
        takes_image: whether it makes videos of pictures, and needs one.
        width, height, frames, fps: of its videos, unless others are asked for.
    """

    name: str
    title: str
    source: str
    download: int
    takes_image: bool
    width: int
    height: int
    frames: int
    fps: float

    @property
    def is_here(self) -> bool:
        """Whether nothing is left to download."""
        return not self.download


def list_models(home: Home) -> list[Model]:
    """All models: those that can be used at once first. Folders that hold no model are left out."""
    sources = {name: name for name in (*BUNDLED, *ALIASES)}
    for folder in sorted(home.models.iterdir()):
        if folder.is_dir() and _NAME.fullmatch(folder.name) and folder.name not in sources:
            sources[folder.name] = str(folder)
    found = []
    for name, source in sources.items():
        try:
            found.append(_open(name, source))
        except CogVideoXError:
            continue
    return sorted(found, key=lambda model: not model.is_here)


def find_model(home: Home, name: str) -> Model:
    """A model by its name.

    Raises:
        InvalidInputError: there is none of this name.
        CheckpointError: its folder holds no model.
    """
    known = (*BUNDLED, *ALIASES)
    if name in known:
        return _open(name, name)
    folder = home.models / name
    if _NAME.fullmatch(name) and folder.is_dir():
        return _open(name, str(folder))
    others = [*known, *(path.name for path in home.models.iterdir() if path.is_dir())]
    raise InvalidInputError(f"there is no model {name[:80]!r}{did_you_mean(name, others)}")


def _open(name: str, source: str | Path) -> Model:
    pipe = open_to_plan(source)
    geometry = pipe.geometry()
    title = pipe.variant.name if pipe.variant is not None else name
    return Model(
        name=name,
        title=title,
        source=str(source),
        download=pipe.to_download,
        takes_image=pipe.takes_image,
        width=geometry.width,
        height=geometry.height,
        frames=geometry.num_frames,
        fps=pipe.fps,
    )
