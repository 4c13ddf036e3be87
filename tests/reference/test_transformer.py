"""The transformer of every variant equals diffusers' CogVideoXTransformer3DModel."""

import mlx.core as mx
import pytest
import torch
from support import relative_error
from torch_reference import (
    TEXT_LENGTH,
    TOLERANCE,
    VARIANTS,
    frames_first,
    load_config,
    make_transformer,
    ours,
    random,
    rotary_embedding,
)

from mlx_cogvideo.checkpoints import load_component
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

NATIVE = (5, 8, 12)
PORTRAIT = (5, 12, 6)
SQUARE = (3, 8, 8)
SMALL = (5, 4, 6)
LONG = (13, 8, 12)
LONGER = (21, 4, 6)


def load(folder) -> CogVideoXTransformer3DModel:
    config = TransformerConfig.from_dict(load_config(folder))
    return load_component(CogVideoXTransformer3DModel(config), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def get(variant):
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant) / "transformer"
            reference = make_transformer(variant)
            reference.save_pretrained(folder)
            made[variant] = reference, load(folder)
        return made[variant]

    return get


def inputs(variant: str, size: tuple[int, int, int], timesteps: list[int]):
    frames, height, width = size
    frames += frames % (VARIANTS[variant].get("patch_size_t") or 1)
    channels = VARIANTS[variant].get("in_channels", 16)
    latents = random(len(timesteps), frames, channels, height, width, seed=1)
    text = random(len(timesteps), TEXT_LENGTH, 24, seed=2)
    return latents, text, torch.tensor(timesteps)


def compare(reference, model, latents, text, timesteps) -> float:
    frames, _, height, width = latents.shape[1:]
    ofs = torch.full((1,), 2.0) if reference.config.ofs_embed_dim else None
    with torch.no_grad():
        expected = reference(
            latents,
            text,
            timesteps,
            ofs=ofs,
            image_rotary_emb=rotary_embedding(reference, frames, height, width),
        ).sample
    result = model(ours(frames_first(latents)), ours(text), ours(timesteps))
    return relative_error(result, frames_first(expected))


@pytest.mark.parametrize("size", [NATIVE, PORTRAIT, SQUARE, SMALL, LONG, LONGER], ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "5b-i2v"])
def test_equals_diffusers_at_any_size(models, variant, size):
    assert compare(*models(variant), *inputs(variant, size, [999, 500])) < TOLERANCE


def test_equals_diffusers_with_learned_positions_at_the_native_size(models):
    assert compare(*models("5b-i2v"), *inputs("5b-i2v", NATIVE, [999, 500])) < TOLERANCE


@pytest.mark.parametrize("timestep", [0, 1, 19, 979, 999])
def test_equals_diffusers_at_any_timestep(models, timestep):
    assert compare(*models("5b"), *inputs("5b", NATIVE, [timestep])) < TOLERANCE


def test_rows_of_a_batch_do_not_touch_each_other(models):
    _, model = models("5b")
    latents, text, timesteps = inputs("5b", NATIVE, [999, 500])
    both = model(ours(frames_first(latents)), ours(text), ours(timesteps))
    alone = model(ours(frames_first(latents[1:])), ours(text[1:]), ours(timesteps[1:]))
    assert relative_error(both[1:], alone) < TOLERANCE


def test_rope_models_take_any_text_length(models):
    latents, _, timesteps = inputs("5b", NATIVE, [999])
    assert compare(*models("5b"), latents, random(1, 4, 24, seed=3), timesteps) < TOLERANCE


def test_fewer_frames_slice_the_learned_table(models, tmp_path):
    """As the original SAT code does; diffusers silently swaps in a sinusoidal table instead."""
    long, model = models("5b-i2v")
    short = make_transformer("5b-i2v", sample_frames=9)
    state = long.state_dict()
    patches = 3 * 4 * 6
    table = state["patch_embed.pos_embedding"][:, : TEXT_LENGTH + patches]
    short.load_state_dict({**state, "patch_embed.pos_embedding": table})
    assert compare(short, model, *inputs("5b-i2v", (3, 8, 12), [999])) < TOLERANCE


@pytest.mark.parametrize("size", [(6, 8, 12), (5, 12, 8), (5, 4, 12)], ids=str)
def test_more_frames_or_another_size_than_the_learned_table_is_an_error(models, size):
    _, model = models("5b-i2v")
    latents, text, timesteps = inputs("5b-i2v", size, [999])
    with pytest.raises(ValueError, match="learned positions"):
        model(ours(frames_first(latents)), ours(text), ours(timesteps))


def test_latents_that_do_not_divide_into_patches_are_an_error(models):
    _, model = models("1.5-5b")
    with pytest.raises(ValueError, match="patches"):
        model(mx.zeros((1, 5, 8, 12, 16)), mx.zeros((1, TEXT_LENGTH, 24)), mx.array([0]))
