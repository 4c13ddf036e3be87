"""What must be the same for encoded clips to be found again, and for a training to be resumed."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..video import ClipSpec

if TYPE_CHECKING:
    from .prepare import Sample


def spec_identity(spec: ClipSpec) -> dict[str, Any]:
    """What identifies a spec, as JSON.

    The part of a clip counts only where it isn't the whole clip, so that clips are found again that
    were encoded before there were parts.
    """
    whole = {"start": 0.0, "end": None}
    return {name: value for name, value in asdict(spec).items() if whole.get(name, ...) != value}


def content_digests(
    model: dict[str, Any] | None, dtype: str, samples: Sequence["Sample"], prior: Sequence[Path]
) -> dict[str, str]:
    """Digests of what must be the same, besides the settings, when a training is resumed.

    Files of the cache are named by what they were made of.
    """
    contents = {
        "model's weights": [model, dtype],
        "clips": [
            [
                spec_identity(each.spec),
                each.latents.name,
                each.text.name,
                each.image and each.image.name,
            ]
            for each in samples
        ],
        "prior prompts": [path.name for path in prior],
    }
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for name, content in contents.items()
    }
