"""The record of a run: all that it takes to repeat a video, and to explain it."""

import platform
import time
from collections.abc import Collection, Iterator
from typing import Any

import mlx.core as mx

from ..errors import InvalidInputError
from ..pipeline.pipeline import CogVideoXPipeline, Progress
from ..pipeline.request import Request
from ..version import __version__

Record = dict[str, Any]
"""JSON: ``mlx_cogvideo`` (the version), ``model``, ``settings``, ``versions``, ``timings`` in
seconds and ``peak_memory`` in bytes that MLX allocated, by stage."""

OF_THE_RUN = ("lora", "dtype", "compile", "fps", "image_sha256", "video_sha256")
"""The settings that are not arguments of ``CogVideoXPipeline.request``."""

NEWER = {"lora": [], "uncond": "empty", "sequential_guidance": False}
"""What records of before there was a choice don't speak of."""

DECODING = ("tiling", "tile_size", "tile_overlap")
MAY_CHANGE = (*DECODING, "sequential_guidance", "fps")
"""Settings that may change when a run goes on."""


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
            **request.source.digests(),
            "lora": [adapter.identity(scale) for adapter, scale in pipe.adapters],
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


def request_again(pipe: CogVideoXPipeline, settings: dict[str, Any]) -> Request:
    """The request whose settings these are.

    Raises:
        InvalidInputError: the model can't follow one, or this version doesn't know it.
    """
    arguments = {name: value for name, value in settings.items() if name not in OF_THE_RUN}
    try:
        return pipe.request(**arguments)
    except TypeError as error:
        raise InvalidInputError(
            f"these settings aren't for this version of mlx_cogvideo, {__version__}: {error}"
        ) from None


class Meter:
    """Notes in a record how long each stage takes and what it holds; a `Progress`.

    What a stage took before an interruption counts.
    """

    def __init__(self, record: Record, on_progress: Progress | None = None):
        """`on_progress` gets every report, too."""
        self._record = record
        self._pass_on = on_progress or (lambda stage, done, total: None)
        self._stage: str | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        timings, peak_memory = self._record["timings"], self._record["peak_memory"]
        if stage != self._stage:
            self._stage = stage
            self._since = time.perf_counter() - timings.get(stage, 0.0)
            mx.reset_peak_memory()
        timings[stage] = round(time.perf_counter() - self._since, 3)
        peak_memory[stage] = max(peak_memory.get(stage, 0), mx.get_peak_memory())
        self._pass_on(stage, done, total)


def setting_differences(then: Record, now: Record, but: Collection[str] = ()) -> list[str]:
    """What two runs were told otherwise, a phrase each; `but` names settings to pass over."""
    before, after = {**NEWER, **then.get("settings", {})}, now["settings"]
    passed_over = {*but, *_same_sources(before, after)}
    return [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in dict.fromkeys([*after, *before])
        if name not in passed_over and before.get(name) != after.get(name)
    ]


def _same_sources(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Settings of pictures and videos that say the same: one may have moved, or be gone."""
    for name in ("image", "video"):
        digest = f"{name}_sha256"
        if digest in before and before[digest] == after.get(digest):
            yield name
        if before.get(name) == after.get(name) and digest not in after:
            yield digest


def source_differences(then: Record, now: Record) -> list[str]:
    """Pictures and videos to start from whose files aren't what they were, a phrase each."""
    before, after = then.get("settings", {}), now["settings"]
    return [
        f"the {name} {after[name]} has changed"
        for name in ("image", "video")
        if name in before
        and before[name] == after.get(name)
        and before.get(f"{name}_sha256") != after.get(f"{name}_sha256")
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
    return [f"the model was {model_title(before)} and is now {model_title(after)}"]


def adapter_differences(then: Record, now: Record) -> list[str]:
    """Adapters whose files aren't what they were, a phrase each."""
    before, after = (record.get("settings", {}).get("lora", []) for record in (then, now))
    known = {told["source"]: told["sha256"] for told in before}
    return [
        f"the adapter {told['source']} has changed"
        for told in after
        if known.get(told["source"], told["sha256"]) != told["sha256"]
    ]


def version_differences(then: Record, now: Record) -> list[str]:
    """What computed two runs, where it differs, a phrase each."""
    before = {"mlx_cogvideo": then.get("mlx_cogvideo"), **then.get("versions", {})}
    after = {"mlx_cogvideo": now["mlx_cogvideo"], **now["versions"]}
    return [
        f"{name} was {before.get(name)} and is now {after[name]}"
        for name in ("mlx_cogvideo", "mlx", "device")
        if before.get(name) != after[name]
    ]


def model_title(model: dict[str, Any]) -> str:
    """A ``checkpoints.model_identity`` in a few words."""
    revision = model.get("revision")
    name = str(model.get("name"))
    return f"{name} at revision {revision[:12]}" if revision else name
