"""Unquantized converted folders are official folders: PyTorch's libraries open them."""

import shutil

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file
from support import relative_error
from torch_reference import TOLERANCE, frames_first, ours, random, rotary_embedding

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.convert import main

OPENED_BY = {
    "transformer": diffusers.CogVideoXTransformer3DModel,
    "vae": diffusers.AutoencoderKLCogVideoX,
    "text_encoder": transformers.T5EncoderModel,
}


def convert(source, destination, *arguments):
    command = ["--model", source, "--mlx-path", destination, "--quiet", *arguments]
    assert main([str(argument) for argument in command]) == 0
    return destination


@pytest.mark.parametrize("part", OPENED_BY)
def test_an_unquantized_folder_holds_what_the_official_one_holds(tmp_path, part):
    copy = convert(DEMO_PATH, tmp_path / "copy")
    original, copied = (
        OPENED_BY[part].from_pretrained(folder / part).state_dict() for folder in (DEMO_PATH, copy)
    )
    assert original.keys() == copied.keys()
    assert all(torch.equal(original[name], copied[name]) for name in original)


def test_the_whole_folder_opens_as_a_pipeline_of_diffusers(tmp_path):
    copy = convert(DEMO_PATH, tmp_path / "copy", "--dtype", "float32")
    pipe = diffusers.CogVideoXPipeline.from_pretrained(copy, torch_dtype=torch.float32)
    assert pipe.transformer.dtype == torch.float32


def test_a_dequantized_folder_has_the_same_output_in_diffusers_as_the_quantized_one_here(tmp_path):
    small = convert(DEMO_PATH, tmp_path / "small", "-q", "4", "--dtype", "float32")
    back = convert(small, tmp_path / "back", "--dequantize")
    transformer = CogVideoXPipeline.from_pretrained(small, mx.float32).transformer
    theirs = diffusers.CogVideoXTransformer3DModel.from_pretrained(back / "transformer").eval()
    config = theirs.config
    latents = random(1, 3, config.in_channels, config.sample_height, config.sample_width)
    text = random(1, config.max_text_seq_length, config.text_embed_dim, seed=1)
    rotary = rotary_embedding(theirs, 3, config.sample_height, config.sample_width)
    with torch.no_grad():
        expected = theirs(latents, text, torch.tensor([400]), image_rotary_emb=rotary).sample
    result = transformer(ours(frames_first(latents)), ours(text), mx.array([400]))
    assert relative_error(result, frames_first(expected)) < TOLERANCE


@pytest.mark.parametrize("part", OPENED_BY)
def test_shards_with_an_index_have_priority_over_a_single_file(tmp_path, folders, part, caplog):
    """As in diffusers; transformers takes the single file, but here one rule holds for all."""
    folder = tmp_path / "model"
    shutil.copytree(folders("5b"), folder)
    network = OPENED_BY[part].from_pretrained(folder / part)
    network.save_pretrained(folder / part, max_shard_size="50KB")
    (stray,) = (file.name for file in (folders("5b") / part).glob("*.safetensors"))
    assert (folder / part / f"{stray}.index.json").is_file()
    tensors = load_file(folders("5b") / part / stray)
    save_file({n: 0.5 * t for n, t in tensors.items()}, folder / part / stray, {"format": "pt"})

    pipe = CogVideoXPipeline.from_pretrained(folder)
    expected = network.state_dict()
    if part != "text_encoder":
        from_index = OPENED_BY[part].from_pretrained(folder / part).state_dict()
        assert all(torch.equal(expected[name], from_index[name]) for name in expected)
    found = dict(tree_flatten(getattr(pipe, part).parameters()))
    for name, tensor in found.items():
        tensor = mx.moveaxis(tensor, -1, 1) if tensor.ndim >= 4 else tensor
        assert (np.array(tensor) == expected[name].numpy()).all(), name
    assert [r.getMessage() for r in caplog.records if "isn't used" in r.getMessage()]
