"""An unfinished run on disk, from which it goes on after an interruption."""

import json
import logging
import os
import secrets
from dataclasses import dataclass, field, fields, replace
from operator import index
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..diffusion.conditioning import Conditioning
from ..diffusion.denoising import DenoisingState
from ..diffusion.extrapolation import Line
from ..errors import InvalidInputError
from ..files import check_is_file
from ..pipeline.events import RunState
from ..pipeline.recording import Record
from ..pipeline.resolved import steps_taken
from ..video.metadata import KEY, record_text
from ..video.paths import publish, write_temporary
from .record import check_record

SUFFIX = ".resume"

_DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)

logger = logging.getLogger(__name__)


def saved_path(output: str | Path) -> Path:
    """Where the run that makes `output` is saved: beside it."""
    path = Path(output)
    if not path.name:
        raise InvalidInputError(f"{str(output)!r} names no file: give --output a name")
    return path.with_name(path.name + SUFFIX)


def remove_saved(path: Path) -> None:
    """Removes a saved run that is complete; where that can't be, it does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s isn't needed any more and can't be removed: %s", path, error.strerror)


@dataclass(frozen=True)
class SavedRun:
    """An unfinished run as it is saved: everything that is needed to continue.

    Attributes:
        record: record of the run, with the timings so far.
        output: where its video is to go; on disk an absolute path.
        run: what has been computed.
        owner: tells this run from all others, whatever the names of their files.
    """

    record: Record
    output: str
    run: RunState
    owner: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def denoising(self) -> DenoisingState | None:
        """The state that is saved: with a cache of blocks, that of the last computed step."""
        state = self.run.denoising
        return state if state is None or state.step == self.steps_in_all else state.to_save

    @property
    def steps_done(self) -> int:
        """Steps, of the window that is denoised, that a saved file has."""
        return self.denoising.step if self.denoising else 0

    @property
    def stages_done(self) -> tuple[str, ...]:
        """Stages of a run that this one doesn't need any more."""
        done = ["encode"]
        if not self.record["settings"].get("extend"):
            if not self.run.needs_source:
                done.append("source")
            if self.steps_done == self.steps_in_all:
                done.append("denoise")
        return tuple(done)

    @property
    def steps_in_all(self) -> int:
        """Steps of the window that is denoised."""
        settings = self.record["settings"]
        from_video = settings.get("video") and not self.run.windows
        strength = settings["strength"] if from_video else None
        return steps_taken(settings["num_inference_steps"], strength)

    @property
    def progress(self) -> str:
        done = f"{self.steps_done} of {self.steps_in_all} steps"
        extend = self.record["settings"].get("extend", 0)
        return f"{len(self.run.windows)} of {extend + 1} windows and {done}" if extend else done

    def save(self, path: Path) -> None:
        """Writes a safetensors file; what was at `path` is replaced once all of it is on disk.

        Raises:
            OutputError: the disk is full, or the folder is gone or closed to writing.
        """
        write_saved(self.to_bytes(), path)

    def to_bytes(self) -> bytes:
        """The contents of the file: a copy that needs MLX no more."""
        run, state = self.run, self.denoising
        arrays = {"embeds": run.embeds}
        if run.conditioning is not None:
            arrays |= run.conditioning.arrays()
        arrays |= {f"window {i}": latents for i, latents in enumerate(run.windows)}
        about = {"output": os.path.join(os.getcwd(), self.output), "step": self.steps_done}
        about["owner"] = self.owner
        if state is not None:
            arrays |= {"latents": state.latents, "x0": state.x0}
            about |= {"timestep": state.timestep, "skipped": state.skipped}
            about["lines"] = {name: line.angles for name, line in state.lines.items()}
            for name, line in state.lines.items():
                arrays |= {f"{name} {i}": value for i, value in enumerate(line.values)}
        # 16-bit numbers are float32 numbers, and back again: nothing is lost.
        # Converted on the CPU: a GPU that has failed computes nothing any more.
        numbers = {
            name: np.array(array.astype(mx.float32, stream=mx.cpu))
            for name, array in arrays.items()
        }
        metadata = {KEY: record_text(self.record), "run": json.dumps(about)}
        return save(numbers, metadata)

    @classmethod
    def load(cls, path: Path, owner: str | None = None) -> Self:
        """Reads what ``save`` wrote.

        Args:
            owner: of the run that is expected; None takes any.

        Raises:
            InvalidInputError: there is no such file, or it isn't a whole saved run, or is another.
        """
        if path.exists():
            check_is_file(path)
        try:
            with safe_open(path, framework="numpy") as stored:
                metadata = stored.metadata() or {}
                arrays = {name: mx.array(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
            about = json.loads(metadata["run"])
            record = json.loads(metadata[KEY])
            check_record(record)
            if "prompt" not in record["settings"]:
                raise KeyError("prompt")
            saved_path(about["output"])  # or it names no file
            saved = cls(record, os.fspath(about["output"]), _run_state(arrays, about))
            if "owner" in about:
                saved = replace(saved, owner=str(about["owner"]))
            if owner not in (None, saved.owner):
                raise ValueError("another run has written it meanwhile")
            if not 0 <= saved.steps_done <= saved.steps_in_all:
                raise ValueError(saved.progress)
            return saved
        except FileNotFoundError:
            raise InvalidInputError(f"nothing to resume: there is no {path}") from None
        except _DAMAGED as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise InvalidInputError(
                f"{path} can't be read as a saved run ({reason}): remove it to start afresh"
            ) from None


def write_saved(contents: bytes, path: Path) -> None:
    """Writes what ``SavedRun.to_bytes`` made; see ``SavedRun.save``."""
    publish(write_temporary(path, contents), path, overwrite=True)


def owner_of(path: Path) -> str | None:
    """The owner of a saved run, from its header; None where there is no such file or owner."""
    try:
        with safe_open(path, framework="numpy") as stored:
            return json.loads((stored.metadata() or {})["run"])["owner"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def _run_state(arrays: dict[str, mx.array], about: dict[str, Any]) -> RunState:
    """What a file's arrays and its description say has been computed."""
    state = None
    if index(about["step"]):
        skipped = tuple(about.get("skipped", ()))
        latents, x0 = arrays["latents"], arrays["x0"]
        lines = {
            name: Line(tuple(angles), tuple(arrays[f"{name} {i}"] for i in range(len(angles))))
            for name, angles in about.get("lines", {}).items()
        }
        step, timestep = about["step"], about["timestep"]
        state = DenoisingState(step, timestep, latents, x0, skipped=skipped, lines=lines)
    names = {each.name for each in fields(Conditioning)} & arrays.keys()
    conditioning = Conditioning(**{n: arrays[n] for n in names}) if names else None
    windows: list[mx.array] = []
    while (name := f"window {len(windows)}") in arrays:
        windows.append(arrays[name])
    return RunState(arrays["embeds"], conditioning, state, tuple(windows))
