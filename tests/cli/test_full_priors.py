"""Prior prompts in a training of all weights: the model's answers are computed before it."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from trainings import lora, read_log

SMALL = ["--frames", 9, "--height", 32, "--width", 48, "--warmup", 1, "--learning-rate", 1e-3]
FULL = ["--fine-tune-type", "full", "--train-layers", "transformer_blocks.4.*"]


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prior.txt"
    path.write_text("a red circle moves left\na blue square moves up\n")
    return path


def weights(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model/transformer/diffusion_pytorch_model.safetensors"))


def test_the_answers_are_those_of_the_model_before_the_training(clips, tmp_path, prompts, capsys):
    cache = tmp_path / "cache"
    options = [*FULL, "--iters", 4, "--prior-prompts", prompts, "--cache", cache]
    assert lora(clips, tmp_path / "whole", *options, "--json-events", small=SMALL) == 0
    first, *others = read_log(tmp_path / "whole")
    # Nothing is changed yet in the first step; then the model moves away from its answers.
    assert first["prior_loss"] < 1e-9
    assert all(row["prior_loss"] > 1e-7 for row in others)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    files = [file for file in cache.iterdir() if "answers" in mx.load(str(file))]
    sizes = [array.nbytes for file in files for array in mx.load(str(file)).values()]
    plan = next(event for event in events if event["event"] == "plan")
    assert len(files) == 4 and plan["disk"]["prior"] == sum(sizes)


def test_a_resumed_training_learns_the_same_answers_even_if_they_are_gone(clips, tmp_path, prompts):
    options = [*FULL, "--prior-prompts", prompts]
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert lora(clips, whole, *options, "--iters", 4, small=SMALL) == 0
    cache = ["--cache", tmp_path / "cache"]
    assert lora(clips, again, *options, *cache, "--iters", 2, small=SMALL) == 0
    for file in (tmp_path / "cache").iterdir():
        if "answers" in mx.load(str(file)):
            file.unlink()
    assert lora(clips, again, *options, *cache, "--iters", 4, "--resume", small=SMALL) == 0
    expected = weights(whole)
    assert all(mx.array_equal(array, expected[name]) for name, array in weights(again).items())
    found, wanted = ([row["prior_loss"] for row in read_log(each)] for each in (again, whole))
    assert found == wanted
