"""One training step's gradients equal those of torch and peft."""

import diffusers
import mlx.core as mx
import peft
import pytest
import torch
from gradient_ways import WAYS, set_way
from mlx.utils import tree_flatten, tree_map
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

from mlx_cogvideo.checkpoints import load_component, open_adapter
from mlx_cogvideo.diffusion.schedulers import make_scheduler
from mlx_cogvideo.nn import low_rank
from mlx_cogvideo.nn.low_rank import add_adapter
from mlx_cogvideo.nn.quantization import linear_layers
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from mlx_cogvideo.training.loss import Batch, TransformerLoss

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear"]
TOLERANCE = 1e-4
"""Relative to the largest value of a gradient. Measured errors are 2e-6 to 1e-5."""


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("variant", "kind"),
    [(variant, "lora") for variant in ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")]
    + [("2b", "dora"), ("5b", "dora")],
)
def test_gradients_of_an_adapter_equal_those_of_peft(tmp_path, monkeypatch, variant, kind, how):
    is_dora = kind == "dora"
    if is_dora:
        monkeypatch.setattr(low_rank, "NORM_ELEMENTS", 1_000)
    set_way(monkeypatch, how)
    reference = make_transformer(variant)
    reference.save_pretrained(tmp_path / "transformer")
    reference.add_adapter(
        peft.LoraConfig(r=4, lora_alpha=10, target_modules=TARGETS, use_dora=is_dora)
    )
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(reference.named_parameters()):
            parameter.requires_grad_("lora_" in name)
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * random(*parameter.shape, seed=seed))
            elif "lora_" in name:
                parameter.copy_(0.3 * random(*parameter.shape, seed=seed))
    diffusers.CogVideoXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(reference),
        transformer_lora_adapter_metadata=reference.peft_config["default"].to_dict(),
    )

    frames = 4 if variant.startswith("1.5") else 5
    latents, noise, image = (random(2, frames, 16, 8, 12, seed=s) for s in (1, 2, 3))
    text, timestep = random(2, TEXT_LENGTH, 24, seed=4), torch.tensor([40, 700])
    expected_loss = torch_loss(reference, variant, latents, noise, image, text, timestep)
    expected_loss.backward()

    config = TransformerConfig.from_dict(load_config(tmp_path / "transformer"))
    model = CogVideoXTransformer3DModel(config)
    adapter = open_adapter(tmp_path, linear_layers(model))
    model = load_component(model, tmp_path / "transformer").freeze()
    add_adapter(model, adapter.load())
    batch = Batch(
        *(ours(a) for a in (frames_first(latents), text, frames_first(noise), timestep)),
        ours(frames_first(image)) if variant.endswith("i2v") else None,
    )
    scheduler = make_scheduler("ddim", OFFICIAL_SCHEDULER_CONFIG, mx.random.key(0))
    objective = TransformerLoss(model, scheduler, mx.float32)
    # First the gradients of another adapter, of which nothing should be left.
    own = model.trainable_parameters()
    model.update(tree_map(lambda parameter: 2 * parameter, own))
    objective.loss_and_gradients(batch)
    model.update(own)
    losses, gradients = objective.loss_and_gradients(batch)
    loss = losses.mean()
    assert abs(loss.item() / expected_loss.item() - 1) < 1e-5
    assert abs(objective.loss(batch).item() / loss.item() - 1) < 1e-5

    expected = {
        name.replace(".default.weight", ""): parameter.grad
        for name, parameter in reference.named_parameters()
        if parameter.grad is not None
    }
    assert len(gradients) == len(expected) == (2 + is_dora) * 7 * 3
    assert gradients.keys() == dict(tree_flatten(model.trainable_parameters())).keys()
    for path, gradient in gradients.items():
        name = path.replace(".adapters.0.", ".")
        assert relative_error(gradient, expected[name]) < TOLERANCE, path
