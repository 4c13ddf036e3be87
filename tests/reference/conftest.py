"""Tiny model folders, each made once, and the same noise on both sides."""

import mlx.core as mx
import pytest
import torch
from diffusers.models.autoencoders import vae as diffusers_vae
from torch_reference import channels_first, ours, save_model

from mlx_cogvideo.nn.autoencoder import Posterior


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Returns a function that gives the model folder of a variant."""
    made = {}

    def get(variant):
        if variant not in made:
            made[variant] = save_model(tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return get


@pytest.fixture
def posterior_noise(monkeypatch):
    """Returns a function that sets the draw of a posterior, the same on both sides."""

    def set_noise(noise: torch.Tensor) -> None:
        drawn = ours(channels_first(noise))

        def sample(self, key=None):
            return self.mean + mx.exp(0.5 * self.logvar) * drawn

        monkeypatch.setattr(diffusers_vae, "randn_tensor", lambda *_, **__: noise)
        monkeypatch.setattr(Posterior, "sample", sample)

    return set_noise
