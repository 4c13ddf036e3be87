"""The scale of each layer of an adapter, as PEFT computes it from a configuration."""

import re
import time
from collections.abc import Iterable, Mapping
from numbers import Real
from sys import float_info
from typing import Any

from ..errors import CheckpointError, InvalidInputError
from ..nn.config_fields import shown
from .adapter_names import PREFIX

MOST_PATTERNS, LONGEST_PATTERN = 2_000, 500
MOST_REPEATS = 3
"""Quantifiers of a pattern: each may multiply the time of a match by the length of a name."""
MOST_CHOICES = 8
"""Groups of a pattern: each may multiply it by the number of its alternatives."""
MATCHING_SECONDS = 5.0

_REPEAT = re.compile(r"(?<!\\)[*+?{]")
_GROUP = re.compile(r"(?<!\\)\((?!\?)|(?<!\\)\(\?:")
# A repeated group, a reference to one, or a look around: their time may double with each letter.
_RISKY = re.compile(r"(?<!\\)\)[*+?{]|\\[1-9]|\(\?[^:]")


def check_scale(scale: Any) -> None:
    """Raises InvalidInputError unless it is a finite number."""
    if not is_finite(scale):
        raise InvalidInputError(f"an adapter's scale must be a finite number; got {scale!r}")


def is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    return isinstance(value, Real) and abs(value) <= float_info.max


def alpha_scale(layer: str, rank: int | None, alpha: Any) -> float:
    """Alpha / rank, for an alpha beside the tensors of a layer; 1 without a rank, as in LyCORIS."""
    return 1.0 if rank is None else _scale({}, layer, rank, alpha)


def configured_scales(
    config: Mapping[str, Any], ranks: Mapping[str, int | None], unknown_alpha: float | None = None
) -> dict[str, float]:
    """Alpha / rank of each layer, or alpha / sqrt(rank) with ``use_rslora``.

    Args:
        ranks: of the layers, as far as their tensors tell; others are in the configuration.
        unknown_alpha: alpha where the configuration has none; None is the rank.

    Raises:
        CheckpointError: the configuration can't be understood.
    """
    patterned = _patterned(config, "alpha_pattern", ranks)
    without = [layer for layer, rank in ranks.items() if rank is None]
    others = _patterned(config, "rank_pattern", without) if without else {}
    default = config.get("alpha" if config.get("peft_type") == "LOKR" else "lora_alpha")
    scales = {}
    for layer, rank in ranks.items():
        if rank is None:
            rank = others.get(layer, config.get("r", 1))
        alpha = patterned.get(layer, default)
        if alpha is None:
            alpha = rank if unknown_alpha is None else unknown_alpha
        scales[layer] = _scale(config, layer, rank, alpha)
    return scales


def _scale(config: Mapping[str, Any], layer: str, rank: Any, alpha: Any) -> float:
    if not is_finite(alpha):
        raise CheckpointError(f"alpha of {layer} is {shown(alpha)}: it should be a number")
    if not is_finite(rank) or rank < 1:
        raise CheckpointError(f"the rank of {layer} is {shown(rank)}: it should be 1 or more")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _patterned(config: Mapping[str, Any], name: str, layers: Iterable[str]) -> dict[str, Any]:
    """The values that a pattern gives: regular expressions of the ends of layers' names.

    Args:
        name: ``alpha_pattern`` or ``rank_pattern``.

    Raises:
        CheckpointError: it isn't such an object, or matching a pattern could take for ever.
    """
    patterns = config.get(name) or {}
    found: dict[str, Any] = {}
    try:
        if len(patterns) > MOST_PATTERNS:
            raise OverflowError
        compiled = {_compiled(pattern): value for pattern, value in patterns.items()}
        end = time.monotonic() + MATCHING_SECONDS
        for layer in layers:
            for pattern, value in compiled.items():
                if pattern.fullmatch(layer):
                    found[layer] = value
                    break
                if time.monotonic() > end:
                    raise OverflowError
    except (AttributeError, TypeError, re.error, RecursionError, OverflowError):
        raise CheckpointError(f"{name} is {shown(patterns)}: it can't be understood") from None
    return found


def _compiled(pattern: str) -> re.Pattern:
    pattern = pattern.removeprefix(PREFIX)
    if (
        len(pattern) > LONGEST_PATTERN
        or len(_REPEAT.findall(pattern)) > MOST_REPEATS
        or len(_GROUP.findall(pattern)) > MOST_CHOICES
        or _RISKY.search(pattern)
    ):
        raise OverflowError
    return re.compile(rf"(?:.*\.)?(?:{pattern})")
