"""``lora.py`` from the outside, on the bundled demo and three tiny clips."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from commands import errors, generate

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.training.trainer import Settings, Trainer, saved_checkpoints
from mlx_cogvideo.video import write_video

SCRIPT = Path(__file__).parents[1] / "lora.py"
SMALL = ["--frames", 9, "--height", 32, "--width", 48, "--rank", 4, "--warmup", 2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, size in (("a", (48, 64)), ("b", (40, 80)), ("c", (33, 49))):
        write_video(folder / f"{name}.mp4", make_clip(12, *size), 8)
        (folder / f"{name}.txt").write_text(f"a yellow square moves right, take {name}")
    return folder


@pytest.fixture
def adapter(tmp_path) -> Path:
    return tmp_path / "adapter"


def lora(clips, adapter, *arguments) -> int:
    logging.getLogger("mlx_cogvideo").handlers.clear()
    command = ["--data", clips, "--adapter-path", adapter, "--model", "demo", *SMALL, *arguments]
    try:
        return main([str(argument) for argument in command])
    except SystemExit as stop:
        return stop.code


def tensors(adapter) -> dict[str, np.ndarray]:
    loaded = mx.load(str(adapter / "pytorch_lora_weights.safetensors"))
    return {name: np.array(tensor) for name, tensor in loaded.items()}


def same(first, second) -> bool:
    first, second = tensors(first), tensors(second)
    return first.keys() == second.keys() and all((first[n] == second[n]).all() for n in first)


def test_clips_become_an_adapter_that_changes_videos(clips, adapter, capsys, tmp_path):
    assert lora(clips, adapter, "--iters", 6, "--val-every", 3, "--learning-rate", 1e-2) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{adapter}\n"
    assert "clips    3 from" in captured.err
    assert "step 6: validation loss" in captured.err
    log = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
    assert [told["step"] for told in log] == [1, 2, 3, 4, 5, 6]
    assert [told["step"] for told in log if "validation" in told] == [3, 6]
    assert log[0]["learning_rate"] < log[2]["learning_rate"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["target_modules"] == ["attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"]
    assert (adapter / "loss.svg").read_text().count("<polyline") == 2
    assert generate(tmp_path / "video.mp4", "--lora", adapter) == 0


def test_samples_are_made_on_the_way(clips, adapter, capsys):
    samples = ["--sample-every", 2, "--sample-steps", 2]
    samples += ["--sample-prompt", "a red circle", "--sample-prompt", "a blue square"]
    assert lora(clips, adapter, "--iters", 4, *samples) == 0
    made = sorted(path.name for path in (adapter / "samples").iterdir())
    assert made == [f"000000{step}-{number}.mp4" for step in (2, 4) for number in (0, 1)]
    assert lora(clips, adapter.with_name("other"), "--sample-every", 2) == 2
    assert "go together" in capsys.readouterr().err
    # Sampling leaves the training as it is.
    assert lora(clips, adapter.with_name("other"), "--iters", 4) == 0
    assert same(adapter, adapter.with_name("other"))


def test_training_lowers_the_loss_at_fixed_noise(clips, adapter):
    options = ["--iters", 40, "--val-every", 20, "--learning-rate", 3e-3, "--batch-size", 3]
    assert lora(clips, adapter, *options) == 0
    log = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
    first, last = (told["validation"] for told in log if "validation" in told)
    assert last < 0.95 * first, (first, last)


@pytest.mark.parametrize("options", [[], ["--batch-size", 2, "--grad-accumulation-steps", 2]])
def test_a_training_goes_on_bit_for_bit(clips, adapter, tmp_path, monkeypatch, options, capsys):
    whole = tmp_path / "whole"
    options = [*options, "--iters", 7, "--lr-schedule", "cosine"]
    assert lora(clips, whole, *options) == 0
    stops = iter([False, False, True, False, True])
    with monkeypatch.context() as patch:
        patch.setattr("mlx_cogvideo.cli.lora.Interrupts", lambda: Stops(stops))
        assert lora(clips, adapter, *options) == 130
        assert "3 of 7 steps are kept" in capsys.readouterr().err
        assert lora(clips, adapter, *options, "--resume") == 130
    assert lora(clips, adapter, *options, "--resume") == 0
    assert same(adapter, whole)


class Stops:
    """In place of signals: answers in turn whether one has come."""

    patient = True

    def __init__(self, answers):
        self._answers = answers

    @property
    def wanted(self):
        return next(self._answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_a_killed_training_goes_on_bit_for_bit(clips, adapter, tmp_path):
    options = ["--iters", 12, "--save-every", 2]
    whole = tmp_path / "whole"
    assert lora(clips, whole, *options) == 0
    command = [
        sys.executable,
        SCRIPT,
        "--data",
        clips,
        "--adapter-path",
        adapter,
        "--model",
        "demo",
    ]
    command = [*map(str, [*command, *SMALL, *options])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not saved_checkpoints(adapter):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert saved_checkpoints(adapter)
    assert lora(clips, adapter, *options, "--resume") == 0
    assert same(adapter, whole)
    kept = [path.name for path in saved_checkpoints(adapter)]
    assert kept == ["0000008", "0000010", "0000012"]


def test_a_second_training_takes_latents_and_texts_from_the_cache(clips, adapter, monkeypatch):
    assert lora(clips, adapter, "--iters", 1) == 0
    monkeypatch.setattr(CogVideoXPipeline, "encode_video", None)
    monkeypatch.setattr(CogVideoXPipeline, "encode_prompt", None)
    assert lora(clips, adapter.with_name("other"), "--iters", 1) == 0
    assert same(adapter, adapter.with_name("other"))
    assert not list((clips / ".mlx_cogvideo").glob("*.partial.*"))


def test_a_quantized_model_is_trained_and_stays_packed(clips, adapter, tmp_path):
    assert convert(["--model", "demo", "-q", "4", "--mlx-path", str(tmp_path / "q4")]) == 0
    options = [
        "--iters",
        20,
        "--val-every",
        10,
        "--learning-rate",
        1e-2,
        "--model",
        tmp_path / "q4",
    ]
    assert lora(clips, adapter, *options) == 0
    log = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
    first, last = (told["validation"] for told in log if "validation" in told)
    assert last < first


def test_a_corrupt_clip_is_left_out_and_said(clips, adapter, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".mlx_cogvideo"))
    (data / "a.mp4").write_bytes((data / "a.mp4").read_bytes()[:100])
    (data / "b.mp4").write_bytes(b"")
    assert lora(data, adapter, "--iters", 1) == 0
    told = capsys.readouterr().err
    assert told.count("warning: left out: ") == 2
    (data / "c.mp4").write_bytes(b"")
    assert lora(data, adapter.with_name("other"), "--iters", 1) == 2
    (error,) = errors(capsys.readouterr().err)
    assert "no clip can be used" in error and "(and 2 more like this)" in error


def test_a_dry_run_lists_the_clips_and_writes_nothing(clips, adapter, capsys):
    assert lora(clips, adapter, "--dry-run") == 0
    assert f"{clips / 'a.mp4'}: a yellow square moves right, take a" in capsys.readouterr().out
    assert not adapter.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", 0], "rank must be at least 1; got 0"),
        (["--iters", 0], "iters must be at least 1; got 0"),
        (["--learning-rate", 0], "learning_rate must be above 0"),
        (["--target", "to_x"], "the model has no layers to_x"),
        (["--frames", 8], "must be 8N+1"),
        (
            ["--frames", 17],
            "no clip can be used: .* has 12 frames at 8 a second",
        ),
        (["--height", 30], "height must be a multiple of 16"),
    ],
    ids=lambda value: value[0][2:] if isinstance(value, list) else "",
)
def test_what_cant_be_learned_is_one_line(clips, adapter, capsys, options, message):
    assert lora(clips, adapter, "--iters", 1, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert re.search(message.replace("+", r"\+"), error)


def test_an_adapter_that_is_there_isnt_trained_over(clips, adapter, capsys):
    assert lora(clips, adapter, "--iters", 1) == 0
    assert lora(clips, adapter, "--iters", 2) == 1
    assert "holds an adapter: choose another --adapter-path, or go on" in capsys.readouterr().err
    assert lora(clips, adapter, "--iters", 2, "--resume", "--rank", 8) == 2
    assert "was begun otherwise: rank was 4 and is now 8" in capsys.readouterr().err
    assert lora(clips, adapter.with_name("none"), "--resume") == 1
    assert "has no checkpoint to resume from" in capsys.readouterr().err


def test_a_path_that_cant_be_written_is_one_line(clips, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert lora(clips, tmp_path / "file") == 1
    assert "is a file" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert lora(clips, tmp_path / "closed" / "adapter") == 1
        assert "can't be written" in capsys.readouterr().err


def test_the_order_of_the_clips_is_new_in_each_epoch_and_misses_none(monkeypatch):
    seen = []
    trainer = object.__new__(Trainer)
    trainer.settings, trainer.samples, trainer._unconditional = Settings(), list(range(5)), None
    monkeypatch.setattr("mlx_cogvideo.training.trainer.load_text", lambda path: None)
    monkeypatch.setattr("mlx_cogvideo.training.trainer._joined", lambda parts: None)
    monkeypatch.setattr(Sampled, "text", None, raising=False)
    trainer.samples = [Sampled(i) for i in range(5)]
    trainer._part = lambda sample, **_: seen.append(sample.number)
    for step in range(15):
        trainer.batch(step)
    epochs = [seen[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


class Sampled:
    def __init__(self, number):
        self.number = number
