"""How far a job is, from the events of its command."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        stage: such as ``denoise``; empty before the first.
        step, total, unit: how much of the stage is done.
        fraction: how much of the job is done, from 0 to 1.
        seconds_left: estimated time to its end, if it is known.
        preview: file of the newest preview, relative to the job's folder.
        loss: of the newest step of a training.
        warnings: what the command has warned of.
        end: the command's last event.
    """

    stage: str = ""
    step: int = 0
    total: int = 0
    unit: str = ""
    fraction: float = 0.0
    seconds_left: float | None = None
    preview: str | None = None
    loss: float | None = None
    warnings: tuple[str, ...] = ()
    end: Mapping[str, Any] | None = None

    def after(self, event: Mapping[str, Any]) -> "Progress":
        """The progress after an event of ``--json-events``."""
        match event.get("event"):
            case "start":
                return Progress()
            case "progress":
                return self._after_progress(event)
            case "preview":
                return replace(self, preview=str(event["path"]))
            case "warning":
                return replace(self, warnings=(*self.warnings, str(event["message"])))
            case "end":
                return replace(self, end=event, seconds_left=None)
            case _:
                return self

    def _after_progress(self, event: Mapping[str, Any]) -> "Progress":
        names = ("stage", "step", "total", "unit", "seconds_left")
        known = {name: event.get(name) for name in names}
        loss = event.get("loss", self.loss)
        return replace(self, **known, loss=loss, fraction=_fraction(event))


def _fraction(event: Mapping[str, Any]) -> float:
    total = event.get("total") or 1
    begin, end = _SHARES.get(event["stage"], (0.0, 1.0))
    part = begin + (end - begin) * min(event["step"] / total, 1.0)
    windows, window = event.get("windows") or 1, event.get("window") or 1
    return min((window - 1 + part) / windows, 1.0)
