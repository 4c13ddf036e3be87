"""The nearest video that fits in memory, in place of one that doesn't."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from ...errors import CogVideoXError
from ..models import Model
from ..planning import Estimate
from ..service import Service, VideoRequest
from .words import label_of

_SHARES = (0.75, 0.5, 0.35, 0.25)
_MOST_TRIES = 14
_LEAST = 9, 64
"""Fewest frames and pixels that are proposed."""


def nearest_that_fits(service: Service, request: VideoRequest) -> dict[str, Any] | None:
    """Settings to change so that a video fits in memory: first those that change it least.

    Returns:
        Settings by name; None if nothing that is tried fits.
    """
    model = service.model(request.model)
    for changes in islice(_candidates(model, request), _MOST_TRIES):
        found = _estimate(service, replace(request, settings={**request.settings, **changes}))
        if found is not None and found.fits:
            return changes
    return None


def changes_in_words(changes: dict[str, Any]) -> str:
    """Such as ``“Length (frames)” 33``."""
    return ", ".join(f"“{label_of(name)}” {value}" for name, value in changes.items())


def _estimate(service: Service, request: VideoRequest) -> Estimate | None:
    try:
        return service.estimate(request)
    except CogVideoXError:
        return None


def _candidates(model: Model, request: VideoRequest) -> Iterator[dict[str, Any]]:
    settings = request.settings
    bits = [b for b in (8, 4) if b < (settings.get("quantize") or 16)]
    fewer = list(_fewer(settings.get("num_frames") or model.frames))
    smaller = [] if model.has_one_size else list(_smaller(model, request))
    least = {"quantize": bits[-1]} if bits else {}
    yield from ({"quantize": each} for each in bits)
    yield from fewer
    yield from smaller
    yield from ({**least, **frames, **size} for frames, size in zip(fewer, smaller, strict=False))


def _fewer(frames: int) -> Iterator[dict[str, Any]]:
    counts = (int(frames * share) // 8 * 8 + 1 for share in _SHARES)
    yield from ({"num_frames": n} for n in dict.fromkeys(counts) if _LEAST[0] <= n < frames)


def _smaller(model: Model, request: VideoRequest) -> Iterator[dict[str, Any]]:
    width = request.settings.get("width") or model.width
    height = request.settings.get("height") or model.height
    for share in _SHARES:
        sides = [int(side * share) // 16 * 16 for side in (width, height)]
        if min(sides) >= _LEAST[1]:
            yield {"width": sides[0], "height": sides[1]}
