"""An unfinished run on disk, from which it goes on after an interruption."""

import json
import logging
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import InvalidInputError
from ..pipeline.denoising import DenoisingState
from ..pipeline.request import steps_taken
from ..pipeline.sources import Conditioning
from ..video.metadata import KEY, record_text
from ..video.paths import publish, write_temporary
from .record import Record

SUFFIX = ".resume"

logger = logging.getLogger(__name__)


def saved_path(output: str | Path) -> Path:
    """Where the run that makes `output` is saved: beside it."""
    path = Path(output)
    return path.with_name(path.name + SUFFIX)


def remove_saved(path: Path) -> None:
    """Removes a saved run that is complete; where that can't be, it does no harm."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s isn't needed any more and can't be removed: %s", path, error.strerror)


@dataclass(frozen=True)
class SavedRun:
    """All that is needed to go on.

    Attributes:
        record: of the run, with the timings so far.
        output: where its video is to go; on disk, from the root of the file system on.
        embeds: the encoded text, so that no text encoder is needed again.
        state: where the denoising stands, or None before the first step.
        conditioning: what the video, or this window of it, starts from, once it is encoded.
        windows: final latents of the windows that are denoised, of a video of several.
    """

    record: Record
    output: str
    embeds: mx.array
    state: DenoisingState | None = None
    conditioning: Conditioning | None = None
    windows: tuple[mx.array, ...] = ()

    @property
    def steps_done(self) -> int:
        return self.state.step if self.state else 0

    @property
    def needs_source(self) -> bool:
        """Whether what the video starts from is still to be encoded from its file."""
        return self.state is None and self.conditioning is None and not self.windows

    @property
    def stages_done(self) -> tuple[str, ...]:
        """Stages of a run that this one doesn't need any more."""
        done = ["encode"]
        if not self.record["settings"].get("extend"):
            done += ["source"] * (not self.needs_source)
            done += ["denoise"] * (self.steps_done == self.steps_in_all)
        return tuple(done)

    @property
    def steps_in_all(self) -> int:
        settings = self.record["settings"]
        from_video = settings.get("video") and not self.windows
        strength = settings["strength"] if from_video else None
        return steps_taken(settings["num_inference_steps"], strength)

    @property
    def progress(self) -> str:
        done = f"{self.steps_done} of {self.steps_in_all} steps"
        extend = self.record["settings"].get("extend", 0)
        return f"{len(self.windows)} of {extend + 1} windows and {done}" if extend else done

    def save(self, path: Path) -> None:
        """Writes a safetensors file; what was at `path` is replaced once all of it is on disk.

        Raises:
            OutputError: the disk is full, or the folder is gone or closed to writing.
        """
        arrays = {"embeds": self.embeds}
        if self.conditioning is not None:
            arrays |= self.conditioning.arrays()
        arrays |= {f"window {i}": latents for i, latents in enumerate(self.windows)}
        about = {"output": os.path.join(os.getcwd(), self.output), "step": self.steps_done}
        if self.state is not None:
            arrays |= {"latents": self.state.latents, "x0": self.state.x0}
            about |= {"timestep": self.state.timestep, "skipped": self.state.skipped}
        # 16-bit numbers are float32 numbers, and back again: nothing is lost.
        # Converted on the CPU: a GPU that has failed computes nothing any more.
        numbers = {
            name: np.array(array.astype(mx.float32, stream=mx.cpu))
            for name, array in arrays.items()
        }
        metadata = {KEY: record_text(self.record), "run": json.dumps(about)}
        publish(write_temporary(path, save(numbers, metadata)), path, overwrite=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote.

        Raises:
            InvalidInputError: there is no such file, or it isn't a whole saved run.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                metadata = stored.metadata() or {}
                arrays = {name: mx.array(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
            about = json.loads(metadata["run"])
            state = None
            if about["step"]:
                state = DenoisingState(
                    about["step"],
                    about["timestep"],
                    arrays["latents"],
                    arrays["x0"],
                    skipped=tuple(about.get("skipped", ())),
                )
            names = {field.name for field in fields(Conditioning)} & arrays.keys()
            conditioning = Conditioning(**{n: arrays[n] for n in names}) if names else None
            windows = []
            while (name := f"window {len(windows)}") in arrays:
                windows.append(arrays[name])
            saved = cls(
                json.loads(metadata[KEY]),
                about["output"],
                arrays["embeds"],
                state,
                conditioning,
                tuple(windows),
            )
            if not 0 <= saved.steps_done <= saved.steps_in_all:
                raise ValueError(saved.progress)
            return saved
        except FileNotFoundError:
            raise InvalidInputError(f"nothing to resume: there is no {path}") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise InvalidInputError(
                f"{path} can't be read as a saved run ({reason}): remove it to start afresh"
            ) from None
