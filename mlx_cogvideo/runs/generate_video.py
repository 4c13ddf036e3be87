"""One call from a prompt to a video file."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoints import default_model
from ..checkpoints.resolve import check_path
from ..errors import InvalidInputError, mlx_errors
from ..files import locked
from ..pipeline.call import Call, prepare
from ..pipeline.events import join_frames
from ..pipeline.fields import about, from_arguments
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.recording import Meter, make_record
from ..pipeline.settings import VideoSettings
from ..video import check_output_path, open_writer, write_video
from .settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class OneCall(RunSettings):
    """The arguments of ``generate_video`` beside its settings.

    Attributes:
        model: folder, alias or hub id; None is the folder ``mlx_model`` if it exists, else the
            bundled demo.
        cfg_scale: another name of `guidance_scale`.
        output_path: an .mp4 or .gif file that doesn't exist yet, or without an ending a folder of
            PNG frames. How the video was made is stored inside.
        lora: adapters and their scales, such as ``[("pixel.safetensors", 0.8)]``.
    """

    prompt: str | None = field(default=None, kw_only=False, metadata=about(VideoSettings, "prompt"))
    model: str | Path | None = field(default=None, kw_only=False)
    cfg_scale: float | None = None
    output_path: str | Path | None = None
    quantize: int | None = field(default=None, metadata=about(RunSettings, "quantize"))

    def call(self) -> Call:
        """The arguments of the pipeline's call."""
        if self.prompt is None:
            raise InvalidInputError("give a prompt")
        given = {f.name: getattr(self, f.name) for f in fields(VideoSettings)}
        if self.cfg_scale is not None:
            given["guidance_scale"] = self.cfg_scale
        return Call(**given)


BY_POSITION = (
    *("prompt", "model", "num_frames", "height", "width", "num_inference_steps", "cfg_scale"),
    *("seed", "output_path", "tiling", "image", "video", "strength"),
)


@from_arguments(OneCall, BY_POSITION, same=("cfg_scale", "guidance_scale"))
def generate_video(arguments: OneCall) -> np.ndarray:
    """Makes a video of a prompt, and writes it where `output_path` says.

    ``mlx-cogvideo generate`` makes runs that can be interrupted and resumed.

    Returns:
        uint8 frames ``[F, H, W, 3]``.

    Raises:
        CogVideoXError: one of its children; before any expensive work wherever that is possible.
    """
    path, model = arguments.output_path, arguments.model
    for name, value in (("output_path", path), ("model", model)):
        if value is not None:
            check_path(name, value)
    lock: AbstractContextManager[None] = nullcontext()
    if path is not None:
        lock = locked(check_output_path(path), "choose another output_path")
    with lock:
        if path is not None:
            check_output_path(path)  # again: nobody else writes it from here on
        return _generate(arguments, path)


def _generate(arguments: OneCall, path: str | Path | None) -> np.ndarray:
    model = default_model() if arguments.model is None else arguments.model
    pipe = CogVideoXPipeline.from_pretrained(model, arguments.dtype, quantize=arguments.quantize)
    adapters = arguments.lora if isinstance(arguments.lora, list | tuple) else [arguments.lora]
    for adapter in adapters:
        if not isinstance(adapter, list | tuple) or len(adapter) != 2:
            raise InvalidInputError(
                f"lora must be a list of adapters and scales, [(file, scale), ...]; got {adapter!r}"
            )
        pipe.load_lora(*adapter)
    settings = prepare(pipe, arguments.call())
    fps = pipe.fps if arguments.fps is None else arguments.fps
    times = arguments.interpolate
    if path is not None:
        open_writer(path, fps, interpolate=times)  # refuses a rate that the file can't have
    identity = {} if path is None else pipe.identity()
    record = make_record(
        pipe, settings, identity, fps=fps, interpolate=times, compile=arguments.compile
    )
    with mlx_errors(), _compiling(arguments.compile):
        video = join_frames(pipe.events(settings), Meter(record))
    if path is not None:
        write_video(path, video, fps, record=record, interpolate=times)
    return video


@contextmanager
def _compiling(wanted: bool) -> Iterator[None]:
    """Lets MLX compile, or not."""
    if wanted:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
