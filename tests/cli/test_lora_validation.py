"""Clips that ``lora.py`` holds out for validation, and the best step by their loss."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import errors, generate, warnings
from trainings import SMALL, read_log, same
from trainings import lora as lora_command

from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.training.loss import TransformerLoss
from mlx_cogvideo.video import write_video


@pytest.fixture
def lora(clips):
    """Calls the command with one cache, so that each clip is encoded once."""
    return partial(lora_command, small=[*SMALL, "--cache", clips / ".mlx_cogvideo"])


def part_of(clips: Path, folder: Path, names: str) -> Path:
    """A folder with the clips and captions of these names, one letter each."""
    folder.mkdir()
    for name in names:
        for suffix in (".mp4", ".txt"):
            shutil.copy(clips / f"{name}{suffix}", folder)
    return folder


def make_many(folder: Path, grays: range) -> None:
    """Writes a clip and its caption for each gray."""
    folder.mkdir(exist_ok=True)
    for gray in grays:
        write_video(folder / f"{gray}.mp4", np.full((9, 32, 48, 3), gray, np.uint8), 8)
        (folder / f"{gray}.txt").write_text("a wall")


def held_out(lora, capsys, *arguments) -> set[str]:
    """The names of the clips that a dry run lists as held out."""
    assert lora(*arguments, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    return {Path(line.split(": ")[0]).stem for line in lines if ", held out: " in line}


def best_of(adapter: Path) -> dict:
    return json.loads((saved_checkpoints(adapter)[-1] / "training.json").read_text())["best"]


def test_a_share_is_held_out_by_content_and_stays_when_clips_are_added(
    lora, tmp_path, adapter, capsys
):
    data, split = tmp_path / "data", ["--val-split", 0.4]
    make_many(data, range(10, 200, 20))
    before = held_out(lora, capsys, data, adapter, *split)
    assert 1 <= len(before) <= 8
    assert before != held_out(lora, capsys, data, adapter, *split, "--seed", 1)
    make_many(data, range(20, 120, 20))
    copy = min(before)
    for suffix in (".mp4", ".txt"):
        shutil.copy(data / f"{copy}{suffix}", data / f"copy{suffix}")
    after = held_out(lora, capsys, data, adapter, *split)
    assert "copy" in after
    assert {name for name in after if name in before or name == "copy"} == before | {"copy"}
    assert after - before - {"copy"} <= {str(gray) for gray in range(20, 120, 20)}


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_each_side_has_a_clip_whatever_the_share(clips, lora, adapter, capsys, share):
    count = len(held_out(lora, capsys, clips, adapter, "--val-split", share))
    assert count == (1 if share < 0.5 else 2)


def test_both_losses_are_those_of_the_clips_of_their_side(clips, lora, adapter, tmp_path, capsys):
    # With a rate that changes nothing, the losses are the model's own, whatever is learned.
    options = ["--iters", 1, "--learning-rate", 1e-30, "--warmup", 0]
    b, ac = part_of(clips, tmp_path / "b", "b"), part_of(clips, tmp_path / "ac", "ac")
    assert lora(ac, adapter, *options, "--val-data", b) == 0
    err = capsys.readouterr().err
    assert f"held out 1 from {b}, validated every 250 updates" in err
    (row,) = read_log(adapter)
    expected = []
    for data in (b, ac):
        own = tmp_path / f"of-{data.name}"
        assert lora(data, own, *options, "--val-every", 1) == 0
        expected.append(read_log(own)[0]["validation"])
    assert [row["validation"], row["training_validation"]] == expected
    assert f"{expected[0]:.4f} on held-out clips, {expected[1]:.4f} on training clips" in err
    assert "validation loss" in (err := capsys.readouterr().err) and "held-out" not in err


def test_clips_that_are_held_out_do_not_change_the_training(clips, lora, adapter, tmp_path, capsys):
    assert lora(part_of(clips, tmp_path / "ac", "ac"), adapter, "--iters", 2) == 0
    b, other = part_of(clips, tmp_path / "b", "b"), tmp_path / "other"
    capsys.readouterr()
    assert lora(clips, other, "--iters", 2, "--val-data", b, "--val-every", 2) == 0
    assert same(adapter, other)
    expected = f"clips that are in --val-data, too, and aren't learned: {clips / 'b.mp4'}"
    assert f"warning: {expected}" in warnings(capsys.readouterr().err)


@pytest.fixture
def losses_of_validation(monkeypatch):
    """Has the validations give these losses, on the held-out clip and on the two others."""

    def script(*losses: float) -> None:
        calls = []

        def loss(self, batch):
            calls.append(batch)
            return mx.array(losses[(len(calls) - 1) // 15])

        monkeypatch.setattr(TransformerLoss, "loss", loss)

    return script


SPLIT = ["--val-split", 0.001, "--keep-checkpoints", 1]


def test_the_best_step_is_kept_and_can_be_used(
    clips, lora, adapter, tmp_path, capsys, losses_of_validation
):
    options = [*SPLIT, "--val-every", 1, "--save-every", 3, "--warmup", 0]
    losses_of_validation(3.0, 1.0, 2.0, 1.0)
    assert lora(clips, adapter, *options, "--iters", 4) == 0
    assert [path.name for path in saved_checkpoints(adapter)] == ["0000002", "0000004"]
    err = capsys.readouterr().err
    assert f"best     step 2, validation loss 1.0000, in {adapter / 'best'}" in err
    assert re.findall(r"step (\d+): .*; the best so far", err) == ["1", "2"]
    best = best_of(adapter)
    assert (best["step"], best["validation"]) == (2, 1.0)
    losses_of_validation(1.0, 1.0)
    assert lora(clips, tmp_path / "two", *options, "--iters", 2) == 0
    assert same(adapter / "best", tmp_path / "two") and not same(adapter / "best", adapter)
    assert generate(tmp_path / "video.mp4", "--lora", adapter / "best") == 0
    assert (adapter / "loss.svg").read_text().count("<polyline") == 3
    cards = [(folder / "README.md").read_text() for folder in (adapter / "best", adapter)]
    assert ["| updates | 2 |" in card for card in cards] == [True, False]
    assert f"--lora {adapter.name}/best" in cards[0] and (adapter / "best/loss.svg").is_file()


def test_a_killed_training_knows_its_best_step(
    clips, lora, adapter, tmp_path, losses_of_validation
):
    options = ["--val-split", 0.001, "--iters", 4, "--save-every", 1]
    losses_of_validation(3.0, 1.0, 2.0, 0.5)
    assert lora(clips, adapter, *options) == 0
    killed = tmp_path / "killed"
    shutil.copytree(adapter, killed)
    for late in saved_checkpoints(killed)[-1:]:  # killed before it was complete
        shutil.rmtree(late)
    assert best_of(killed)["step"] == 2
    losses_of_validation(0.5)
    assert lora(clips, killed, *options, "--resume") == 0
    assert best_of(killed) == best_of(adapter)
    assert same(killed, adapter) and same(killed / "best", adapter / "best")
    assert read_log(killed)[-1]["validation"] == 0.5
    losses_of_validation(2.0)
    options[options.index("--iters") + 1] = 5
    assert lora(clips, killed, *options, "--resume", "--keep-checkpoints", 1) == 0
    assert best_of(killed) == best_of(adapter)
    assert [path.name for path in saved_checkpoints(killed)] == ["0000004", "0000005"]


def test_the_best_model_of_a_full_training_is_written(clips, lora, adapter, losses_of_validation):
    full = ["--fine-tune-type", "full", "--learning-rate", 1e-3]
    small = [
        "--frames",
        9,
        "--height",
        32,
        "--width",
        48,
        "--warmup",
        0,
        "--cache",
        clips / "cache",
    ]
    patterns = ["--train-layers", "proj_out.*"]
    losses_of_validation(1.0, 2.0)
    options = [*full, *patterns, *SPLIT, "--val-every", 1, "--iters", 2]
    assert lora(clips, adapter, *options, small=small) == 0
    weights = [
        mx.load(str(next((folder / "model/transformer").glob("*.safetensors"))))
        for folder in (adapter, adapter / "best")
    ]
    changed = {
        name for name in weights[0] if not mx.array_equal(weights[0][name], weights[1][name])
    }
    assert changed == {"proj_out.weight", "proj_out.bias"}
    trained = mx.load(str(adapter / "checkpoints/0000001/transformer.safetensors"))
    assert mx.array_equal(weights[1]["proj_out.weight"], trained["proj_out.weight"])
    assert "| updates | 1 |" in (adapter / "best/model/README.md").read_text()


def test_other_held_out_clips_are_told_on_resuming(clips, lora, adapter, tmp_path, capsys):
    data = part_of(clips, tmp_path / "a", "a")
    b, c = part_of(clips, tmp_path / "b", "b"), part_of(clips, tmp_path / "c", "c")
    assert lora(data, adapter, "--iters", 1, "--val-data", b) == 0
    capsys.readouterr()
    assert lora(data, adapter, "--iters", 2, "--val-data", c, "--resume") == 0
    (warned,) = warnings(capsys.readouterr().err)
    assert "the held-out clips differ from those of step 1" in warned
    assert best_of(adapter)["step"] == 2


def test_validation_is_due_with_each_checkpoint_if_clips_are_held_out(
    clips, lora, adapter, losses_of_validation
):
    losses_of_validation(1.0, 1.0, 1.0)
    assert lora(clips, adapter, *SPLIT, "--save-every", 2, "--iters", 5) == 0
    assert [row["step"] for row in read_log(adapter) if "validation" in row] == [2, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-split", 1], "--val-split: must be above 0 and below 1, got 1"),
        (["--val-split", 0], "--val-split: must be above 0 and below 1, got 0"),
        (["--val-split", 0.1, "--val-every", 0], "--val-every 0 never validates"),
        (["--val-split", 0.1, "--val-data", "{clips}"], "--val-split: give one of them"),
        (["--val-data", "{clips}"], "all clips of --data are in --val-data, too"),
        (["--val-data", "none"], "none is not a folder"),
    ],
)
def test_what_can_not_be_held_out_is_one_line(clips, lora, adapter, capsys, options, message):
    options = [str(option).format(clips=clips) for option in options]
    assert lora(clips, adapter, "--iters", 1, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not adapter.exists()


def test_a_single_clip_can_not_be_split(clips, lora, adapter, tmp_path, capsys):
    data = part_of(clips, tmp_path / "a", "a")
    for suffix in (".mp4", ".txt"):
        shutil.copy(data / f"a{suffix}", data / f"copy{suffix}")
    assert lora(data, adapter, "--val-split", 0.5) == 2
    assert "needs two clips with different contents" in errors(capsys.readouterr().err)[0]


def test_held_out_clips_that_can_not_be_read_end_the_training_before_it(
    clips, lora, adapter, tmp_path, capsys
):
    b = part_of(clips, tmp_path / "b", "b")
    (b / "b.mp4").write_bytes(b"")
    assert lora(clips, adapter, "--iters", 1, "--val-data", b) == 2
    assert "no clip that is held out can be used" in errors(capsys.readouterr().err)[-1]
