"""Converted SAT checkpoints give the velocity of the SAT code, with which they were trained."""

import pytest
import torch
from sat_checkpoints import PREFIX, convert, make_text_folder, sat_vae, vae
from sat_model import GRID, TEXT_DIM, TEXT_LENGTH, SatTransformer
from support import relative_error
from torch_reference import TOLERANCE, frames_first, ours, random


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Returns a function that gives the transformer that the converter makes of a SAT model."""
    text = make_text_folder(tmp_path_factory.mktemp("text"))
    video = {f"first_stage_model.{name}": tensor for name, tensor in sat_vae(vae()).items()}

    def get(sat):
        weights = {PREFIX + name: tensor.float() for name, tensor in sat.state.items()}
        file = tmp_path_factory.mktemp(sat.variant) / "sat.pt"
        torch.save({"module": weights | video}, file)
        return convert(file, text).transformer

    return get


def difference(sat, transformer, frames, rows, columns) -> float:
    channels = 32 if sat.variant == "5b-i2v" else 16
    latents = random(1, frames, channels, 2 * rows, 2 * columns)
    timesteps, text = torch.tensor([979]), random(1, TEXT_LENGTH, TEXT_DIM, seed=1)
    result = transformer(ours(frames_first(latents)), ours(text), ours(timesteps))
    return relative_error(result, frames_first(sat(latents, timesteps, text)))


# Measured errors are 5e-6, of which the epsilon of the last norm causes two thirds.
@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("2b", (3, 4, 6)),
        ("5b", (2, *GRID[1:])),
        ("5b-i2v", (1, *GRID[1:])),  # takes the beginning of the learned table
    ],
)
def test_a_converted_checkpoint_gives_the_velocity_of_the_original_code(converted, variant, size):
    sat = SatTransformer(variant, size if variant == "2b" else GRID)
    assert difference(sat, converted(sat), *size) < TOLERANCE


def test_rotary_positions_at_another_size_are_those_of_diffusers(converted):
    """SAT counts patches at any size; diffusers lays them over the native grid."""
    size = 2, 8, 8
    sat = SatTransformer("5b", size)
    assert difference(sat, converted(sat), *size) > 0.01


def test_the_last_norm_has_the_epsilon_of_diffusers(converted):
    size = 1, 4, 6
    sat = SatTransformer("2b", size)
    for part in ("weight", "bias"):  # so small that the epsilon matters
        sat.state[f"transformer.final_layernorm.{part}"] *= 2**-10
    transformer = converted(sat)
    assert difference(sat, transformer, *size) > 0.1
    transformer.norm_out.norm.eps = 1e-6
    assert difference(sat, transformer, *size) < TOLERANCE
