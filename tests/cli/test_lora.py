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
from dataclasses import fields
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from clips import make_clip
from commands import errors, generate
from support import locked_elsewhere

from mlx_cogvideo import CogVideoXPipeline, GenerationError
from mlx_cogvideo.checkpoints.adapters import ADAPTER_FILES
from mlx_cogvideo.cli.config_file import with_config_file
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.cli.lora_options import make_parser
from mlx_cogvideo.diffusion.schedulers import make_scheduler
from mlx_cogvideo.distributed import ALONE
from mlx_cogvideo.nn.low_rank import add_adapter
from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.training.clips import Clip
from mlx_cogvideo.training.loss import AdapterLoss, Batch
from mlx_cogvideo.training.prepare import Sample
from mlx_cogvideo.training.settings import Settings, new_adapter
from mlx_cogvideo.training.trainer import Trainer
from mlx_cogvideo.video import ClipSpec, write_video

SCRIPT = Path(__file__).parents[2] / "lora.py"
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
    assert not list((clips / ".mlx_cogvideo").glob("*.part.*"))


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
    told = capsys.readouterr()
    assert "memory   about " in told.err
    taken = "9 frames of 48x32 of its 12 of 64x48"
    expected = f"{clips / 'a.mp4'}: {taken}: a yellow square moves right, take a"
    assert told.out.splitlines()[0] == expected
    assert not adapter.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", 0], "--rank: must be at least 1, got 0"),
        (["--iters", 0], "--iters: must be at least 1, got 0"),
        (["--grad-accumulation-steps", 0], "--grad-accumulation-steps: must be at least 1"),
        (["--val-every", -1], "--val-every: must be 0 or more"),
        (["--iter", 3], "unrecognized arguments: --iter"),
        (["--learning-rate", 0], "learning_rate must be a number above 0"),
        (["--target", "to_q", "to_out"], "the model's blocks have no layers to_out"),
        (["--seed", -1], "seed must be at least 0"),
        (["--warmup", -3], "--warmup: must be 0 or more, got -3"),
        (["--alpha", 0], "alpha must be a number above 0"),
        (["--skip-frames", 1, 2, 1], "--skip-frames takes one or two numbers"),
        (["--skip-frames", -2], "--skip-frames takes one or two numbers"),
        (["--fps", "nan"], "must be above 0, got nan"),
        (["--save-every", 0], "must be at least 1, got 0"),
        (["--target", "to_x"], "the model's blocks have no layers to_x"),
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
    refused = "holds a training: choose another --adapter-path, or go on with --resume"
    assert refused in capsys.readouterr().err
    for name in ADAPTER_FILES[::2]:
        (adapter / name).unlink()
    assert lora(clips, adapter, "--iters", 2) == 1
    assert refused in capsys.readouterr().err
    assert lora(clips, adapter, "--iters", 2, "--resume", "--rank", 8) == 2
    assert "was begun otherwise: rank was 4 and is now 8" in capsys.readouterr().err
    assert lora(clips, adapter.with_name("none"), "--resume") == 1
    assert "has no checkpoint to resume from" in capsys.readouterr().err
    assert not adapter.with_name("none").exists()


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_an_adapter_of_another_tool_isnt_trained_over(clips, adapter, capsys, name):
    adapter.mkdir()
    (adapter / name).write_text("{}")
    assert lora(clips, adapter, "--iters", 1) == 1
    assert "holds an adapter: choose another --adapter-path" in capsys.readouterr().err
    assert (adapter / name).read_text() == "{}"


def test_an_interruption_at_once_says_what_is_kept(clips, adapter, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", interrupted)
        assert lora(clips, adapter, "--iters", 3) == 130
        assert "interrupted: no step is saved yet" in capsys.readouterr().err
    assert lora(clips, adapter, "--iters", 3) == 0
    monkeypatch.setattr(Trainer, "train", interrupted)
    assert lora(clips, adapter, "--iters", 5, "--resume") == 130
    assert f"interrupted: 3 of 5 steps are kept in {adapter}; " in capsys.readouterr().err


def test_samples_and_adapters_among_the_clips_arent_learned(clips, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.chdir(data)
    sampled = ["--sample-every", 1, "--sample-prompt", "a red circle", "--sample-steps", 1]
    assert lora(".", "adapters", "--iters", 1, *sampled) == 0
    assert lora(".", "adapters", "--iters", 2, "--resume") == 0


def test_a_picture_for_samples_that_isnt_there_is_told_at_once(clips, adapter, capsys):
    sampled = ["--sample-every", 1, "--sample-prompt", "a red circle@@none.png"]
    assert lora(clips, adapter, "--model", "demo-i2v", *sampled) == 2
    (error,) = errors(capsys.readouterr().err)
    assert "none.png" in error and not adapter.exists()


def test_a_path_that_cant_be_written_is_one_line(clips, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert lora(clips, tmp_path / "file") == 1
    assert "is a file" in capsys.readouterr().err
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        assert lora(clips, tmp_path / "closed" / "adapter") == 1
        assert "can't be written" in capsys.readouterr().err


def samples(*counts) -> list[Sample]:
    """So many of each of several shapes."""
    return [
        Sample(Clip(Path(f"{frames}-{i}"), ""), ClipSpec(frames, 32, 48, 8), Path(), Path())
        for frames, count in zip((9, 17), counts, strict=False)
        for i in range(count)
    ]


def batches(trainer, count) -> list[list[Sample]]:
    return [trainer._order(number) for number in range(count)]


def test_the_order_of_the_clips_is_new_in_each_epoch_and_misses_none():
    trainer = object.__new__(Trainer)
    trainer.settings, trainer.samples, trainer.peers = Settings(), samples(5), ALONE
    seen = [batch[0].clip.path.name for batch in batches(trainer, 15)]
    epochs = [seen[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == [f"9-{i}" for i in range(5)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_clips_of_a_batch_have_one_shape_and_all_are_seen():
    trainer = object.__new__(Trainer)
    trainer.settings, trainer.samples = Settings(batch_size=2), samples(5, 3)
    trainer.peers = ALONE
    for epoch in range(3):
        seen = [trainer._order(epoch * 5 + i) for i in range(5)]
        assert all(len(batch) == 2 and batch[0].shape == batch[1].shape for batch in seen)
        assert len({sample.clip.path for batch in seen for sample in batch}) == 8


def test_options_come_from_a_file_and_the_command_line_goes_first(clips, adapter, tmp_path, capsys):
    config = tmp_path / "training.toml"
    config.write_text('iters = 7\nbatch-size = 3\ntarget = ["to_q", "to_v"]\ndry-run = true\n')
    assert lora(clips, adapter, "--config", config, "--iters", 5) == 0
    assert "5 steps of 3" in capsys.readouterr().err
    assert not adapter.exists()
    (tmp_path / "training.json").write_text('{"iters": 6, "dry_run": true}')
    assert lora(clips, adapter, "--config", tmp_path / "training.json") == 0
    assert "6 steps of 1" in capsys.readouterr().err
    config.write_text('adapter-path = "~/mine"\ngrad-accumulation-steps = 4\ndry-run = true\n')
    assert lora(clips, adapter, "--config", config, "--iters", 5, "--adapter-path", adapter) == 0
    assert "5 updates of 4 times 1" in capsys.readouterr().err
    words = with_config_file(make_parser(), ["--config", str(config)])
    assert f"--adapter-path={Path.home() / 'mine'}" in words


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "itrs = 7", "has 'itrs', which is no option"),
        ("a.toml", "iters =", "a.toml can't be read"),
        ("a.json", "[", "a.json can't be read"),
        ("a.yaml", "iters: 7", "must end in .toml or .json"),
    ],
)
def test_a_wrong_file_of_options_is_one_line(clips, adapter, tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert lora(clips, adapter, "--config", tmp_path / name) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error


def test_clips_are_sorted_into_buckets(clips, adapter, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".*"))
    write_video(data / "tall.mp4", make_clip(20, 64, 48), 8)
    (data / "tall.txt").write_text("a tall one")
    command = ["--data", data, "--adapter-path", adapter, "--model", "demo", "--rank", 4]
    command += ["--bucket", "9x32x48", "17x48x32", "--iters", 4, "--warmup", 0]
    command = [str(part) for part in command]
    assert main([*command, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "9 frames of 48x32 of its 12 of 64x48",
        "9 frames of 48x32 of its 12 of 80x40",
        "9 frames of 48x32 of its 12 of 50x34",
        "17 frames of 32x48 of its 20 of 48x64",
    ]
    assert main(command) == 0
    assert len((adapter / "log.jsonl").read_text().splitlines()) == 4


def test_the_prior_keeps_what_the_model_does(clips, adapter, tmp_path):
    prompts = tmp_path / "prior.txt"
    prompts.write_text("a red circle moves left on a white background\n# no prompt\n")
    options = ["--iters", 12, "--learning-rate", 3e-3, "--batch-size", 2, "--seed", 1]

    def drift(path, *more) -> float:
        assert lora(clips, path, *options, *more) == 0
        pipe = CogVideoXPipeline.from_pretrained("demo")
        embeds = pipe.encode_prompt("a red circle moves left on a white background")
        noise = mx.random.normal((1, 3, 4, 6, 16), key=mx.random.key(0))
        before = pipe.transformer(noise, embeds, mx.array([900]))
        pipe.load_lora(path)
        return mx.abs(pipe.transformer(noise, embeds, mx.array([900])) - before).mean().item()

    prior = ["--prior-prompts", prompts, "--prior-weight", 3, "--prior-batch-size", 2]
    assert drift(adapter, *prior) < 0.6 * drift(tmp_path / "without")
    told = json.loads((adapter / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < told["prior_loss"] < told["loss"]


def test_float16_gradients_of_large_clips_are_not_lost():
    """The gradient of each number of a mean over a million is nothing in float16."""
    pipe = CogVideoXPipeline.from_pretrained("demo", mx.float16)
    random = [mx.random.normal((1, 5, 12, 12, 16), key=mx.random.key(i)) for i in range(2)]
    text = 0.1 * mx.random.normal((1, 32, 64), key=mx.random.key(2))
    batch = Batch(random[0], text, random[1], mx.array([500]))
    gradients = {}
    for dtype in (mx.float32, mx.float16):
        pipe = CogVideoXPipeline.from_pretrained("demo", dtype)
        transformer = pipe.transformer.freeze()
        layers = new_adapter(transformer, Settings(rank=4))
        for number, layer in enumerate(layers.values()):
            layer.lora_B = 0.1 * mx.random.normal(layer.lora_B.shape, key=mx.random.key(number))
        add_adapter(transformer, layers)
        scheduler = make_scheduler("ddim", pipe.scheduler_config, mx.random.key(0))
        # As if the clip were a thousand times as large, and the loss their mean.
        one = Tiny(*(getattr(batch, field.name) for field in fields(batch)))
        _, of_all = AdapterLoss(transformer, scheduler, dtype).loss_and_gradients(one)
        gradients[dtype] = mx.concatenate([g.flatten() for g in of_all.values()])
    exact, rough = gradients[mx.float32], gradients[mx.float16].astype(mx.float32)
    norms = mx.linalg.norm(exact) * mx.linalg.norm(rough)
    assert (mx.inner(exact, rough) / norms).item() > 0.999
    assert ((rough == 0) & (exact != 0)).mean().item() < 0.01


class Tiny(Batch):
    """A batch with a loss a thousand times smaller."""

    def total(self, losses):
        return super().total(losses) / 1000


def test_a_gradient_that_isnt_finite_ends_the_training_before_it_is_used(
    clips, adapter, monkeypatch, capsys
):
    train_step = AdapterLoss.loss_and_gradients
    calls = []

    def broken(*arguments):
        losses, gradients = train_step(*arguments)
        calls.append(1)
        if len(calls) == 3:
            gradients = {name: g + float("inf") for name, g in gradients.items()}
        return losses, gradients

    monkeypatch.setattr(AdapterLoss, "loss_and_gradients", broken)
    options = ["--iters", 4, "--save-every", 1]
    assert lora(clips, adapter, *options) == 1
    assert "the loss of step 3 is" in capsys.readouterr().err
    assert [path.name for path in saved_checkpoints(adapter)] == ["0000001", "0000002"]
    assert lora(clips, adapter, *options, "--resume") == 0
    assert all(np.isfinite(tensor).all() for tensor in tensors(adapter).values())


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (["--fps", 4, "--short", "repeat"], "clips"),
        (["--height", 48, "--width", 64], "clips"),
        (["--dtype", "bfloat16"], "model's weights"),
        (["--prior-prompts", "other.txt"], "prior prompts"),
        (["--learning-rate", 1], "learning_rate was 0.0001 and is now 1.0"),
    ],
    ids=str,
)
def test_a_training_doesnt_go_on_with_other_data(
    clips, adapter, tmp_path, monkeypatch, capsys, changed, part
):
    monkeypatch.chdir(tmp_path)
    Path("prior.txt").write_text("a red circle\n")
    Path("other.txt").write_text("a blue circle\n")
    options = ["--prior-prompts", "prior.txt", "--save-every", 1]
    assert lora(clips, adapter, *options, "--iters", 2) == 0
    assert lora(clips, adapter, *options, "--iters", 3, "--resume", *changed) == 2
    assert part in capsys.readouterr().err.splitlines()[-1]


def test_clips_added_later_are_noticed(clips, adapter, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".*"))
    assert lora(data, adapter, "--iters", 2) == 0
    shutil.copy(data / "a.txt", data / "b.txt")
    assert lora(data, adapter, "--iters", 3, "--resume") == 2
    assert "the clips were others" in capsys.readouterr().err


def test_a_log_that_was_cut_off_does_no_harm(clips, adapter):
    assert lora(clips, adapter, "--iters", 4, "--save-every", 2) == 0
    log = adapter / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert lora(clips, adapter, "--iters", 6, "--resume") == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 3, 5, 6]


def test_a_second_training_keeps_out_of_a_folder(clips, adapter, capsys):
    adapter.mkdir()
    with locked_elsewhere(adapter, adapter / ".lock"):
        assert lora(clips, adapter, "--iters", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"{adapter} is being written by process {os.getpid()} on " in line
    assert "choose another --adapter-path" in line
    assert lora(clips, adapter, "--iters", 1) == 0


@pytest.mark.parametrize("options", [[], ["--resume"], ["--dry-run"]], ids=str)
def test_a_second_training_is_told_of_the_first_whatever_it_finds(clips, adapter, capsys, options):
    (adapter / "checkpoints" / "0000001").mkdir(parents=True)
    with locked_elsewhere(adapter, adapter / ".lock"):
        assert lora(clips, adapter, "--iters", 1, *options) == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"{adapter} is being written by process {os.getpid()} on " in line


@pytest.mark.parametrize("where", ["gradients", "update"])
def test_a_failing_gpu_costs_no_step(clips, adapter, monkeypatch, capsys, where):
    """While the adapter is updated, what is in memory may be of two steps, and isn't saved."""
    whole, calls = adapter.with_name("whole"), []
    assert lora(clips, whole, "--iters", 4) == 0
    text = "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPU)."
    owner, name = (
        (AdapterLoss, "loss_and_gradients")
        if where == "gradients"
        else (optim.Optimizer, "apply_gradients")
    )
    compute = getattr(owner, name)

    def fail(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError(text)
        return compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        assert lora(clips, adapter, "--iters", 4, "--save-every", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert text in line and "pmset displaysleepnow" in line
    if where == "gradients":
        kept = f"2 steps are kept in {adapter}: the same command with --resume goes on"
        assert line.endswith(kept)
    assert [path.name for path in saved_checkpoints(adapter)][-1] == "0000002"
    assert lora(clips, adapter, "--iters", 4, "--resume") == 0
    first, second = (mx.load(str(folder / ADAPTER_FILES[0])) for folder in (whole, adapter))
    assert all(mx.array_equal(first[n], second[n]) for n in first)


def test_a_sample_that_fails_is_said_and_the_training_goes_on(clips, adapter, monkeypatch, capsys):
    def failing(*_, **__):
        raise GenerationError("one constant colour")

    monkeypatch.setattr(CogVideoXPipeline, "decode", failing)
    options = ["--iters", 2, "--sample-every", 1, "--sample-prompt", "a", "--sample-steps", 1]
    assert lora(clips, adapter, *options) == 0
    assert "no sample of 'a': one constant colour" in capsys.readouterr().err


def test_accumulation_does_not_gather_gradients(clips, adapter):
    peaks = []
    for parts in (2, 16):
        options = ["--rank", 128, "--iters", 1, "--grad-accumulation-steps", parts]
        assert lora(clips, adapter.with_name(f"a{parts}"), *options) == 0
        row = json.loads((adapter.with_name(f"a{parts}") / "log.jsonl").read_text())
        peaks.append(row["peak_memory"])
    assert peaks[1] < 1.1 * peaks[0]
