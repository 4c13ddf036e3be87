"""What the main process of several does so that the others take part in its run.

It decides everything and writes all files. The others wait for a message, open the same model, and
then take the same steps from the same state; see `helper`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints import BUNDLED
from ..diffusion.split import Splits
from ..distributed import Distributed, Processes
from ..errors import InvalidInputError
from ..nn.autoencoder import Coder
from ..pipeline.events import Event
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.vae_stage import Tiling
from .channel import Channel
from .guard import Guard
from .run_plan import Plan
from .saved_run import SavedRun
from .shared_model import described_model


class Helpers:
    """The other processes, as the main one knows them.

    Attributes:
        splits: this process's part of the steps.
        machines: what each of them has said of its machine.
    """

    def __init__(
        self,
        distributed: Distributed,
        channel: Channel,
        guard: Guard,
        wants_stop: Callable[[], bool],
        command: Mapping[str, str],
    ):
        """
        Args:
            wants_stop: whether this process wants to stop after the step.
            command: options that must be the same in all processes, by name.
        """
        self._command = command
        self._distributed, self._channel, self._guard = distributed, channel, guard
        self.splits = Splits(distributed, wants_stop, guard.step)
        self._window: ResolvedSettings | None = None
        self._are_coding = False
        self.machines: list[dict[str, Any]] = []

    def open(self, plan: Plan, processes: Processes, *, plans: bool) -> None:
        """Has them open the model of a plan.

        Args:
            plans: whether nothing is to be computed or downloaded.

        Raises:
            InvalidInputError: one of them can't, or has another model or version.
        """
        pipe, model = plan.pipe, plan.model
        name, revision = _name_and_revision(pipe.name, model)
        base = base_revision = None
        if pipe.base is not None:
            base, base_revision = _name_and_revision(pipe.base.name, model["base"])
        self._channel.send(
            "model",
            name=name,
            revision=revision,
            base=base,
            base_revision=base_revision,
            dtype=pipe.dtype_name,
            quantize=pipe.quantize,
            adapters=[(adapter.source, scale) for adapter, scale in pipe.adapters],
            compile=all(job.record["settings"]["compile"] for job in plan.jobs),
            processes=asdict(processes),
            description={} if pipe.to_download else described_model(pipe),
            command=self._command,
            plans=plans,
            steps=any("denoise" not in job.done for job in plan.jobs),
        )
        self.machines = self._answers()
        pipe.make_split, pipe.deal_tiles = self.splits, self.deal_tiles

    def _answers(self) -> list[dict[str, Any]]:
        """Waits for an answer of each; raises InvalidInputError if one can't go on."""
        answers = []
        for rank, name in sorted(self._channel.names.items()):
            answer, _ = self._channel.receive(rank)
            if problem := answer.get("problem"):
                raise InvalidInputError(f"process {rank} on {name}: {problem}")
            answers.append(answer)
        return answers

    def take_part(self, event: Event, saved: SavedRun, path: Path, more_options: str) -> None:
        """Has the others take the steps that come next, and keeps a copy of each step.

        Args:
            event: what has happened in the run.
            saved: the run.
            path, more_options: as for ``Guard.note``.
        """
        if event.stage != "denoise":
            self._guard.forget()
            return
        if event.done == event.total:
            return
        contents = self._guard.note(saved, path, more_options)
        if self._window is not event.window:  # before its first step
            self._window = event.window
            self._finish_coding()
            self._channel.send("denoise", contents, window=len(saved.run.windows))

    def deal_tiles(self, latents: mx.array, tiling: Tiling) -> Callable[[Coder], Coder]:
        """Has the others decode their tiles.

        Args:
            latents: what is decoded, as the VAE takes it.

        Returns:
            A function that takes what decodes a tile, and returns what gets each tile, one after
            another, from the process that has decoded it.
        """
        self._finish_coding()
        self._are_coding = True
        contents = np.array(latents.astype(mx.float32)).tobytes()
        self._channel.send("tiles", contents, shape=latents.shape, tiling=asdict(tiling))

        def deal(code: Coder) -> Coder:
            numbers = count()

            def of_tile(tile: mx.array) -> mx.array:
                rank = next(numbers) % self._distributed.size
                if rank == 0:
                    return code(tile)
                fields, data = self._channel.receive(rank)
                pixels = np.frombuffer(data, np.float32).reshape(fields["shape"])
                return mx.array(pixels).astype(tile.dtype)

            return of_tile

        return deal

    def _finish_coding(self) -> None:
        """Drops the tiles that nobody has taken, where decoding ended early."""
        if not self._are_coding:
            return
        self._are_coding = False
        for rank in self._channel.names:
            while self._channel.receive(rank)[0]["kind"] != "coded":
                pass

    def end(self) -> None:
        """Tells the others that the run has ended."""
        self._channel.close()


def _name_and_revision(name: str | Path, identity: Mapping[str, Any]) -> tuple[str, str | None]:
    """How another machine opens a model: a folder, even one of the hub's cache, has no commit."""
    if os.path.isdir(name) and identity["name"] not in BUNDLED:
        return str(name), None
    return identity["name"], identity.get("revision")


def as_tiling(fields: Mapping[str, Any]) -> Tiling:
    """A tiling that was sent as JSON."""
    size, overlap = (
        None if fields[name] is None else tuple(fields[name])
        for name in ("tile_size", "tile_overlap")
    )
    return Tiling(fields["mode"], size, overlap)
