"""What must be the same, besides the settings, when a training is resumed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .latent_cache import spec_identity
from .prepare import Sample


def content_digests(
    model: dict[str, Any] | None, precision: str, samples: Sequence[Sample], prior: Sequence[Path]
) -> dict[str, str]:
    """Digests of the model, the clips and the prior prompts, by names for messages.

    Files of the cache are named by what they were made of.
    """
    files = (
        [each.latents.name, each.text.name, each.image and each.image.name] for each in samples
    )
    contents = {
        "model's weights": [model, precision],
        "clips": [[spec_identity(each.spec), *f] for each, f in zip(samples, files, strict=True)],
        "prior prompts": [path.name for path in prior],
    }
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for name, content in contents.items()
    }
