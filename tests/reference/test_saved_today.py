"""Model folders as today's diffusers and transformers save them give diffusers' numbers."""

import json

import diffusers
import mlx.core as mx
import numpy as np
import pytest
import torch
from support import OFFICIAL_SCHEDULER_CONFIG, relative_error
from torch_reference import (
    TEXT_LENGTH,
    TOLERANCE,
    frames_first,
    make_t5,
    make_transformer,
    make_vae,
    ours,
    random,
    rotary_embedding,
)
from transformers import T5Tokenizer

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.convert import main as convert


@pytest.fixture(scope="module", params=["plain", "fp16"])
def saved(request, tmp_path_factory):
    """An image-to-video pipeline as ``save_pretrained`` writes it, and the pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = T5Tokenizer.from_pretrained(DEMO_PATH / "tokenizer")
    transformer = make_transformer("5b-i2v")
    # As diffusers makes them.
    transformer.patch_embed.pos_embedding = transformer.patch_embed.pos_embedding.double()
    pipe = diffusers.CogVideoXImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=make_t5(vocab_size=len(tokenizer)),
        vae=make_vae(),
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler.from_config(OFFICIAL_SCHEDULER_CONFIG),
    )
    variant = None if request.param == "plain" else request.param
    pipe.save_pretrained(folder, variant=variant, max_shard_size="100KB")
    return folder, pipe


def test_it_is_the_kind_of_folder_that_is_meant(saved):
    """With ``tokenizer.json``, shards, and learned positions in float64."""
    folder, _ = saved
    assert [p.name for p in (folder / "tokenizer").glob("*") if "config" not in p.name] == [
        "tokenizer.json"
    ]
    files = list((folder / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    dtypes = {info["dtype"] for file in files for info in header(file).values()}
    assert dtypes == {"F32", "F64"}


def header(file) -> dict[str, dict]:
    content = file.read_bytes()
    entries = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def test_its_numbers_are_those_of_diffusers(saved):
    folder, reference = saved
    pipe = CogVideoXPipeline.from_pretrained(folder, mx.float32)
    prompts = ["a red circle moves right", "ﬁne  ＲＥＤ café"]
    tokens = reference.tokenizer(
        prompts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="np"
    )
    assert (np.array(pipe.tokenizer(prompts, TEXT_LENGTH)) == tokens.input_ids).all()
    latents, text = random(1, 5, 32, 8, 12), random(1, TEXT_LENGTH, 24, seed=1)
    with torch.no_grad():
        expected = reference.transformer(
            latents,
            text,
            torch.tensor([500]),
            image_rotary_emb=rotary_embedding(reference.transformer, 5, 8, 12),
            return_dict=False,
        )[0]
    actual = pipe.transformer(ours(frames_first(latents)), ours(text), mx.array([500]))
    assert relative_error(actual, frames_first(expected)) < TOLERANCE


def test_it_converts_to_a_folder_that_opens(saved, tmp_path):
    folder, _ = saved
    assert convert(["--model", str(folder), "--mlx-path", str(tmp_path / "made")]) == 0
    made, source = (CogVideoXPipeline.from_pretrained(f) for f in (tmp_path / "made", folder))
    assert made.tokenizer.encode("a red circle") == source.tokenizer.encode("a red circle")
    stored = header(tmp_path / "made" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert stored["patch_embed.pos_embedding"]["dtype"] == "F32"
