"""What a process does that takes part in the run of another: the main one."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..diffusion.split import Splits
from ..distributed import Distributed, Processes
from ..errors import CogVideoXError, DeviceError, GenerationError, mlx_errors, with_notes
from ..pipeline.events import RunState
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.planned import load_adapters, open_to_plan
from ..pipeline.resolver import resolve
from ..pipeline.windows import window_settings
from .channel import Channel, Fields
from .guard import Guard
from .helpers import as_tiling
from .saved_run import SUFFIX, SavedRun
from .settings import video_settings
from .shared_model import described_model, difference


class Helper:
    """A process that does what the main one sends."""

    def __init__(
        self,
        distributed: Distributed,
        channel: Channel,
        guard: Guard,
        wants_stop: Callable[[], bool],
        command: Mapping[str, str],
        describe: Callable[[CogVideoXPipeline], dict[str, Any]],
        measure: Callable[[Distributed], Any],
        while_it_steps: Callable[[bool], None],
    ):
        """
        Args:
            wants_stop: whether this process wants to stop after the step.
            command: options that must be the same in all processes, by name.
            describe: what this process says of its machine, to run a model.
            measure: what all processes measure together for a plan.
            while_it_steps: called with True before the steps of a run, and with False after them.
        """
        self._distributed, self._channel, self._guard = distributed, channel, guard
        self._splits = Splits(distributed, wants_stop, guard.step)
        self._while_it_steps, self._command = while_it_steps, command
        self._describe, self._measure = describe, measure
        self._pipe: CogVideoXPipeline | None = None

    def serve(self) -> None:
        """Does what comes until the main process ends.

        Raises:
            PeerLostError: the main process ends without a word.
            DeviceError: MLX or the GPU failed.
        """
        tasks = {"model": self._open, "denoise": self._denoise, "tiles": self._decode}
        while True:
            fields, data = self._channel.receive()
            if fields["kind"] == "end":
                return
            tasks[fields["kind"]](fields, data)

    def _open(self, fields: Fields, _: bytes) -> None:
        """Opens the model of the run, and answers whether it is the same."""
        for name, value in fields["command"].items():
            if self._command.get(name) != value:
                here = self._command.get(name)
                self._refuse(f"it was started with {name} {here} instead of {value}")
                return
        try:
            pipe = self._opened(fields)
            compares = fields["description"] and not pipe.to_download
            here = described_model(pipe) if compares else {}
        except (CogVideoXError, OSError) as error:
            self._channel.send("answer", problem=with_notes(error))
            return
        if here and (problem := difference(here, fields["description"])):
            self._refuse(f"it has {problem}")
            return
        processes = fields["processes"]
        shares = processes["shares"] and tuple(processes["shares"])
        pipe.processes = Processes(processes["size"], processes["split"], shares)
        pipe.make_split = self._splits
        self._pipe = pipe
        if not fields["compile"]:
            mx.disable_compile()
        self._channel.send("answer", **self._describe(pipe))
        if fields["plans"]:
            self._measure(self._distributed)
        elif fields["steps"]:
            _ = pipe.transformer  # read while the main process encodes the text

    def _refuse(self, problem: str) -> None:
        self._channel.send("answer", problem=f"{problem}: give all processes the same")

    @staticmethod
    def _opened(fields: Fields) -> CogVideoXPipeline:
        opened = open_to_plan if fields["plans"] else CogVideoXPipeline.from_pretrained
        parts = {name: fields[name] for name in ("revision", "base", "base_revision", "quantize")}
        pipe = opened(fields["name"], fields["dtype"], **parts)
        for _ in load_adapters(pipe, fields["adapters"]):
            pass  # the main process warns
        return pipe

    def _denoise(self, fields: Fields, data: bytes) -> None:
        """Takes the steps of a window together with the main process."""
        pipe, saved = self._pipe, _loaded(data)
        run = saved.run
        whole = resolve(pipe, video_settings(saved.record["settings"]))
        settings = window_settings(whole, fields["window"], None)
        path = rescue_path(saved.output, self._distributed.rank)
        self._guard.note(saved, path)
        self._while_it_steps(True)
        try:
            with mlx_errors():
                for state in pipe.denoise(
                    settings, run.embeds, run.denoising, conditioning=run.conditioning
                ):
                    done = RunState(run.embeds, run.conditioning, state, run.windows)
                    self._guard.note(SavedRun(saved.record, saved.output, done, saved.owner), path)
                    if self._splits.stopping:
                        break
        except DeviceError:
            raise
        except GenerationError:
            pass  # all processes have it, and the main one says so
        finally:
            self._while_it_steps(False)
            self._guard.forget()

    def _decode(self, fields: Fields, data: bytes) -> None:
        """Decodes this process's tiles and sends them."""
        pipe, size, rank = self._pipe, self._distributed.size, self._distributed.rank
        latents = mx.array(np.frombuffer(data, np.float32).reshape(fields["shape"]))
        latents = latents.astype(pipe.dtype)
        tiles = as_tiling(fields["tiling"]).tiles(pipe.configs["vae"], *latents.shape[2:4])
        try:
            with mlx_errors():
                for number, tile in enumerate(tiles.parts(latents, 1)):
                    if number % size == rank:
                        pixels = np.array(pipe.vae.decode_tile(tile).astype(mx.float32))
                        self._channel.send("tile", pixels.tobytes(), shape=pixels.shape)
        finally:
            pipe.free("vae")
        self._channel.send("coded")


def rescue_path(output: str, rank: int) -> Path:
    """Where a process saves a run whose main process is gone.

    In the output's folder if this machine has it, else in the current one.
    """
    path = Path(output)
    folder = path.parent if path.parent.is_dir() else Path()
    return folder / f"{path.name}.rescued-{rank}{SUFFIX}"


def _loaded(data: bytes) -> SavedRun:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"run{SUFFIX}"
        file.write_bytes(data)
        return SavedRun.load(file)
