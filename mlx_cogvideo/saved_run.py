"""An unfinished run on disk, from which it goes on after an interruption."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .errors import InvalidInputError
from .pipeline import DenoisingState
from .record import Record

SUFFIX = ".resume"


def saved_path(output: Path) -> Path:
    """Where the run that makes `output` is saved: beside it."""
    return output.with_name(output.name + SUFFIX)


@dataclass(frozen=True)
class SavedRun:
    """All that is needed to go on.

    Attributes:
        record: of the run, with the timings so far.
        output: where its video is to go.
        embeds: the encoded text, so that no text encoder is needed again.
        state: where the denoising stands, or None before the first step.
    """

    record: Record
    output: Path
    embeds: mx.array
    state: DenoisingState | None = None

    @property
    def steps(self) -> tuple[int, int]:
        """Steps done, and steps in all."""
        done = self.state.step if self.state else 0
        return done, self.record["settings"]["num_inference_steps"]

    @property
    def denoised(self) -> bool:
        """Whether only decoding remains."""
        done, total = self.steps
        return done == total

    def save(self, path: Path) -> None:
        """Writes a safetensors file; what was at `path` is replaced once all of it is on disk.

        Raises:
            OSError: the disk is full, or the folder is gone or closed to writing.
        """
        arrays = {"embeds": self.embeds}
        about = {"record": self.record, "output": str(self.output), "step": 0, "timestep": None}
        if self.state is not None:
            arrays |= {"latents": self.state.latents, "x0": self.state.x0}
            about |= {"step": self.state.step, "timestep": self.state.timestep}
        # 16-bit numbers are float32 numbers, and back again: nothing is lost.
        numbers = {name: np.array(array.astype(mx.float32)) for name, array in arrays.items()}
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as stream:
                stream.write(save(numbers, {"mlx_cogvideo": json.dumps(about)}))
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what ``save`` wrote.

        Raises:
            InvalidInputError: there is no such file, or it isn't a whole saved run.
        """
        try:
            with safe_open(path, framework="numpy") as stored:
                about = json.loads(stored.metadata()["mlx_cogvideo"])
                arrays = {name: mx.array(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118
            state = None
            if about["step"]:
                state = DenoisingState(
                    about["step"], about["timestep"], arrays["latents"], arrays["x0"]
                )
            saved = cls(about["record"], Path(about["output"]), arrays["embeds"], state)
            _ = saved.steps
            return saved
        except FileNotFoundError:
            raise InvalidInputError(f"nothing to resume: there is no {path}") from None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{path} can't be read as a saved run ({str(error) or type(error).__name__}): "
                "remove it to start afresh"
            ) from None
