"""``lora.py`` as a command, on the bundled demo and three tiny clips."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from clips import make_clip
from commands import errors, generate, heeding_ctrl_c, press_ctrl_c, warnings
from support import locked_elsewhere
from trainers import sample_numbers, write_samples
from trainings import SMALL, lora, read_log, same, tensors

from mlx_cogvideo import CogVideoXPipeline, GenerationError
from mlx_cogvideo.checkpoints.adapters import ADAPTER_FILES
from mlx_cogvideo.cli.config_file import with_config_file
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.cli.lora_options import make_parser
from mlx_cogvideo.diffusion.schedulers import make_scheduler
from mlx_cogvideo.nn.low_rank import add_adapter
from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.training.loss import Batch, TransformerLoss
from mlx_cogvideo.training.optimizers import AdamW
from mlx_cogvideo.training.settings import TrainingSettings, new_adapter
from mlx_cogvideo.training.trainer import Trainer
from mlx_cogvideo.video import write_video

SCRIPT = Path(__file__).parents[2] / "lora.py"


def test_a_training_writes_an_adapter_a_log_and_a_plot(clips, adapter, capsys, tmp_path):
    assert lora(clips, adapter, "--iters", 6, "--val-every", 3, "--learning-rate", 1e-2) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{adapter}\n"
    assert "clips    3 from" in captured.err
    assert "step 6: validation loss" in captured.err
    log = read_log(adapter)
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in log if "validation" in row] == [3, 6]
    assert log[0]["learning_rate"] < log[2]["learning_rate"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)
    assert config["target_modules"] == ["attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v"]
    assert (adapter / "loss.svg").read_text().count("<polyline") == 2
    assert generate(tmp_path / "video.mp4", "--lora", adapter) == 0


def test_samples_are_made_during_a_training(clips, adapter, capsys):
    samples = ["--sample-every", 2, "--sample-steps", 2]
    samples += ["--sample-prompt", "a red circle", "--sample-prompt", "a blue square"]
    assert lora(clips, adapter, "--iters", 4, *samples) == 0
    written = sorted(path.name for path in (adapter / "samples").iterdir())
    assert written == [f"000000{step}-{number}.mp4" for step in (2, 4) for number in (0, 1)]
    assert lora(clips, adapter.with_name("other"), "--sample-every", 2) == 2
    assert "--sample-prompt" in capsys.readouterr().err
    # Sampling does not change the training.
    assert lora(clips, adapter.with_name("other"), "--iters", 4) == 0
    assert same(adapter, adapter.with_name("other"))


def test_training_lowers_the_loss_at_fixed_noise(clips, adapter):
    options = ["--iters", 40, "--val-every", 20, "--learning-rate", 3e-3, "--batch-size", 3]
    assert lora(clips, adapter, *options) == 0
    first, last = (row["validation"] for row in read_log(adapter) if "validation" in row)
    assert last < 0.95 * first, (first, last)


@contextmanager
def ctrl_c_in_update(number: int) -> Iterator[None]:
    """Presses Ctrl-C within an update of the adapter, counted from 1."""
    updates, update = [], AdamW.update_all

    def interrupted(self, *arguments, **more):
        updates.append(1)
        if len(updates) == number:
            press_ctrl_c()
        return update(self, *arguments, **more)

    with heeding_ctrl_c(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdamW, "update_all", interrupted)
        yield


@pytest.mark.parametrize("options", [[], ["--batch-size", 2, "--grad-accumulation-steps", 2]])
def test_an_interrupted_training_resumes_bit_for_bit(clips, adapter, tmp_path, options, capsys):
    whole = tmp_path / "whole"
    options = [*options, "--iters", 7, "--lr-schedule", "cosine"]
    assert lora(clips, whole, *options) == 0
    with ctrl_c_in_update(3):
        assert lora(clips, adapter, *options) == 130
    assert "3 of 7 steps" in capsys.readouterr().err
    with ctrl_c_in_update(2):
        assert lora(clips, adapter, *options, "--resume") == 130
    assert "5 of 7 steps" in capsys.readouterr().err
    assert lora(clips, adapter, *options, "--resume") == 0
    assert same(adapter, whole)


def test_a_killed_training_resumes_bit_for_bit(clips, adapter, tmp_path):
    options = ["--iters", 12, "--save-every", 2]
    whole = tmp_path / "whole"
    assert lora(clips, whole, *options) == 0
    command = [sys.executable, SCRIPT, "--data", clips, "--adapter-path", adapter]
    command += ["--model", "demo", *SMALL, *options]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not saved_checkpoints(adapter):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert saved_checkpoints(adapter)
    assert lora(clips, adapter, *options, "--resume") == 0
    assert same(adapter, whole)
    kept = [path.name for path in saved_checkpoints(adapter)]
    assert kept == ["0000008", "0000010", "0000012"]


def test_a_second_training_reads_latents_and_texts_from_the_cache(clips, adapter, monkeypatch):
    assert lora(clips, adapter, "--iters", 1) == 0
    monkeypatch.setattr(CogVideoXPipeline, "encode_video", None)
    monkeypatch.setattr(CogVideoXPipeline, "encode_prompt", None)
    assert lora(clips, adapter.with_name("other"), "--iters", 1) == 0
    assert same(adapter, adapter.with_name("other"))
    assert not list((clips / ".mlx_cogvideo").glob("*.part.*"))


def test_an_adapter_of_a_quantized_model_is_trained(clips, adapter, tmp_path):
    assert convert(["--model", "demo", "-q", "4", "--mlx-path", str(tmp_path / "q4")]) == 0
    options = ["--iters", 20, "--val-every", 10, "--learning-rate", 1e-2]
    assert lora(clips, adapter, *options, "--model", tmp_path / "q4") == 0
    first, last = (row["validation"] for row in read_log(adapter) if "validation" in row)
    assert last < first


def test_corrupt_clips_are_left_out_with_a_warning(clips, adapter, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".mlx_cogvideo"))
    (data / "a.mp4").write_bytes((data / "a.mp4").read_bytes()[:100])
    (data / "b.mp4").write_bytes(b"")
    assert lora(data, adapter, "--iters", 1) == 0
    left_out = warnings(capsys.readouterr().err)
    assert ["a.mp4" in line or "b.mp4" in line for line in left_out] == [True, True]
    (data / "c.mp4").write_bytes(b"")
    assert lora(data, adapter.with_name("other"), "--iters", 1) == 2
    (error,) = errors(capsys.readouterr().err)
    assert "no clip can be used" in error and "(and 2 more like this)" in error


def test_a_dry_run_lists_the_clips_and_writes_nothing(clips, adapter, capsys):
    assert lora(clips, adapter, "--dry-run") == 0
    captured = capsys.readouterr()
    assert "memory   about " in captured.err
    used = "9 frames of 48x32 of its 12 of 64x48"
    expected = f"{clips / 'a.mp4'}: {used}: a yellow square moves right, take a"
    assert captured.out.splitlines()[0] == expected
    assert not adapter.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank", 0], "rank must be at least 1; got 0"),
        (["--iters", 0], "iters must be at least 1; got 0"),
        (["--grad-accumulation-steps", 0], "accumulate must be at least 1; got 0"),
        (["--val-every", -1], "--val-every: must be at least 0"),
        (["--iter", 3], "unknown option --iter: did you mean --iters?"),
        (["--learning-rate", 0], "learning_rate must be .* above 0"),
        (["--target", "to_q", "to_out"], "no layers to_out"),
        (["--seed", -1], "seed must be from 0 to .*; got -1"),
        (["--warmup", -3], "warmup must be at least 0; got -3"),
        (["--alpha", 0], "alpha must be .* above 0"),
        (["--skip-frames", 1, 2, 1], "--skip-frames takes one or two numbers"),
        (["--skip-frames", -2], "--skip-frames takes one or two numbers"),
        (["--fps", "nan"], "above 0, got nan"),
        (["--fps", "1e9"], "must be from 0.02 to 1000, got 1e9"),
        (["--save-every", 0], "at least 1, got 0"),
        (["--target", "to_x"], "no layers to_x"),
        (["--frames", 8], "8N+1"),
        (["--frames", 17], "no clip can be used: .* 12 frames"),
        (["--height", 30], "height must be a multiple of 16"),
    ],
    ids=lambda value: value[0][2:] if isinstance(value, list) else "",
)
def test_a_wrong_option_is_one_line(clips, adapter, capsys, options, message):
    assert lora(clips, adapter, "--iters", 1, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert re.search(message.replace("+", r"\+"), error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior-weight", 0.1], "--prior-weight needs --prior-prompts"),
        (["--prior-batch-size", 2], "--prior-batch-size needs --prior-prompts"),
        (["--sample-steps", 3], "--sample-steps needs --sample-prompt"),
        (["--window-places", "random"], "--window-places needs --windows, 2 or more"),
        (["--show-clips", 2, "--dry-run"], "--dry-run writes nothing: leave out --show-clips"),
    ],
)
def test_an_option_that_lacks_another_one_is_one_line(clips, adapter, capsys, options, message):
    assert lora(clips, adapter, "--dry-run", *options) == 2
    assert errors(capsys.readouterr().err) == [f"error: {message}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image-dropout", 0.2], "--image-dropout has no effect: the model takes no image"),
        (["--image-latent-scale", "finetune"], "--image-latent-scale has no effect: it is for"),
        (["--sample-every", 5000, "--sample-prompt", "a"], "--sample-every 5000 has no effect"),
    ],
)
def test_an_option_without_effect_is_a_warning(clips, adapter, capsys, options, message):
    assert lora(clips, adapter, "--dry-run", *options) == 0
    assert any(message in line for line in warnings(capsys.readouterr().err))


def test_a_training_does_not_overwrite_another_one(clips, adapter, capsys):
    assert lora(clips, adapter, "--iters", 1) == 0
    assert lora(clips, adapter, "--iters", 2) == 1
    refused = "choose another --adapter-path, or .* --resume"
    assert re.search(refused, capsys.readouterr().err)
    for name in ADAPTER_FILES[::2]:
        (adapter / name).unlink()
    assert lora(clips, adapter, "--iters", 2) == 1
    assert re.search(refused, capsys.readouterr().err)
    assert lora(clips, adapter, "--iters", 2, "--resume", "--rank", 8) == 2
    assert "rank was 4 and is now 8" in capsys.readouterr().err
    assert lora(clips, adapter.with_name("none"), "--resume") == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert not adapter.with_name("none").exists()


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_training_does_not_overwrite_an_adapter_of_another_tool(clips, adapter, capsys, name):
    adapter.mkdir()
    (adapter / name).write_text("{}")
    assert lora(clips, adapter, "--iters", 1) == 1
    assert "choose another --adapter-path" in capsys.readouterr().err
    assert (adapter / name).read_text() == "{}"


def test_an_interruption_before_the_first_step_loses_nothing(clips, adapter, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", interrupted)
        assert lora(clips, adapter, "--iters", 3) == 130
        assert "interrupted: no step" in capsys.readouterr().err
    assert lora(clips, adapter, "--iters", 3) == 0
    monkeypatch.setattr(Trainer, "train", interrupted)
    assert lora(clips, adapter, "--iters", 5, "--resume") == 130
    assert f"interrupted: 3 of 5 steps are kept in {adapter}" in capsys.readouterr().err


def test_adapters_and_their_samples_among_the_clips_are_ignored(clips, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(clips, data, ignore=shutil.ignore_patterns(".*"))
    monkeypatch.chdir(data)
    sampled = ["--sample-every", 1, "--sample-prompt", "a red circle", "--sample-steps", 1]
    assert lora(".", "adapters", "--iters", 1, *sampled) == 0
    assert lora(".", "adapters", "--iters", 2, "--resume") == 0


def test_a_missing_picture_for_samples_is_an_error_before_the_training(clips, adapter, capsys):
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


@pytest.fixture
def make_trainer(tmp_path):
    """Returns a function that makes a trainer of the demo; see `write_samples`."""
    pipe = CogVideoXPipeline.from_pretrained("demo")

    def make(*counts: int, batch_size: int) -> Trainer:
        samples = write_samples(tmp_path / "cache", *counts)
        settings = TrainingSettings(batch_size=batch_size, caption_dropout=0)
        return Trainer(pipe, samples, samples[0].text, settings, tmp_path)

    with pipe.keeping("transformer"):
        yield make


def test_each_epoch_has_all_clips_in_a_new_order(make_trainer):
    trainer = make_trainer(5, batch_size=1)
    seen = [number for i in range(15) for number in sample_numbers(trainer.batches.draw(i))]
    epochs = [seen[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_each_batch_is_full_and_of_one_shape_and_each_epoch_has_all_clips(make_trainer):
    trainer = make_trainer(5, 3, batch_size=2)
    for epoch in range(3):
        seen = [sample_numbers(trainer.batches.draw(epoch * 5 + i)) for i in range(5)]
        assert all(len(numbers) == 2 for numbers in seen)
        assert all((numbers[0] < 5) == (numbers[1] < 5) for numbers in seen), "9 or 17 frames"
        assert {number for numbers in seen for number in numbers} == set(range(8))


def test_command_line_options_override_the_config_file(clips, adapter, tmp_path, capsys):
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
        ("a.toml", "itrs = 7", "unknown option --itrs: did you mean --iters?"),
        ("a.toml", "iters =", "a.toml can't be read"),
        ("a.json", "[", "a.json can't be read"),
        ("a.yaml", "itrs: 7", "unknown option --itrs: did you mean --iters?"),
        ("a.txt", "iters: 7", ".toml, .json, .yaml or .yml"),
    ],
)
def test_a_wrong_config_file_is_one_line(clips, adapter, tmp_path, capsys, name, text, message):
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


def test_prior_prompts_keep_what_the_model_makes_of_them(clips, adapter, tmp_path):
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
    last = read_log(adapter)[-1]
    assert 0 < last["prior_loss"] < last["loss"]


def test_float16_gradients_of_large_clips_are_not_lost():
    """In a mean over a million numbers, the gradient of each is too small for float16."""
    random = [mx.random.normal((1, 5, 12, 12, 16), key=mx.random.key(i)) for i in range(2)]
    text = 0.1 * mx.random.normal((1, 32, 64), key=mx.random.key(2))
    batch = Batch(random[0], text, random[1], mx.array([500]))
    gradients = {}
    for dtype in (mx.float32, mx.float16):
        pipe = CogVideoXPipeline.from_pretrained("demo", dtype)
        transformer = pipe.transformer.freeze()
        layers = new_adapter(transformer, TrainingSettings(rank=4))
        for number, layer in enumerate(layers.values()):
            layer.lora_B = 0.1 * mx.random.normal(layer.lora_B.shape, key=mx.random.key(number))
        add_adapter(transformer, layers)
        scheduler = make_scheduler("ddim", pipe.scheduler_config, mx.random.key(0))
        # As if the clip were a thousand times as large: the loss is a mean over all of it.
        large = LargeClip(*(getattr(batch, field.name) for field in fields(batch)))
        _, found = TransformerLoss(transformer, scheduler, dtype).loss_and_gradients(large)
        gradients[dtype] = mx.concatenate([gradient.flatten() for gradient in found.values()])
    exact, rough = gradients[mx.float32], gradients[mx.float16].astype(mx.float32)
    norms = mx.linalg.norm(exact) * mx.linalg.norm(rough)
    assert (mx.inner(exact, rough) / norms).item() > 0.999
    assert ((rough == 0) & (exact != 0)).mean().item() < 0.01


class LargeClip(Batch):
    """A batch whose loss is a thousand times smaller, as that of a larger clip."""

    @property
    def weights(self):
        return super().weights / 1000


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_update(
    clips, adapter, monkeypatch, capsys
):
    compute = TransformerLoss.loss_and_gradients
    calls = []

    def broken(*arguments):
        losses, gradients = compute(*arguments)
        calls.append(1)
        if len(calls) == 3:
            gradients = {name: g + float("inf") for name, g in gradients.items()}
        return losses, gradients

    monkeypatch.setattr(TransformerLoss, "loss_and_gradients", broken)
    options = ["--iters", 4, "--save-every", 1]
    assert lora(clips, adapter, *options) == 1
    assert "step 3" in capsys.readouterr().err
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
def test_a_training_does_not_resume_with_other_data_or_settings(
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
    assert "the clips" in errors(capsys.readouterr().err)[0]


def test_a_truncated_log_does_not_prevent_resuming(clips, adapter):
    assert lora(clips, adapter, "--iters", 4, "--save-every", 2) == 0
    log = adapter / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    assert lora(clips, adapter, "--iters", 6, "--resume") == 0
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 3, 5, 6]


def test_a_second_training_in_the_same_folder_is_refused(clips, adapter, capsys):
    adapter.mkdir()
    with locked_elsewhere(adapter):
        assert lora(clips, adapter, "--iters", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert str(adapter) in line and f"process {os.getpid()}" in line
    assert "choose another --adapter-path" in line
    assert lora(clips, adapter, "--iters", 1) == 0


@pytest.mark.parametrize(
    ("file", "what"),
    [("model_index.json", "a model"), ("pytorch_lora_weights.safetensors", "an adapter")],
)
def test_a_folder_that_holds_something_else_is_refused(clips, adapter, capsys, file, what):
    adapter.mkdir()
    (adapter / file).write_text("{}")
    assert lora(clips, adapter, "--iters", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"{adapter} holds {what}: choose another --adapter-path" in line
    assert [path.name for path in adapter.iterdir()] == [file]


@pytest.mark.parametrize("options", [[], ["--resume"], ["--dry-run"]], ids=str)
def test_a_locked_folder_is_the_first_error(clips, adapter, capsys, options):
    (adapter / "checkpoints" / "0000001").mkdir(parents=True)
    with locked_elsewhere(adapter):
        assert lora(clips, adapter, "--iters", 1, *options) == 1
    (line,) = errors(capsys.readouterr().err)
    assert str(adapter) in line and f"process {os.getpid()}" in line


@pytest.mark.parametrize("where", ["gradients", "update"])
def test_a_failing_gpu_loses_no_step(clips, adapter, monkeypatch, capsys, where):
    """While the adapter is updated, the arrays in memory may belong to two steps. They are not
    saved then."""
    whole, calls = adapter.with_name("whole"), []
    assert lora(clips, whole, "--iters", 4) == 0
    text = "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e:kIOGPU)."
    owner, name = (
        (TransformerLoss, "loss_and_gradients") if where == "gradients" else (AdamW, "update_all")
    )
    compute = getattr(owner, name)

    def fail(self, *args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError(text)
        return compute(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        assert lora(clips, adapter, "--iters", 4, "--save-every", 1) == 1
    (line,) = errors(capsys.readouterr().err)
    assert text in line and "pmset displaysleepnow" in line
    if where == "gradients":
        assert f"2 of 4 steps are kept in {adapter}" in line and "--resume" in line
    assert [path.name for path in saved_checkpoints(adapter)][-1] == "0000002"
    assert lora(clips, adapter, "--iters", 4, "--resume") == 0
    first, second = (mx.load(str(folder / ADAPTER_FILES[0])) for folder in (whole, adapter))
    assert all(mx.array_equal(first[n], second[n]) for n in first)


def test_a_failed_sample_is_a_warning_and_no_error(clips, adapter, monkeypatch, capsys):
    def failing(*_, **__):
        raise GenerationError("one constant colour")

    monkeypatch.setattr(CogVideoXPipeline, "denoise", failing)
    options = ["--iters", 2, "--sample-every", 1, "--sample-prompt", "a", "--sample-steps", 1]
    assert lora(clips, adapter, *options) == 0
    messages = warnings(capsys.readouterr().err)
    assert ["'a'" in line and "one constant colour" in line for line in messages] == [True] * 2
    assert not list((adapter / "samples").iterdir())


def test_accumulation_needs_no_memory_for_each_part(clips, adapter):
    peaks = []
    for parts in (2, 16):
        options = ["--rank", 128, "--iters", 1, "--grad-accumulation-steps", parts]
        assert lora(clips, adapter.with_name(f"a{parts}"), *options) == 0
        (row,) = read_log(adapter.with_name(f"a{parts}"))
        peaks.append(row["peak_memory"])
    # The device may hold a piece more at one time than at another, but no gradients of each part.
    assert peaks[1] < 1.6 * peaks[0]
