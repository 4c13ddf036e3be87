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
    """Digests of the model, the clips to learn and the prior prompts, by names for messages.

    Args:
        adapters: frozen adapters of the model and their scales; each has a digest of its own.
    """
    learned = [each for each in samples if not each.clip.held_out]
    weights = {each.clip.data_set: each.clip.data_set.weight or 0.0 for each in learned}
    clips = [_identity(each) for each in learned]
    if total := sum(weights.values()):
        shares = [weights[each.clip.data_set] / total for each in learned]
        clips = [[*identity, share] for identity, share in zip(clips, shares, strict=True)]
    contents = {"clips": clips, "prior prompts": [path.name for path in prior]}
    digests = {name: _digest(content) for name, content in contents.items()}
    return {**model_digests(model, precision, adapters), **digests}


def model_digests(
    model: dict[str, Any] | None, precision: str, adapters: Sequence[tuple[Adapter, float]] = ()
) -> dict[str, str]:
    """The part of the `content_digests` that is known before any clip is encoded."""
    contents: dict[str, Any] = {"model's weights": [model, precision]}
    for number, (adapter, scale) in enumerate(adapters, start=1):
        about = [file_digest(adapter.file), scale, adapter.scales]
        contents[f"weights or the scale of adapter {number} of --lora"] = about
    return {name: _digest(content) for name, content in contents.items()}


def held_out_digest(samples: Sequence[Sample]) -> str:
    """A digest of the clips that are held out."""
    return _digest([_identity(each) for each in samples if each.clip.held_out])


def _identity(sample: Sample) -> list[Any]:
    """What identifies a sample: files of the cache are named by what they were made of."""
    image = sample.image and sample.image.name
    return [spec_identity(sample.spec), sample.latents.name, sample.text.name, image]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
