"""Several ``--data`` of ``lora.py``, with and without weights."""

import logging
import shutil
from pathlib import Path

import pytest
from commands import errors, warnings
from trainings import SMALL, same

from mlx_cogvideo.cli.lora import main


@pytest.fixture
def folder(clips, tmp_path, monkeypatch) -> Path:
    """The current folder, with two of the clips in a folder ``one`` and the third in ``two``."""
    for name, names in (("one", "ab"), ("two", "c")):
        (tmp_path / name).mkdir()
        for clip in names:
            for suffix in (".mp4", ".txt"):
                shutil.copy(clips / f"{clip}{suffix}", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lora(clips, folder):
    """Calls the command with one cache, so that each clip is encoded once."""
    small = ["--model", "demo", *SMALL, "--cache", clips / ".mlx_cogvideo"]

    def call(adapter, *arguments) -> int:
        logging.getLogger("mlx_cogvideo").handlers.clear()
        command = ["--adapter-path", adapter, *small, *arguments]
        return main([str(argument) for argument in command])

    return call


def test_several_folders_are_learned_as_one(lora, clips, folder, capsys):
    assert lora("whole", "--data", clips, "--iters", 2) == 0
    capsys.readouterr()
    assert lora("parts", "--data", "one", "--data", "two", "--iters", 2) == 0
    err = capsys.readouterr().err
    assert "clips    3 from one and two" in err and not warnings(err)
    assert same(folder / "whole", folder / "parts")


def test_a_training_with_weights_resumes_bit_for_bit(lora, folder, capsys):
    weights = ["--data", "one", 1, "--data", "two", 3]
    assert lora("whole", *weights, "--iters", 4, "--warmup", 0) == 0
    assert "clips    3 from one (weight 1) and two (weight 3)" in capsys.readouterr().err
    assert lora("parts", *weights, "--iters", 2, "--warmup", 0) == 0
    # Neither the form of the options matters nor the sum of the weights.
    assert (
        lora("parts", "--data", "one", "1/3", "two", 1, "--iters", 4, "--resume", "--warmup", 0)
        == 0
    )
    assert same(folder / "whole", folder / "parts")
    assert lora("parts", "--data", "one", 1, "two", 1, "--iters", 5, "--resume", "--warmup", 0) == 2
    assert "the clips differ" in errors(capsys.readouterr().err)[0]


def test_a_configuration_file_lists_data_sets(lora, folder, capsys):
    (folder / "a.toml").write_text('data = ["one", 2, "two", 0.5]\ndry-run = true\n')
    assert lora("adapter", "--config", "a.toml") == 0
    assert "3 from one (weight 2) and two (weight 0.5)" in capsys.readouterr().err
    (folder / "b.toml").write_text('data = ["one", "two"]\ndry-run = true\n')
    assert lora("adapter", "--config", "b.toml") == 0
    assert "clips    3 from one and two" in capsys.readouterr().err


def test_files_that_several_folders_hold_are_named(lora, folder, capsys):
    for suffix in (".mp4", ".txt"):
        shutil.copy(folder / f"one/a{suffix}", folder / f"two/other{suffix}")
    assert lora("adapter", "--data", "one", "--data", "two", "--dry-run") == 0
    expected = "clips that are in several --data, learned from each: one/a.mp4, two/other.mp4"
    assert warnings(capsys.readouterr().err) == [f"warning: {expected}"]


def test_the_weight_of_a_single_folder_is_a_warning(lora, capsys):
    assert lora("adapter", "--data", "one", 2, "--dry-run") == 0
    (warned,) = warnings(capsys.readouterr().err)
    assert "the weight of --data one has no effect" in warned


def test_the_share_to_hold_out_is_of_all_folders(lora, capsys):
    assert lora("adapter", "--data", "one", "two", "--val-split", 0.001, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and sum(", held out: " in line for line in lines) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "one", 1, "--data", "two"], "give each --data a weight, or none of them"),
        (["--data", "one", 0, "--data", "two", 1], "must be from 1e-06 to 1e+06"),
        (["--data", "one", -1, "--data", "two", 1], "must be from 1e-06 to 1e+06"),
        (["--data", "one", 1, 2], "2 is a number: for a path, repeat --data"),
        (["--data", "one", "--data", "./one"], "the same --data is given twice"),
        (["--data", "one", "--data", "none"], "none is not a folder"),
        (["--data", "one", 1, "two", 9, "--val-data", "two"], "all clips of two are held out"),
        (["--data", "one", 1, "two", 9, "--val-split", 0.999], "are held out: choose a smaller"),
    ],
)
def test_what_can_not_be_learned_is_one_line(lora, folder, capsys, options, message):
    assert lora("adapter", "--iters", 1, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error and not (folder / "adapter").exists()


def test_a_weighted_folder_without_a_usable_clip_ends_the_training(lora, folder, capsys):
    (folder / "two/c.mp4").write_bytes(b"")
    assert lora("adapter", "--data", "one", 1, "two", 1, "--iters", 1) == 2
    assert "no clip of two can be used" in errors(capsys.readouterr().err)[-1]
