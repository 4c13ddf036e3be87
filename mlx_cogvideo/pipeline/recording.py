"""The record of a run: all that it takes to repeat a video, and to explain it."""

import platform
import time
from typing import Any

import mlx.core as mx

from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.tiny_vae import tiny_digest
from ..version import __version__
from .events import Progress, no_progress
from .resolved import ResolvedSettings

Record = dict[str, Any]
"""JSON: ``mlx_cogvideo`` (the version), ``model``, ``settings``, ``versions``, ``timings`` in
seconds and ``peak_memory`` in bytes that MLX allocated, by stage."""

NOT_RECORDED = "not_recorded"
"""Key of a record for what a script has given and JSON can't hold, in words."""


def make_record(
    model: ModelFolder,
    settings: ResolvedSettings,
    identity: dict[str, Any],
    *,
    fps: float,
    interpolate: int = 1,
    compile: bool = True,
) -> Record:
    """The record of a run that is about to start.

    Args:
        identity: a ``checkpoints.model_identity``.
        fps: frames a second of the video.
        interpolate: times the frames a second of the file.
        compile: whether MLX may compile.
    """
    preset = settings.preset_used
    return {
        "mlx_cogvideo": __version__,
        "model": identity,
        **({} if preset is None else {"preset": preset.name}),
        "settings": {
            **settings.to_dict(),
            **settings.source.digests(),
            **(tiny_digest(model, settings.tiny_vae) if settings.vae == "tiny" else {}),
            "lora": [adapter.identity(scale) for adapter, scale in model.adapters],
            "dtype": model.dtype_name,
            **({} if model.quantize is None else {"quantize": model.quantize}),
            "compile": compile,
            "fps": float(fps),
            **({} if interpolate == 1 else {"interpolate": interpolate}),
        },
        "versions": {
            "mlx": mx.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "device": f"{mx.default_device().type.name} {mx.device_info().get('device_name', '')}",
        },
        "timings": {},
        "peak_memory": {},
    }


class Meter:
    """Writes into a record how long each stage takes and how much memory; a `Progress`.

    The time that a stage took before an interruption counts.
    """

    def __init__(self, record: Record, on_progress: Progress | None = None):
        """`on_progress` gets every report, too."""
        self._record = record
        self._pass_on = on_progress or no_progress
        self._stage: str | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        timings, peak_memory = (
            self._record.setdefault(name, {}) for name in ("timings", "peak_memory")
        )
        if stage != self._stage:
            self._stage = stage
            self._since = time.perf_counter() - timings.get(stage, 0.0)
            mx.reset_peak_memory()
        timings[stage] = round(time.perf_counter() - self._since, 3)
        peak_memory[stage] = max(peak_memory.get(stage, 0), mx.get_peak_memory())
        self._pass_on(stage, done, total)
