"""Keeps what a model predicts in each step of a run that computes all of them, to fit lists to.

On disk a run takes as much as all its steps' predictions: for the 5B at its own size 450 MB.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..diffusion.extrapolation import CONDITIONAL, DIFFERENCE
from ..pipeline.events import Event
from ..video.paths import output_errors, publish, write_temporary
from .kept_frames import opened

NAMES = (CONDITIONAL, DIFFERENCE)
"""The predictions of a step in the order of its file."""

_CHUNK = 2**18
"""Numbers of each prediction that are multiplied at a time."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run, in a folder with a file for each step.

    Attributes:
        folder: it is made with the first file.
        steps: of the run.
        shape: of a step's predictions, ``[1 or 2, 1, f, h, w, c]``: two with guidance.
    """

    folder: Path
    steps: int
    shape: tuple[int, ...]

    def observe(self, event: Event) -> None:
        """Writes the predictions of the last two steps, unless they are there.

        The run's lines go through both, so that none is lost where a run was stopped between a
        save and this.

        Raises:
            OutputError: they can't be written.
        """
        state = event.run.denoising
        if state is None or not state.lines:
            return
        values = [state.lines[name].values for name in NAMES if name in state.lines]
        for step, arrays in zip(
            reversed(range(state.step)), zip(*map(reversed, values), strict=True), strict=False
        ):
            if self._opened(step) is None:
                self._write(step, arrays)

    def _write(self, step: int, arrays: Sequence[mx.array]) -> None:
        with output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        file, contents = self._file(step), BytesIO()
        np.save(contents, np.stack([np.array(array) for array in arrays]))
        publish(write_temporary(file, contents.getvalue()), file, overwrite=True)

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:04}.npy"

    def remove(self) -> None:
        """Removes what an earlier run has left; other files stay, and then the folder, too."""
        if self.folder.is_symlink():
            return
        for file in self.folder.glob("[0-9][0-9][0-9][0-9].npy"):
            file.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    @property
    def are_whole(self) -> bool:
        """Whether those of all steps are there and can be read."""
        return all(self._opened(step) is not None for step in range(self.steps))

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return 4 * self.steps * prod(self.shape)

    def _opened(self, step: int) -> np.ndarray | None:
        return opened(self._file(step), self.shape, np.float32)

    def products(self) -> np.ndarray:
        """The inner products of all predictions; see ``RecordedRun``.

        Memory: a part of each prediction, 0.3 GB for 50 steps.
        """
        files = [np.load(self._file(step), mmap_mode="r") for step in range(self.steps)]
        names = len(files[0])
        rows = [file[i].reshape(-1) for i in range(names) for file in files]
        found = np.zeros((len(NAMES) * self.steps, len(NAMES) * self.steps))
        known = found[: len(rows), : len(rows)]
        for start in range(0, rows[0].size, _CHUNK):
            part = np.stack([row[start : start + _CHUNK] for row in rows]).astype(np.float64)
            known += part @ part.T
        return found
