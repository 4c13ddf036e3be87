"""Guidance schedules over the steps."""

import pytest

from mlx_cogvideo.diffusion.guidance import guidance_schedule
from mlx_cogvideo.errors import InvalidInputError

TIMESTEPS = range(999, 0, -20)


def weights(name, scale=6.0):
    schedule = guidance_schedule(name, scale)
    return [schedule(i, t, 50) for i, t in enumerate(TIMESTEPS)]


@pytest.mark.parametrize("name", [False, "constant"])
def test_constant_guidance_is_the_scale(name):
    assert weights(name) == [6.0] * 50


@pytest.mark.parametrize("name", [True, "wave"])
def test_the_wave_has_the_official_values(name):
    """diffusers computes them in float64; in float32 they are off by up to 3."""
    official = [2.291, 2.544, 6.974, 6.420, 2.788, 4.272, 1.038]
    assert weights(name)[:7] == pytest.approx(official, abs=5e-4)


def test_the_cosine_rises_from_one_towards_one_plus_the_scale():
    rising = weights("cosine")
    assert rising[0] == 1
    assert rising == sorted(rising)
    assert 6.5 < rising[-1] < 7


def test_another_name_is_an_error():
    with pytest.raises(InvalidInputError, match="constant, wave, cosine"):
        guidance_schedule("linear", 6.0)
