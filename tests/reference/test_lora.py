"""Adapters of diffusers, of PEFT and of this package have the same effect here as there."""

import warnings

import diffusers
import mlx.core as mx
import numpy as np
import peft
import pytest
import torch
from peft.tuners.lokr.layer import LoKrLayer
from support import relative_error
from torch_reference import (
    TEXT_LENGTH,
    TOLERANCE,
    frames_first,
    ours,
    random,
    rotary_embedding,
    save_model,
)
from trainings import lora, make_data

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH, save_adapter
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.nn.low_rank import DoRA, LowRank, add_adapter
from mlx_cogvideo.nn.quantization import QuantizedLinear
from mlx_cogvideo.training.existing_adapter import existing_layers, open_existing
from mlx_cogvideo.training.settings import TrainingSettings

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "norm1.linear"]
RANK, ALPHA = 4, 10
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "5b")


def adapted(folder, **config):
    """Returns the reference transformer with a random adapter from PEFT."""
    reference = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, **config}
    reference.add_adapter(peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            elif "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return reference.eval()


def outputs(reference, pipe) -> tuple[torch.Tensor, mx.array]:
    latents, text = random(1, 5, 16, 8, 12, seed=1), random(1, TEXT_LENGTH, 24, seed=2)
    timestep = torch.tensor([700])
    with torch.no_grad():
        rotation = rotary_embedding(reference, 5, 8, 12)
        expected = reference(latents, text, timestep, image_rotary_emb=rotation).sample
    result = pipe.transformer(ours(frames_first(latents)), ours(text), ours(timestep))
    return frames_first(expected), result


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1),
        ({"use_rslora": True}, 0.6),
        ({"use_dora": True}, 1),
        ({"use_dora": True}, 0.6),
        ({"alpha_pattern": {"to_q": 3}, "rank_pattern": {"ff.net.0.proj": 2}}, 1),
    ],
    ids=["plain", "rslora", "dora", "dora at 0.6", "patterns"],
)
def test_an_adapter_that_diffusers_saved_has_the_same_effect(folder, tmp_path, config, scale):
    reference = adapted(folder, **config)
    reference.save_lora_adapter(tmp_path)  # without a prefix
    layers = peft.get_peft_model_state_dict(reference)
    diffusers.CogVideoXPipeline.save_lora_weights(
        tmp_path / "pipeline",
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=reference.peft_config["default"].to_dict(),
    )
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(tmp_path / "pipeline", scale)
    reference.set_adapters("default", scale)
    expected, result = outputs(reference, pipe)
    assert relative_error(result, expected) < TOLERANCE


def test_without_metadata_alpha_is_the_rank_as_in_diffusers(folder, tmp_path):
    layers = peft.get_peft_model_state_dict(adapted(folder))
    diffusers.CogVideoXPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(tmp_path)
    expected, result = outputs(adapted(folder, lora_alpha=RANK), pipe)
    assert relative_error(result, expected) < TOLERANCE


def save_with_peft(folder, file, config) -> peft.PeftModel:
    """Saves a random adapter for the transformer in a folder, and returns the adapted model."""
    base = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    model = peft.get_peft_model(base, config)
    state = {
        name: tensor + 0.3 * random(*tensor.shape, seed=i)
        for i, (name, tensor) in enumerate(peft.get_peft_model_state_dict(model).items())
    }
    peft.set_peft_model_state_dict(model, state)
    model.save_pretrained(file)
    return model


@pytest.mark.parametrize("kind", [{}, {"use_dora": True, "use_rslora": True}], ids=["lora", "dora"])
def test_an_adapter_that_peft_saved_has_the_same_effect(folder, tmp_path, kind):
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, **kind)
    model = save_with_peft(folder, tmp_path, config)
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(tmp_path)
    expected, result = outputs(model.base_model.model.eval(), pipe)
    assert relative_error(result, expected) < TOLERANCE

    # So has the adapter that a training starts with.
    pipe = CogVideoXPipeline.from_pretrained(folder)
    settings = TrainingSettings(resume_adapter_file=str(tmp_path))
    settings, existing = open_existing(settings, {}, pipe.configs["transformer"])
    assert (settings.rank, settings.alpha) == (RANK, ALPHA)
    assert (settings.fine_tune_type, settings.use_rslora) == (
        ("dora", True) if kind else ("lora", False)
    )
    add_adapter(pipe.transformer, existing_layers(existing, settings))
    assert relative_error(outputs(model.base_model.model, pipe)[1], expected) < TOLERANCE


LOKR = {
    "square": {},
    "two matrices": {"r": 100},
    "four matrices": {"r": 1, "decompose_both": True},
    "two rows": {"decompose_factor": 2},
    "by pattern": {"r": 100, "rank_pattern": {"to_q": 50}, "alpha_pattern": {"to_v": 25}},
}


@pytest.mark.parametrize("config", LOKR.values(), ids=LOKR)
def test_lokr_that_peft_saved_has_the_same_effect(folder, tmp_path, config):
    config = {"r": RANK, "alpha": ALPHA, "target_modules": TARGETS, **config}
    model = save_with_peft(folder, tmp_path, peft.LoKrConfig(**config))
    for layer in model.modules():
        if isinstance(layer, LoKrLayer):
            layer.set_scale("default", 0.6)
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(tmp_path, 0.6)
    expected, result = outputs(model.base_model.model.eval(), pipe)
    assert relative_error(result, expected) < TOLERANCE
    pipe.unload_lora()
    assert relative_error(outputs(model.base_model.model, pipe)[1], expected) > 1000 * TOLERANCE


@pytest.mark.parametrize("kinds", [(False, False), (True, True), (False, True)], ids=str)
def test_two_adapters_with_scales_add_up_as_in_diffusers(folder, tmp_path, kinds):
    save = diffusers.CogVideoXPipeline.save_lora_weights
    for name, use_dora in zip(("one", "two"), kinds, strict=True):
        reference = adapted(folder, use_dora=use_dora)
        layers = peft.get_peft_model_state_dict(reference)
        if name == "two":
            layers = {name: tensor / 2 for name, tensor in layers.items()}
        metadata = reference.peft_config["default"].to_dict()
        save(
            tmp_path / name,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=metadata,
        )

    theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    for name in ("one", "two"):
        theirs.load_lora_adapter(tmp_path / name, weight_name=FILE, adapter_name=name)
    theirs.set_adapters(["one", "two"], [0.5, -0.75])
    pipe = CogVideoXPipeline.from_pretrained(folder)
    assert pipe.transformer  # the first adapter is added to a loaded transformer
    pipe.load_lora(tmp_path / "one", 0.5)
    pipe.free("transformer")
    pipe.load_lora(tmp_path / "two", -0.75)
    expected, result = outputs(theirs.eval(), pipe)
    assert relative_error(result, expected) < TOLERANCE

    # A converted model has them in its weights, as after PEFT's merging.
    folders = [str(tmp_path / "one"), "0.5", "--lora", str(tmp_path / "two"), "-0.75"]
    to = ["--mlx-path", str(tmp_path / "fused"), "--dtype", "float32"]
    assert convert(["--model", str(folder), "--lora", *folders, *to]) == 0
    fused = CogVideoXPipeline.from_pretrained(tmp_path / "fused")
    assert relative_error(outputs(theirs, fused)[1], expected) < TOLERANCE


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_packed_model_has_the_effect_of_its_unpacked_weights(
    folder, tmp_path, monkeypatch, use_dora
):
    to = ["--mlx-path", str(tmp_path / "packed"), "-q", "4", "--q-mode", "nvfp4"]
    assert convert(["--model", str(folder), *to]) == 0
    reference = adapted(folder, use_dora=use_dora)
    reference.save_lora_adapter(tmp_path / "adapter")
    pipe = CogVideoXPipeline.from_pretrained(tmp_path / "packed", mx.float32)
    packed = {
        path: torch.tensor(np.array(layer.unpacked(mx.float32)))
        for path, layer in pipe.transformer.named_modules()
        if isinstance(layer, QuantizedLinear)
    }
    assert len(packed) == 25
    with torch.no_grad():
        for path, weight in packed.items():
            layer = reference.get_submodule(path)
            getattr(layer, "base_layer", layer).weight.copy_(weight)
    pipe.load_lora(tmp_path / "adapter")
    # The norms of DoRA have been computed by now, from the unpacked weights.
    monkeypatch.delattr(QuantizedLinear, "unpacked")
    expected, result = outputs(reference, pipe)
    assert relative_error(result, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "use_rslora"), [("lora", False), ("lora", True), ("dora", False)], ids=str
)
def test_our_adapter_has_the_same_effect_in_diffusers_and_in_peft(
    folder, tmp_path, kind, use_rslora
):
    layers = {
        f"transformer_blocks.{block}.{name}": LowRank(
            ours(0.3 * random(RANK, inputs, seed=block)),
            ours(0.3 * random(outputs_, RANK, seed=9 + block)),
            ALPHA / RANK,
        )
        for block in range(3)
        for name, outputs_, inputs in [("attn1.to_q", 48, 48), ("ff.net.2", 48, 192)]
    }
    if kind == "dora":
        layers = {
            path: DoRA(low.lora_A, low.lora_B, ours(1 + 0.3 * random(48, seed=7)), low.scale)
            for path, low in layers.items()
        }
    kept = {"rank": RANK, "alpha": ALPHA, "use_rslora": use_rslora}
    save_adapter(tmp_path, layers, **kept, base_model="tiny")
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.load_lora(tmp_path)

    base = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler"))
    theirs = diffusers.CogVideoXPipeline(transformer=base, **parts)
    theirs.load_lora_weights(tmp_path)
    expected, result = outputs(base.eval(), pipe)
    assert relative_error(result, expected) < TOLERANCE

    base = diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer")
    with warnings.catch_warnings():  # it warns of keys that are missing
        warnings.simplefilter("error")
        model = peft.PeftModel.from_pretrained(base, tmp_path)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha) == (RANK, ALPHA)
    assert (config.use_dora, config.use_rslora) == (kind == "dora", use_rslora)
    expected, result = outputs(model.base_model.model.eval(), pipe)
    assert relative_error(result, expected) < TOLERANCE
    plain = outputs(
        diffusers.CogVideoXTransformer3DModel.from_pretrained(folder / "transformer"), pipe
    )
    assert relative_error(result, plain[0]) > 0.1


def test_dora_that_was_trained_has_the_same_effect_in_diffusers(tmp_path):
    (tmp_path / "clips").mkdir()
    clips, adapter = make_data(tmp_path / "clips"), tmp_path / "adapter"
    options = ["--fine-tune-type", "dora", "--use-rslora", "--learning-rate", 3e-2, "--iters", 2]
    assert lora(clips, adapter, *options) == 0
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.float32)
    base = diffusers.CogVideoXTransformer3DModel.from_pretrained(
        DEMO_PATH / "transformer", torch_dtype=torch.float32
    )
    latents, text = (
        random(1, 3, 16, 4, 6, seed=1),
        random(1, 32, base.config.text_embed_dim, seed=2),
    )
    timestep, rotation = torch.tensor([500]), rotary_embedding(base, 3, 4, 6)

    def ours_and_theirs():
        with torch.no_grad():
            expected = base(latents, text, timestep, image_rotary_emb=rotation).sample
        result = pipe.transformer(ours(frames_first(latents)), ours(text), ours(timestep))
        return result, frames_first(expected)

    plain = np.array(ours_and_theirs()[0])
    parts = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler"))
    diffusers.CogVideoXPipeline(transformer=base, **parts).load_lora_weights(adapter)
    pipe.load_lora(adapter)
    result, expected = ours_and_theirs()
    assert relative_error(result, expected) < TOLERANCE
    assert relative_error(result, plain) > 1000 * TOLERANCE


def test_an_adapter_changes_the_video_and_can_be_unloaded(folder, tmp_path):
    pipe = CogVideoXPipeline.from_pretrained(folder)
    reference = adapted(folder)
    reference.save_lora_adapter(tmp_path)
    plain = np.array(outputs(reference, pipe)[1])
    pipe.load_lora(tmp_path)
    assert np.abs(np.array(outputs(reference, pipe)[1]) - plain).max() > 0.1
    pipe.unload_lora()
    assert (np.array(outputs(reference, pipe)[1]) == plain).all()
