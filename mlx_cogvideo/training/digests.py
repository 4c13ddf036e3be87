"""What must be the same, besides the settings, when a training is resumed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints import Adapter
from ..files import file_digest
from .latent_cache import spec_identity
from .prepare import Sample


def content_digests(
    model: dict[str, Any] | None,
    precision: str,
    samples: Sequence[Sample],
    prior: Sequence[Path],
    adapters: Sequence[tuple[Adapter, float]] = (),
) -> dict[str, str]:
    """Digests of the model, the clips and the prior prompts, by names for messages.

    Files of the cache are named by what they were made of.

    Args:
        adapters: frozen adapters of the model and their scales; each has a digest of its own.
    """
    files = (
        [each.latents.name, each.text.name, each.image and each.image.name] for each in samples
    )
    contents = {
        "model's weights": [model, precision],
        "clips": [[spec_identity(each.spec), *f] for each, f in zip(samples, files, strict=True)],
        "prior prompts": [path.name for path in prior],
    }
    for number, (adapter, scale) in enumerate(adapters, start=1):
        weights = [file_digest(adapter.file), scale, adapter.scales]
        contents[f"weights or the scale of adapter {number} of --lora"] = weights
    return {
        name: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        for name, content in contents.items()
    }
