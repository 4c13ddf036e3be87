"""Converted folders without quantization are official folders: PyTorch's libraries open them."""

import diffusers
import mlx.core as mx
import pytest
import torch
import transformers
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


def test_a_dequantized_folder_gives_in_diffusers_what_the_quantized_one_gives_here(tmp_path):
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
