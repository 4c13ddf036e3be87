"""``lora.py --fine-tune-type dora`` and ``--use-rslora``."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from adapters import make_adapter
from commands import errors, generate
from trainings import SMALL, lora, same, tensors

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.training.estimates import estimate_training_memory
from mlx_cogvideo.training.settings import TrainingSettings
from mlx_cogvideo.video import read_video

DORA = ["--fine-tune-type", "dora", "--learning-rate", 1e-2]
MAGNITUDE = "lora_magnitude_vector"


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory) -> Path:
    """An adapter after two steps."""
    folder = tmp_path_factory.mktemp("trained") / "whole"
    assert lora(clips, folder, *DORA, "--use-rslora", "--alpha", 2, "--iters", 2) == 0
    return folder


def test_a_training_begins_with_the_norms_of_the_weights(clips, tmp_path):
    options = ["--fine-tune-type", "dora", "--iters", 1, "--learning-rate", 1e-30]
    assert lora(clips, tmp_path / "new", *options) == 0
    found = tensors(tmp_path / "new")
    own = dict(CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.float32).transformer.named_modules())
    magnitudes = [name for name in found if MAGNITUDE in name]
    assert len(magnitudes) == len(found) / 3 > 0
    for name in magnitudes:
        path = name.removeprefix("transformer.").removesuffix(f".{MAGNITUDE}")
        norms = np.linalg.norm(np.array(own[path].weight), axis=1)
        assert np.allclose(found[name], norms, rtol=1e-5)


def test_it_is_resumed_bit_for_bit_and_makes_other_videos(clips, trained, tmp_path):
    again, options = tmp_path / "again", [*DORA, "--use-rslora", "--alpha", 2]
    assert lora(clips, again, *options, "--iters", 1) == 0
    first = tensors(again)
    assert lora(clips, again, *options, "--iters", 2, "--resume") == 0
    assert same(trained, again)
    second = tensors(again)
    assert all((first[name] != second[name]).any() for name in first)
    config = json.loads((again / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["lora_alpha"]) == (True, True, 2)
    videos = [tmp_path / f"{scale}.mp4" for scale in (0, 1)]
    assert generate(videos[0]) == 0
    assert generate(videos[1], "--lora", again) == 0
    plain, adapted = (read_video(video)[0] for video in videos)
    assert (plain != adapted).any()


def test_the_estimate_counts_the_magnitudes(clips, trained, tmp_path, capsys):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH)
    plain, dora = (
        estimate_training_memory(
            pipe, pipe.geometry(9, 32, 48), TrainingSettings(fine_tune_type=kind, rank=4)
        )["train"]
        for kind in ("lora", "dora")
    )
    magnitudes = [t.size for name, t in tensors(trained).items() if "magnitude" in name]
    assert dora - plain == 16 * sum(magnitudes) > 0  # with their gradients and moments
    assert lora(clips, tmp_path, "--fine-tune-type", "dora", "--dry-run") == 0
    assert "DoRA, rank 4" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [[], ["--fine-tune-type", "dora", "--use-rslora"]], ids=str)
def test_a_training_that_starts_from_an_adapter_keeps_its_kind(clips, trained, tmp_path, settings):
    options = ["--resume-adapter-file", trained, "--iters", 1, "--learning-rate", 1e-30, *settings]
    assert lora(clips, tmp_path / "new", *options, small=SMALL[:6]) == 0
    assert same(trained, tmp_path / "new")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["lora_alpha"]) == (True, True, 2)
    options = ["--iters", 2, "--learning-rate", 1e-30, "--resume"]
    assert lora(clips, tmp_path / "new", *options, small=SMALL[:6]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fine-tune-type", "lora"], "has fine_tune_type dora, and --fine-tune-type is lora"),
        (["--no-use-rslora"], "has use_rslora True, and --use-rslora is False"),
    ],
    ids=str,
)
def test_another_kind_than_the_file_has_is_refused(
    clips, trained, tmp_path, capsys, options, message
):
    start = ["--resume-adapter-file", trained, *options]
    assert lora(clips, tmp_path / "new", *start, small=SMALL[:6]) == 2
    assert message in errors(capsys.readouterr().err)[0]


def test_lora_and_lokr_dont_start_dora(clips, tmp_path, capsys):
    source = make_adapter(tmp_path / "source")
    start = ["--fine-tune-type", "dora", "--resume-adapter-file"]
    assert lora(clips, tmp_path / "new", *start, source, small=SMALL[:6]) == 2
    assert "has fine_tune_type lora, and --fine-tune-type is dora" in capsys.readouterr().err
    name = "transformer.transformer_blocks.0.attn1.to_q.lokr_w"
    lokr = {f"{name}{i}": mx.ones(shape) for i, shape in ((1, (8, 8)), (2, (24, 24)))}
    mx.save_safetensors(str(tmp_path / "lokr.safetensors"), lokr)
    file = tmp_path / "lokr.safetensors"
    assert lora(clips, tmp_path / "new", *start, file, small=SMALL[:6]) == 2
    assert "isn't all LoRA or all DoRA: only these can be trained" in capsys.readouterr().err
