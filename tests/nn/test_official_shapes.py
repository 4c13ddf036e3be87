"""Our parameters have exactly the names and shapes of the official checkpoints.

Nothing is allocated: a network's initial weights are lazy.
"""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from official import TRANSFORMERS, official

from mlx_cogvideo.checkpoints.components import upstream_shape
from mlx_cogvideo.checkpoints.variants import match_variant
from mlx_cogvideo.nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX
from mlx_cogvideo.nn.t5 import T5Config, T5EncoderModel
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel, TransformerConfig


def stored_shapes(module) -> dict[str, tuple[int, ...]]:
    parameters = tree_flatten(module.parameters())
    return {name: upstream_shape(parameter.shape) for name, parameter in parameters}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_transformer_has_the_official_tensors(name):
    model = CogVideoXTransformer3DModel(TransformerConfig.from_dict(TRANSFORMERS[name]))
    assert stored_shapes(model) == official(name)


def test_the_vae_has_the_official_tensors():
    assert stored_shapes(AutoencoderKLCogVideoX(AutoencoderConfig())) == official("vae")


def test_the_text_encoder_has_the_official_tensors():
    assert stored_shapes(T5EncoderModel(T5Config())) == official("t5_v1_1_xxl_encoder")


def test_building_a_full_size_model_allocates_nothing():
    before = mx.get_active_memory()
    model = CogVideoXTransformer3DModel(TransformerConfig.from_dict(TRANSFORMERS["5b"]))
    assert len(tree_flatten(model.parameters())) == 1024
    assert mx.get_active_memory() - before < 10 * 2**20


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_each_official_configuration_is_recognized(name):
    variant = match_variant(TransformerConfig.from_dict(TRANSFORMERS[name]))
    assert variant is not None
    assert variant.alias == name.replace("_", "-")


def test_a_configuration_of_another_size_is_no_variant():
    assert match_variant(TransformerConfig(num_layers=5)) is None
