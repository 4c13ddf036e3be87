"""The comparisons can fail: each of these mistakes, made on purpose, is noticed."""

import math

import mlx.core as mx
import mlx.nn as nn
import pytest
import torch
from support import relative_error
from torch_reference import (
    TEXT_LENGTH,
    TOLERANCE,
    channels_first,
    frames_first,
    load_config,
    make_t5,
    make_transformer,
    make_vae,
    ours,
    random,
    rotary_embedding,
)

from mlx_cogvideo.checkpoints import load_component
from mlx_cogvideo.nn import embeddings
from mlx_cogvideo.nn import t5 as t5_module
from mlx_cogvideo.nn import transformer as transformer_module
from mlx_cogvideo.nn.autoencoder import (
    AutoencoderConfig,
    AutoencoderKLCogVideoX,
    coders,
    norms,
    row_strips,
)
from mlx_cogvideo.nn.autoencoder import model as autoencoder_module
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig

NOTICED = 3 * TOLERANCE


@pytest.fixture(scope="module")
def transformer_case(tmp_path_factory):
    """Folder, inputs and the reference's output, for each variant."""
    cases = {}

    def get(variant):
        if variant not in cases:
            reference = make_transformer(variant)
            folder = tmp_path_factory.mktemp(variant) / "transformer"
            reference.save_pretrained(folder)
            frames = 6 if variant.startswith("1.5") else 5
            latents = random(1, frames, 16, 8, 12, seed=1)
            text, timestep = random(1, TEXT_LENGTH, 24, seed=2), torch.tensor([700])
            with torch.no_grad():
                expected = reference(
                    latents,
                    text,
                    timestep,
                    image_rotary_emb=rotary_embedding(reference, frames, 8, 12),
                ).sample
            inputs = ours(frames_first(latents)), ours(text), ours(timestep)
            cases[variant] = folder, inputs, frames_first(expected)
        return cases[variant]

    return get


def transformer_error(case, change=lambda model: None, **config) -> float:
    folder, inputs, expected = case
    config = TransformerConfig.from_dict({**load_config(folder), **config})
    model = load_component(CogVideoXTransformer3DModel(config), folder)
    change(model)
    return relative_error(model(*inputs), expected)


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5b"])
def test_without_a_mistake_the_transformers_agree(transformer_case, variant):
    assert transformer_error(transformer_case(variant)) < TOLERANCE


def test_half_split_instead_of_interleaved_rotation_is_noticed(transformer_case, monkeypatch):
    as_stored = lambda heads, head_dim: mx.arange(heads * head_dim)  # noqa: E731
    monkeypatch.setattr(transformer_module, "half_split", as_stored)
    assert transformer_error(transformer_case("5b")) > NOTICED


def test_erf_instead_of_tanh_gelu_is_noticed(transformer_case, monkeypatch):
    monkeypatch.setattr(transformer_module, "gelu_tanh", nn.gelu)
    assert transformer_error(transformer_case("5b")) > NOTICED


def test_sines_before_cosines_in_the_timestep_are_noticed(transformer_case):
    assert transformer_error(transformer_case("5b"), flip_sin_to_cos=False) > NOTICED


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2)], ids=str)
def test_another_order_of_the_modulation_is_noticed(transformer_case, order):
    def reorder(model):
        linear = model.transformer_blocks[0].norm1.linear
        weights, biases = mx.split(linear.weight, 6), mx.split(linear.bias, 6)
        linear.weight = mx.concatenate([weights[i] for i in order])
        linear.bias = mx.concatenate([biases[i] for i in order])

    assert transformer_error(transformer_case("5b"), reorder) > NOTICED


def test_scale_before_shift_in_the_final_norm_is_noticed(transformer_case):
    def swap(model):
        linear = model.norm_out.linear
        linear.weight = mx.concatenate(mx.split(linear.weight, 2)[::-1])
        linear.bias = mx.concatenate(mx.split(linear.bias, 2)[::-1])

    assert transformer_error(transformer_case("5b"), swap) > NOTICED


def test_rows_before_columns_in_the_sinusoids_are_noticed(transformer_case, monkeypatch):
    table = embeddings.sincos_table

    def swapped(grid, dim, *scales):
        video = table(grid, dim, *scales)
        quarter, half = dim // 4, dim // 4 + 3 * dim // 8
        return mx.concatenate([video[:, :quarter], video[:, half:], video[:, quarter:half]], -1)

    monkeypatch.setattr(embeddings, "sincos_table", swapped)
    assert transformer_error(transformer_case("2b")) > NOTICED


def test_native_positions_for_1_5_are_noticed(transformer_case, monkeypatch):
    tables = transformer_module.rope_tables
    monkeypatch.setattr(
        transformer_module,
        "rope_tables",
        lambda text, grid, dim, base: tables(text, grid, dim, (15, 15)),
    )
    assert transformer_error(transformer_case("1.5-5b")) > NOTICED


def test_channels_innermost_in_the_patches_of_1_5_are_noticed(transformer_case):
    def reorder(model):
        weight = model.patch_embed.proj.weight
        patches = weight.reshape(len(weight), 16, 8)
        model.patch_embed.proj.weight = patches.transpose(0, 2, 1).reshape(weight.shape)

    assert transformer_error(transformer_case("1.5-5b"), reorder) > NOTICED


@pytest.fixture(scope="module")
def vae_case(tmp_path_factory):
    reference = make_vae()
    folder = tmp_path_factory.mktemp("model") / "vae"
    reference.save_pretrained(folder)
    config = AutoencoderConfig.from_dict(load_config(folder))
    vae = load_component(AutoencoderKLCogVideoX(config), folder)
    latents, pixels = random(1, 16, 13, 4, 6), random(1, 3, 25, 32, 48).clamp(-1, 1)
    with torch.no_grad():
        decoded = channels_first(reference.decode(latents).sample)
        encoded = channels_first(reference.encode(pixels).latent_dist.mean)

    def errors() -> tuple[float, float]:
        return (
            relative_error(vae.decode(ours(channels_first(latents))), decoded),
            relative_error(vae.encode(ours(channels_first(pixels))).mean, encoded),
        )

    return errors


def test_without_a_mistake_the_autoencoders_agree(vae_case):
    assert max(vae_case()) < TOLERANCE


def test_a_dropped_cache_is_noticed(vae_case, monkeypatch):
    def forget(self, key, x, count):
        return mx.concatenate([mx.repeat(x[:, :1], count, axis=1), x], axis=1)

    monkeypatch.setattr(row_strips.ConvCache, "prepend", forget)
    assert min(vae_case()) > NOTICED


def test_zeros_before_the_first_frame_are_noticed(vae_case, monkeypatch):
    prepend = row_strips.ConvCache.prepend

    def zeros_first(self, key, x, count):
        zeros = mx.repeat(mx.zeros_like(x[:, :1]), count, axis=1)
        self._frames.setdefault(key, zeros)
        return prepend(self, key, x, count)

    monkeypatch.setattr(row_strips.ConvCache, "prepend", zeros_first)
    assert min(vae_case()) > NOTICED


def test_a_remainder_in_the_last_chunk_is_noticed(vae_case, monkeypatch):
    def remainder_last(frames, size):
        starts = list(range(0, frames - frames % size, size))
        return [slice(i, i + size if i != starts[-1] else frames) for i in starts]

    monkeypatch.setattr(autoencoder_module, "chunk_plan", remainder_last)
    assert min(vae_case()) > NOTICED


def test_whole_clips_instead_of_chunks_are_noticed(vae_case, monkeypatch):
    monkeypatch.setattr(autoencoder_module, "chunk_plan", lambda frames, size: [slice(0, frames)])
    assert min(vae_case()) > NOTICED


def test_a_first_frame_like_any_other_is_noticed(vae_case, monkeypatch):
    def nearest(x, frames):
        index = mx.array([i * x.shape[1] // frames for i in range(frames)])
        return x[:, index]

    monkeypatch.setattr(coders, "repeat_frames", nearest)
    decoded, _ = vae_case()
    assert decoded > NOTICED


def test_another_epsilon_in_the_group_norm_is_noticed(vae_case, monkeypatch):
    monkeypatch.setattr(norms, "GROUP_NORM_EPS", 1e-3)
    assert min(vae_case()) > NOTICED


@pytest.fixture(scope="module")
def t5_case(tmp_path_factory):
    reference = make_t5()
    folder = tmp_path_factory.mktemp("model") / "text_encoder"
    reference.save_pretrained(folder)
    model = load_component(T5EncoderModel(T5Config.from_dict(load_config(folder))), folder)
    ids = torch.randint(3, 400, (1, 60), generator=torch.Generator().manual_seed(1))
    ids[:, 30:] = 0
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
    return lambda: relative_error(model(ours(ids)), expected)


def test_without_a_mistake_the_text_encoders_agree(t5_case):
    assert t5_case() < TOLERANCE


def test_scaled_attention_in_t5_is_noticed(t5_case, monkeypatch):
    attention = t5_module.attention
    monkeypatch.setattr(
        t5_module, "attention", lambda *qkv, scale, bias: attention(*qkv, bias=bias)
    )
    assert t5_case() > NOTICED


def test_masked_padding_in_t5_is_noticed(t5_case, monkeypatch):
    attention = t5_module.attention
    mask = mx.where(mx.arange(60) < 30, 0.0, -math.inf)
    monkeypatch.setattr(
        t5_module,
        "attention",
        lambda *qkv, scale, bias: attention(*qkv, scale=scale, bias=bias + mask),
    )
    assert t5_case() > NOTICED


def test_mirrored_position_buckets_in_t5_are_noticed(t5_case, monkeypatch):
    buckets = t5_module.relative_position_buckets
    monkeypatch.setattr(t5_module, "relative_position_buckets", lambda *sizes: buckets(*sizes).T)
    assert t5_case() > NOTICED
