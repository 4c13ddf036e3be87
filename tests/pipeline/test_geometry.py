"""The geometry of a video is chosen and checked from the configuration alone."""

import pytest

from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.errors import InvalidInputError
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, largest_decode_tensor
from mlx_cogvideo.nn.transformer import TransformerConfig
from mlx_cogvideo.pipeline.geometry import Geometry

BY_ALIAS = {variant.alias: variant for variant in VARIANTS}


def choose(alias=None, num_frames=None, height=None, width=None, **config):
    variant = BY_ALIAS.get(alias)
    architecture = variant.architecture if variant else {}
    return Geometry.choose(
        variant,
        TransformerConfig.from_dict({**architecture, **config}),
        AutoencoderConfig(),
        num_frames=num_frames,
        height=height,
        width=width,
    )


@pytest.mark.parametrize(
    ("alias", "latents"),
    [("2b", (1, 13, 60, 90, 16)), ("5b", (1, 13, 60, 90, 16)), ("1.5-5b", (1, 22, 96, 170, 16))],
)
def test_the_default_is_what_the_variant_was_trained_on(alias, latents):
    assert choose(alias).latent_shape == latents


def test_a_model_of_no_variant_defaults_to_its_sample_size():
    geometry = choose(num_layers=5, sample_frames=17, sample_height=12, sample_width=16)
    assert (geometry.num_frames, geometry.height, geometry.width) == (17, 96, 128)


@pytest.mark.parametrize(("frames", "leading"), [(81, 1), (161, 1), (9, 1), (17, 1), (1, 1)])
def test_1_5_pads_its_first_temporal_patch(frames, leading):
    geometry = choose("1.5-5b", num_frames=frames)
    assert geometry.leading_latents == leading
    assert geometry.latent_shape[1] % 2 == 0


@pytest.mark.parametrize("frames", [48, 50, 0, -7, 5])
def test_frames_other_than_8n_plus_1_are_an_error(frames):
    with pytest.raises(InvalidInputError, match=r"8N\+1"):
        choose("5b", num_frames=frames)


def test_the_error_names_the_nearest_frame_counts():
    with pytest.raises(InvalidInputError, match="got 44: use 41 or 49"):
        choose("5b", num_frames=44)
    with pytest.raises(InvalidInputError, match="got 48: use 41 or 49"):
        choose("5b", num_frames=48)


def test_more_frames_than_the_variant_can_make_are_an_error():
    with pytest.raises(InvalidInputError, match="at most 49 frames; got 57"):
        choose("5b", num_frames=57)
    assert choose("1.5-5b", num_frames=161).num_frames == 161


@pytest.mark.parametrize("size", [100, 0, -16, 8])
def test_a_height_that_is_no_multiple_of_16_is_an_error(size):
    with pytest.raises(InvalidInputError, match="height must be a multiple of 16"):
        choose("5b", height=size)


def test_learned_positions_allow_only_their_own_size():
    learned = {"use_learned_positional_embeddings": True}
    assert choose("5b-i2v", num_frames=33, **learned).num_frames == 33
    with pytest.raises(InvalidInputError, match="720x480"):
        choose("5b-i2v", width=480, height=720, **learned)


def test_the_largest_decoded_array_is_known_before_decoding():
    """The first full-size convolution reads 9 frames and the 2 before them, with 256 channels."""
    config = AutoencoderConfig()
    assert largest_decode_tensor(config, (1, 13, 60, 90, 16)) == 11 * 480 * 720 * 256
    assert largest_decode_tensor(config, (1, 2, 60, 90, 16)) == 10 * 480 * 720 * 256
    assert largest_decode_tensor(config, (1, 21, 96, 170, 16)) > 2**31
