"""The record of a run: all that it takes to repeat a video, and to explain it."""

import platform
from typing import Any

import mlx.core as mx

from . import __version__
from .pipeline import CogVideoXPipeline
from .request import Request

Record = dict[str, Any]
"""JSON: ``mlx_cogvideo`` (the version), ``model``, ``settings``, ``versions``, ``timings`` in
seconds and ``peak_memory`` in bytes, by stage."""


def make_record(
    pipe: CogVideoXPipeline,
    request: Request,
    model: dict[str, Any],
    *,
    fps: float,
    compile: bool = True,
) -> Record:
    """The record of a run that is about to start.

    Args:
        model: a ``checkpoints.model_identity``.
        fps: frames a second of the file.
        compile: whether MLX may compile.
    """
    return {
        "mlx_cogvideo": __version__,
        "model": model,
        "settings": {
            **request.settings(),
            "dtype": pipe.dtype_name,
            "compile": compile,
            "fps": float(fps),
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


def setting_differences(then: Record, now: Record, but: tuple[str, ...] = ()) -> list[str]:
    """What two runs were told otherwise, a phrase each; `but` names settings to pass over."""
    before, after = then.get("settings", {}), now["settings"]
    return [
        f"{name} was {before.get(name)!r} and is now {after[name]!r}"
        for name in after
        if name not in but and before.get(name) != after[name]
    ]


def model_differences(then: Record, now: Record) -> list[str]:
    """How the models of two runs differ, a phrase each; a folder may have moved."""
    before, after = then.get("model", {}), now["model"]
    if "sha256" in before and "sha256" in after:
        return [
            f"the model's {name} was {before['sha256'].get(name, '')[:12]} "
            f"and is now {digest[:12]} (sha256)"
            for name, digest in after["sha256"].items()
            if before["sha256"].get(name) != digest
        ]
    if (before.get("name"), before.get("revision")) == (after["name"], after.get("revision")):
        return []
    return [f"the model was {_told(before)} and is now {_told(after)}"]


def version_differences(then: Record, now: Record) -> list[str]:
    """What computed two runs, where it differs, a phrase each."""
    before = {"mlx_cogvideo": then.get("mlx_cogvideo"), **then.get("versions", {})}
    after = {"mlx_cogvideo": now["mlx_cogvideo"], **now["versions"]}
    return [
        f"{name} was {before.get(name)} and is now {after[name]}"
        for name in ("mlx_cogvideo", "mlx", "device")
        if before.get(name) != after[name]
    ]


def _told(model: dict[str, Any]) -> str:
    revision = model.get("revision")
    return (
        f"{model.get('name')} at revision {revision[:12]}" if revision else str(model.get("name"))
    )
