"""How far a job is, from the events of its command."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_SHARES = {
    "encode": (0.0, 0.02),
    "source": (0.02, 0.03),
    "denoise": (0.03, 0.93),
    "decode": (0.93, 1.0),
    "captions": (0.0, 0.01),
    "clips": (0.01, 0.05),
    "prior": (0.05, 0.1),
    "train": (0.1, 1.0),
}
"""The part of a job that each stage takes, from its beginning to its end."""
_DOWNLOAD = 0.9
"""The part of a conversion that the download takes."""
_MOST_WARNINGS = 20


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: such as ``denoise``; empty before the first.
        step, total, unit: how much of the stage is done.
        fraction: how much of the job is done, from 0 to 1; it falls only where a run begins.
        furthest, furthest_before: the highest fraction of all runs, and of those before this one.
        seconds_left: estimated time to its end, if it is known.
        preview: file of the newest preview, relative to the job's folder.
        loss: of the newest step of a training.
        warnings: what the command has warned of, each once.
        status: ``done``, ``failed`` or ``interrupted`` once the command has ended.
        error: what ended the command, in one line.
        shares: the part of the job that each of its own stages takes, such as those of a
            conversion.
    """

    stage: str = ""
    step: int = 0
    total: int = 0
    unit: str = ""
    fraction: float = 0.0
    furthest: float = 0.0
    furthest_before: float = 0.0
    seconds_left: float | None = None
    preview: str | None = None
    loss: float | None = None
    warnings: tuple[str, ...] = ()
    status: str | None = None
    error: str | None = None
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def again(self) -> "Progress":
        """The progress of a run that begins, and goes on from this one."""
        furthest = self.furthest
        return Progress(furthest=furthest, furthest_before=furthest, preview=self.preview)

    def after(self, event: Mapping[str, Any]) -> "Progress":
        """The progress after an event of ``--json-events``; one that is damaged changes little."""
        match event.get("event"):
            case "start":
                return replace(self.again(), furthest_before=self.furthest_before)
            case "plan" if isinstance(event.get("networks"), list):
                return replace(self, shares=_shares(event))
            case "progress":
                return self._after_progress(event)
            case "preview":
                return replace(self, preview=_text(event, "path") or self.preview)
            case "warning":
                warnings = dict.fromkeys([*self.warnings, _text(event, "message")])
                return replace(self, warnings=tuple(warnings)[-_MOST_WARNINGS:])
            case "end":
                return self._after_end(event)
            case _:
                return self

    def _after_progress(self, event: Mapping[str, Any]) -> "Progress":
        fraction = max(self.fraction, self._fraction(event))
        return replace(
            self,
            stage=_text(event, "stage"),
            step=int(_number(event, "step", 0)),
            total=int(_number(event, "total", 0)),
            unit=_text(event, "unit"),
            fraction=fraction,
            furthest=max(self.furthest, fraction),
            seconds_left=_number(event, "seconds_left", None),
            loss=_number(event, "loss", self.loss),
        )

    def _fraction(self, event: Mapping[str, Any]) -> float:
        """How much of the job is done at an event of its progress."""
        total = max(_number(event, "total", 1), 1)
        begin, end = {**_SHARES, **self.shares}.get(_text(event, "stage"), (0.0, 1.0))
        part = begin + (end - begin) * min(max(_number(event, "step", 0) / total, 0.0), 1.0)
        windows = max(_number(event, "windows", 1), 1)
        window = min(max(_number(event, "window", 1), 1), windows)
        return (window - 1 + part) / windows

    def _after_end(self, event: Mapping[str, Any]) -> "Progress":
        status, error = _text(event, "status"), _text(event, "error") or None
        ended = replace(self, status=status, error=error, seconds_left=None)
        if status != "done":
            return ended
        return replace(ended, fraction=1.0, furthest=1.0, preview=None)


def _shares(plan: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The parts of a conversion: its download, if there is one, and its networks by their sizes."""
    begin = _DOWNLOAD if plan.get("download") else 0.0
    shares, left = {"download": (0.0, begin)}, 1.0 - begin
    networks = [network for network in plan["networks"] if isinstance(network, dict)]
    sizes = [max(_number(network, "bytes_before", 0), 0) for network in networks]
    for network, size in zip(networks, sizes, strict=True):
        end = begin + left * size / (sum(sizes) or 1)
        shares[_text(network, "name")] = (begin, end)
        begin = end
    return shares


def _text(event: Mapping[str, Any], name: str) -> str:
    value = event.get(name)
    return "" if value is None else str(value)


def _number(event: Mapping[str, Any], name: str, default: Any) -> Any:
    value = event.get(name)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return value if is_number else default
