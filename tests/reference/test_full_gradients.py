"""The gradients of all weights in one training step equal those of torch."""

import mlx.core as mx
import pytest
import torch
from gradient_ways import WAYS, set_way
from mlx.utils import tree_flatten
from support import OFFICIAL_SCHEDULER_CONFIG, relative_error
from torch_reference import (
    TEXT_LENGTH,
    frames_first,
    load_config,
    make_transformer,
    ours,
    random,
    torch_loss,
)

from mlx_cogvideo.checkpoints import load_component
from mlx_cogvideo.checkpoints.components import upstream_shape
from mlx_cogvideo.diffusion.schedulers import make_scheduler
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from mlx_cogvideo.training.loss import Batch, TransformerLoss

TOLERANCE = 2e-5
"""Relative to the largest value of a gradient."""
NOTHING = 1e-7
"""Largest gradient of a key's bias without rotation: added to all keys, it changes no softmax."""


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("variant", ["2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v"])
def test_gradients_of_all_weights_equal_those_of_torch(tmp_path, monkeypatch, variant, how):
    set_way(monkeypatch, how)
    reference = make_transformer(variant)
    reference.save_pretrained(tmp_path / "transformer")
    expected = dict(reference.named_parameters())
    if variant == "5b-i2v":  # learned positions, which diffusers keeps in a buffer
        positions = reference.patch_embed.pos_embedding.requires_grad_()
        expected["patch_embed.pos_embedding"] = positions

    frames = 4 if variant.startswith("1.5") else 5
    clips = []
    for first in (1, 11):
        latents, noise, image = (random(2, frames, 16, 8, 12, seed=first + s) for s in range(3))
        text, timestep = random(2, TEXT_LENGTH, 24, seed=first + 3), torch.tensor([40, 700])
        clips.append((latents, noise, image, text, timestep))
        (torch_loss(reference, variant, *clips[-1]) / 2).backward()

    config = TransformerConfig.from_dict(load_config(tmp_path / "transformer"))
    model = load_component(CogVideoXTransformer3DModel(config), tmp_path / "transformer")
    scheduler = make_scheduler("ddim", OFFICIAL_SCHEDULER_CONFIG, mx.random.key(0))
    loss = TransformerLoss(model, scheduler, mx.float32)
    passes = [
        loss.forward(
            Batch(
                *(ours(a) for a in (frames_first(latents), text, frames_first(noise), timestep)),
                ours(frames_first(image)) if variant.endswith("i2v") else None,
            )
        )
        for latents, noise, image, text, timestep in clips
    ]
    found = {}
    for part in loss.backward(passes):
        assert not found.keys() & part.keys()
        found |= part
    assert found.keys() == dict(tree_flatten(model.trainable_parameters())).keys()
    assert found.keys() == expected.keys()
    for path, gradient in found.items():
        wanted = expected[path].grad
        if path.endswith("norm_k.bias") and not config.use_rotary_positional_embeddings:
            assert mx.abs(gradient).max().item() < NOTHING and wanted.abs().max() < NOTHING, path
            continue
        assert upstream_shape(gradient.shape) == tuple(wanted.shape), path
        if gradient.ndim >= 4:
            gradient = mx.moveaxis(gradient, -1, 1)
        assert relative_error(gradient, wanted) < TOLERANCE, path
