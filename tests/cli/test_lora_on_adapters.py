"""``lora.py --lora``: a training of a model that has adapters already."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from adapters import make_adapter
from commands import errors
from trainings import lora, make_data, read_log, same, tensors

from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.generate import main as generate

TARGETS = ["--target", "attn1.to_q", "attn1.to_v"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def fused(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fused"
    command = ["--model", "demo", "--lora", base, "0.5", "--mlx-path", folder, "--quiet"]
    assert convert(list(map(str, command))) == 0
    return folder


@pytest.fixture(scope="module")
def prior(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("prior") / "prompts.txt"
    file.write_text("a red circle moves left\n")
    return file


def close(first: Path, second: Path) -> bool:
    first, second = tensors(first), tensors(second)
    return all(np.allclose(first[name], second[name], rtol=0, atol=1e-5) for name in first)


def losses(folder: Path, name="loss") -> list[float]:
    return [row[name] for row in read_log(folder)]


def test_it_trains_what_a_training_of_the_fused_model_trains(clips, base, fused, prior, tmp_path):
    rest = [*TARGETS, "--iters", 4, "--learning-rate", 1e-3, "--prior-prompts", prior]
    assert lora(clips, tmp_path / "on", "--lora", base, 0.5, *rest) == 0
    assert lora(clips, tmp_path / "fused", "--model", fused, *rest) == 0
    assert lora(clips, tmp_path / "alone", *rest) == 0
    assert np.allclose(losses(tmp_path / "on"), losses(tmp_path / "fused"), rtol=1e-4)
    # Before the first update, the model answers the prior prompts as it should.
    prior_losses = losses(tmp_path / "on", "prior_loss")
    assert prior_losses[0] < 1e-9 and np.allclose(
        prior_losses, losses(tmp_path / "fused", "prior_loss"), atol=1e-9, rtol=1e-2
    )
    print(prior_losses, losses(tmp_path / "fused", "prior_loss"))
    a, b = tensors(tmp_path / "on"), tensors(tmp_path / "fused")
    print(
        max(abs(a[n] - b[n]).max() for n in a),
        [abs(a[n] - b[n]).max() / abs(a[n]).max() for n in a],
    )
    print("ALL", [(n[-30:], float(abs(a[n] - b[n]).max()), float(abs(a[n]).max())) for n in a])
    assert close(tmp_path / "on", tmp_path / "fused")
    assert not close(tmp_path / "on", tmp_path / "alone")
