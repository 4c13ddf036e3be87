"""``lora.py --lora``: a training of a model that has adapters already."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from adapters import make_adapter
from commands import errors
from trainings import lora, read_log, same, tensors

from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.generate import main as generate
from mlx_cogvideo.video import read_video

REST = ["--target", "attn1.to_q", "attn1.to_v", "--learning-rate", 1e-3]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "base")


@pytest.fixture(scope="module")
def fused(tmp_path_factory, base) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fused"
    command = ["--model", "demo", "--lora", base, "0.5", "--dtype", "float32", "--quiet"]
    assert convert([*map(str, command), "--mlx-path", str(folder)]) == 0
    return folder


def differences(first: Path, second: Path) -> float:
    first, second = tensors(first), tensors(second)
    return max(np.abs(first[name] - second[name]).max() for name in first)


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_log(folder)]


def test_it_learns_what_a_training_of_the_fused_model_learns(clips, base, fused, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moves left\n")
    rest = [*REST, "--iters", 3, "--prior-prompts", prompts]
    on, of_fused = tmp_path / "on", tmp_path / "fused"
    assert lora(clips, on, "--lora", base, 0.5, *rest) == 0
    assert lora(clips, of_fused, "--model", fused, *rest) == 0
    assert np.allclose(column(on, "loss"), column(of_fused, "loss"), rtol=2e-6)
    # What it should answer to prior prompts is what it answers before its first update.
    first, *others = column(on, "prior_loss")
    assert first < 1e-11 and np.allclose(others, column(of_fused, "prior_loss")[1:], rtol=3e-3)
    learned = max(np.abs(array).max() for name, array in tensors(on).items() if "lora_B" in name)
    assert differences(on, of_fused) < 7e-6 < 2e-3 < learned


def test_a_packed_model_stays_packed(clips, base, tmp_path):
    rest = [*REST, "--iters", 1, "-q", 8]
    assert lora(clips, tmp_path / "on", "--lora", base, *rest) == 0
    assert lora(clips, tmp_path / "none", "--lora", base, 0, *rest) == 0
    losses = [column(tmp_path / name, "loss")[0] for name in ("on", "none")]
    assert abs(losses[0] - losses[1]) > 0.01


def test_a_sample_is_made_with_all_adapters(clips, base, tmp_path):
    sample = ["--sample-every", 1, "--sample-prompt", "a red circle", "--sample-steps", 2]
    assert lora(clips, tmp_path / "on", "--lora", base, *REST, "--iters", 1, *sample) == 0
    command = ["--model", "demo", "--lora", base, "--lora", tmp_path / "on", "--steps", 2]
    command += ["--frames", 9, "--height", 32, "--width", 48, "--seed", 0, "--quiet"]
    output = tmp_path / "video.mp4"
    assert generate([*map(str, command), "--prompt", "a red circle", "--output", str(output)]) == 0
    frames = read_video(output)[0], read_video(tmp_path / "on/samples/0000001-0.mp4")[0]
    assert (frames[0] == frames[1]).all()


def test_it_resumes_with_the_same_adapters_only(clips, base, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    moved = shutil.copytree(base, tmp_path / "moved")
    assert lora(clips, whole, "--lora", base, *REST, "--iters", 3) == 0
    assert lora(clips, parts, "--lora", base, *REST, "--iters", 1) == 0
    other = make_adapter(tmp_path / "other", seed=1)
    capsys.readouterr()
    for options in (["--lora", other], ["--lora", base, 0.9], []):
        assert lora(clips, parts, *options, *REST, "--iters", 3, "--resume") == 2
        (error,) = errors(capsys.readouterr().err)
        assert "the weights or the scale of adapter 1 of --lora differ" in error
    two = ["--lora", base, "--lora", other]
    assert lora(clips, parts, *two, *REST, "--iters", 3, "--resume") == 2
    assert "adapter 2 of --lora differ" in errors(capsys.readouterr().err)[0]
    assert lora(clips, parts, "--lora", moved, *REST, "--iters", 3, "--resume") == 0
    assert same(whole, parts)


def test_the_plan_names_the_adapters_and_counts_their_memory(clips, base, tmp_path, capsys):
    def plan(*options) -> dict:
        assert lora(clips, tmp_path / "new", *options, "--dry-run", "--json-events") == 0
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return next(line for line in lines if line["event"] == "plan")

    alone, on = plan(), plan("--lora", base, 0.5)
    assert alone["lora"] == [] and on["lora"] == [{"source": str(base), "scale": 0.5}]
    weights = sum(array.nbytes for array in tensors(base).values())
    assert on["memory"]["train"] - alone["memory"]["train"] == weights


def test_it_goes_with_another_adapter_and_another_model_to_start_from(clips, base, fused, tmp_path):
    start = make_adapter(tmp_path / "start", seed=1)
    options = ["--model", fused, "--lora", base, "--resume-adapter-file", start]
    unchanged = ["--warmup", 0, "--learning-rate", 1e-30, "--iters", 1]
    size = ["--frames", 9, "--height", 32, "--width", 48]
    assert lora(clips, tmp_path / "new", *options, *unchanged, small=size) == 0
    assert same(start, tmp_path / "new")
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "fused"
    assert [each["source"] for each in config["base_adapters"]] == ["base"]
    assert lora(clips, tmp_path / "new", *options[:4], *unchanged, "--resume", small=size) == 0


def test_an_adapter_isnt_added_twice(clips, base, tmp_path, capsys):
    options = ["--lora", base, "--resume-adapter-file", base]
    assert lora(clips, tmp_path / "new", *options, small=[]) == 2
    (error,) = errors(capsys.readouterr().err)
    assert "is given as --resume-adapter-file and as --lora" in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [(["nothing"], "no adapter 'nothing'"), (["{base}", "nan"], "must be a finite number")],
)
def test_an_adapter_that_cant_be_used_is_one_line(clips, base, tmp_path, capsys, adapter, message):
    adapter = [word.format(base=base) for word in adapter]
    assert lora(clips, tmp_path / "new", "--lora", *adapter) in (1, 2)
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not (tmp_path / "new").exists()


def test_all_weights_are_trained_with_the_adapters_fused_into_them(clips, base, fused, tmp_path):
    def weights(folder: Path) -> bytes:
        return (folder / "model/transformer/diffusion_pytorch_model.safetensors").read_bytes()

    full = ["--fine-tune-type", "full", "--iters", 1, "--warmup", 0, "--learning-rate", 1e-3]
    size = ["--frames", 9, "--height", 32, "--width", 48]
    assert lora(clips, tmp_path / "on", *full, "--lora", base, 0.5, small=size) == 0
    assert lora(clips, tmp_path / "fused", *full, "--model", fused, small=size) == 0
    assert weights(tmp_path / "on") == weights(tmp_path / "fused")
    assert lora(clips, tmp_path / "on", *full, "--lora", base, "--resume", small=size) == 2


def test_an_adapter_is_trained_beside_lokr(clips, tmp_path):
    arrays = {}
    for part, side in (("w1", 8), ("w2", 24)):
        name = f"base_model.model.transformer_blocks.0.attn1.to_q.lokr_{part}"
        arrays[name] = 0.1 * mx.random.normal((side, side), key=mx.random.key(side))
    (tmp_path / "lokr").mkdir()
    mx.save_safetensors(str(tmp_path / "lokr" / "adapter_model.safetensors"), arrays)
    about = {"peft_type": "LOKR", "r": 4, "alpha": 4}
    (tmp_path / "lokr" / "adapter_config.json").write_text(json.dumps(about))
    with_lokr, without = tmp_path / "with", tmp_path / "without"
    assert lora(clips, with_lokr, "--iters", 2, "--lora", tmp_path / "lokr") == 0
    assert lora(clips, without, "--iters", 2) == 0
    assert not same(with_lokr, without)
