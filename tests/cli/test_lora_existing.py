"""``lora.py --resume-adapter-file``: a training that starts from an existing adapter."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from adapters import ALPHA, RANK, make_adapter
from commands import errors
from trainings import lora, read_log, same, tensors

SIZE = ["--frames", 9, "--height", 32, "--width", 48, "--warmup", 0]
UNCHANGED = ["--iters", 1, "--learning-rate", 1e-30]
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def source(tmp_path) -> Path:
    return make_adapter(tmp_path / "source")


def start(clips, folder, source, *arguments) -> int:
    return lora(clips, folder, "--resume-adapter-file", source, *arguments, small=SIZE)


def spelled(source: Path, spelling: str) -> Path:
    """The adapter as another tool writes it."""
    own, found = mx.load(str(source / FILE)), {}
    for name, array in own.items():
        layer, half = name.removeprefix("transformer.").split(".lora_")
        if spelling == "kohya":
            flat = f"lora_unet__{layer.replace('.', '_')}"
            found[f"{flat}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = array
            found[f"{flat}.alpha"] = mx.array(float(ALPHA))
        else:
            older = f"transformer.{layer}.lora.{'down' if half[0] == 'A' else 'up'}.weight"
            found[older] = array.astype(mx.bfloat16)
    file = source.with_name("spelled.safetensors")
    mx.save_safetensors(str(file), found)
    return file


@pytest.mark.parametrize(
    ("spelling", "alpha"),
    [
        ("diffusers", ALPHA),
        ("PEFT", ALPHA),
        ("kohya", ALPHA),
        ("older diffusers, in bfloat16", RANK),
    ],
)
def test_a_training_starts_with_the_weights_and_settings_of_the_file(
    clips, source, tmp_path, spelling, alpha
):
    file = {"diffusers": source, "PEFT": source / "adapter_model.safetensors"}.get(spelling)
    file = file or spelled(source, spelling)
    assert start(clips, tmp_path / "new", file, *UNCHANGED) == 0
    before, after = tensors(source), tensors(tmp_path / "new")
    error = 1e-2 if "bfloat16" in spelling else 0
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], rtol=error, atol=0) for name in before)
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, alpha)
    assert config["target_modules"] == ["attn1.to_out.0", "attn1.to_q", "ff.net.2"]


def test_the_step_the_rate_and_the_clips_are_new(clips, source, tmp_path, capsys):
    assert lora(clips, tmp_path / "first", "--iters", 3, "--learning-rate", 1e-2) == 0
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns("a.*"))
    new = ["--iters", 2, "--learning-rate", 1e-3, "--height", 48]
    assert start(data, tmp_path / "second", tmp_path / "first", *new) == 0
    assert f"rank 4, started from {tmp_path / 'first'}" in capsys.readouterr().err
    rows = read_log(tmp_path / "second")
    assert [(row["step"], round(row["learning_rate"], 6)) for row in rows] == [(1, 1e-3), (2, 1e-3)]
    assert not same(tmp_path / "first", tmp_path / "second")
    record = tmp_path / "second" / "checkpoints" / "0000002" / "training.json"
    settings = json.loads(record.read_text())["settings"]
    assert settings["resume_adapter_file"] == str(tmp_path / "first")


def test_it_is_resumed_without_the_file(clips, source, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start(clips, whole, source, "--iters", 3) == 0
    assert start(clips, parts, source, "--iters", 1) == 0
    shutil.rmtree(source)
    assert lora(clips, parts, "--iters", 2, "--resume", small=SIZE) == 0
    assert start(clips, parts, source, "--iters", 3, "--resume") == 0  # the same command
    assert same(whole, parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", 8], "has rank 4, and --rank is 8: leave out --rank"),
        (["--alpha", 4], "has alpha 8.0, and --alpha is 4.0"),
        (
            ["--target", "to_q"],
            "has target attn1.to_out.0 attn1.to_q ff.net.2, and --target is to_q",
        ),
        (["--resume-adapter-file", "nothing"], "no adapter 'nothing'"),
        (["--resume-adapter-file", ""], "is empty: name a file"),
        (["--resume"], "no checkpoint to resume from"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_the_file_decides_cant_be_asked_otherwise(
    clips, source, tmp_path, capsys, options, message
):
    assert start(clips, tmp_path / "new", source, *options) != 0
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not (tmp_path / "new").exists()


def test_what_the_file_has_may_be_given_in_other_words(clips, source, tmp_path):
    options = ["--rank", RANK, "--alpha", ALPHA, "--target", "to_out.0", "to_q", "net.2"]
    assert start(clips, tmp_path / "new", source, *options, *UNCHANGED) == 0
    assert same(source, tmp_path / "new")


def test_a_training_that_began_otherwise_isnt_resumed_with_a_file(clips, source, tmp_path, capsys):
    assert lora(clips, tmp_path / "new", "--iters", 1) == 0
    assert start(clips, tmp_path / "new", source, "--iters", 2, "--resume") == 2
    assert "began with a new adapter: leave out" in errors(capsys.readouterr().err)[0]


def test_an_adapter_of_some_blocks_stays_one_of_these_blocks(clips, source, tmp_path):
    arrays = mx.load(str(source / FILE))
    some = {name: array for name, array in arrays.items() if "blocks.1." in name}
    mx.save_safetensors(str(tmp_path / "some.safetensors"), some)
    assert start(clips, tmp_path / "new", tmp_path / "some.safetensors", *UNCHANGED) == 0
    assert tensors(tmp_path / "new").keys() == some.keys()
    config = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert all(name.startswith("transformer_blocks.1.") for name in config["target_modules"])
    assert (
        lora(
            clips, tmp_path / "new", "--iters", 2, "--resume", "--learning-rate", 1e-30, small=SIZE
        )
        == 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda n, a: (
                a[:2]
                if "0.attn1.to_q.lora_A" in n
                else a[:, :2]
                if "0.attn1.to_q.lora_B" in n
                else a
            ),
            "differ in rank or scale",
        ),
        (lambda n, a: a * float("nan"), "NaN"),
        (lambda n, a: a[:, :3] if "lora_A" in n else a, "is for another model"),
    ],
    ids=["ranks", "NaN", "model"],
)
def test_an_adapter_that_cant_be_trained_is_one_line(
    clips, source, tmp_path, capsys, change, message
):
    arrays = {name: change(name, a) for name, a in mx.load(str(source / FILE)).items()}
    mx.save_safetensors(str(tmp_path / "odd.safetensors"), arrays)
    assert start(clips, tmp_path / "new", tmp_path / "odd.safetensors") != 0
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not (tmp_path / "new").exists()


def test_layers_outside_of_the_blocks_are_refused(clips, tmp_path, capsys):
    source = make_adapter(tmp_path / "time", targets=("time_embedding.linear_1",))
    assert start(clips, tmp_path / "new", source) == 2
    assert "adapts time_embedding.linear_1" in errors(capsys.readouterr().err)[0]
