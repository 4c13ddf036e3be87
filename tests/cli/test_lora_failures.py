"""What ``lora.py`` keeps when a training fails or is interrupted, and what it says then."""

import errno
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import (
    ctrl_c_in_step,
    during_steps,
    errors,
    heeding_ctrl_c,
    press_twice,
    raising,
    warnings,
)
from mlx.utils import tree_map
from trainings import lora, read_log, same, tensors

from mlx_cogvideo.cli import lora as command
from mlx_cogvideo.training import trainer
from mlx_cogvideo.training.checkpoint import saved_checkpoints
from mlx_cogvideo.training.loss import TransformerLoss
from mlx_cogvideo.training.optimizers import AdamW

SAMPLES = ["--sample-every", 2, "--sample-prompt", "a red circle", "--sample-steps", 9]


def kept(adapter: Path) -> list[int]:
    return [int(path.name) for path in saved_checkpoints(adapter)]


def nan_loss(result):
    losses, gradients = result
    return losses * float("nan"), gradients


def nan_weights(result):
    return tree_map(lambda array: array * float("nan"), result)


FULL = OSError(errno.ENOSPC, "No space left on device", "log.jsonl")
NO_MEMORY = RuntimeError("[malloc] Unable to allocate 9 bytes.")
GRADIENTS, UPDATE = (TransformerLoss, "loss_and_gradients"), (AdamW, "update_all")
FAULTS = {  # where, in which call, what happens, the steps before, and the message
    "NaN loss": (GRADIENTS, 3, nan_loss, 2, "the loss of step 3 is nan"),
    "memory": (GRADIENTS, 3, raising(NO_MEMORY), 2, "memory ran out"),
    "memory in an update": (UPDATE, 3, raising(NO_MEMORY), 2, "memory ran out"),
    "disk full": ((trainer, "append_row"), 3, raising(FULL), 3, "No space left on device"),
    "validation": ((TransformerLoss, "loss"), 1, raising(NO_MEMORY), 3, "memory ran out"),
    "NaN in validation": (
        (TransformerLoss, "loss"),
        1,
        nan_weights,
        3,
        "validation loss after step 3",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_keeps_what_was_learned_and_names_both_ways_on(
    clips, adapter, capsys, in_call, fault
):
    (owner, name), number, action, steps, message = FAULTS[fault]
    in_call(owner, name, number, action)
    validating = ["--val-every", 3] if "validation" in fault else []
    assert lora(clips, adapter, "--iters", 4, "--save-every", 9, *validating) == 1
    (line,) = errors(capsys.readouterr().err)
    assert message in line and f"{steps} of 4 steps are kept in {adapter}" in line
    assert "--resume continues" in line
    assert f"--resume-adapter-file {adapter} with another --adapter-path" in line
    assert kept(adapter) == [steps] and [row["step"] for row in read_log(adapter)][-1] == steps


def test_an_update_that_fails_is_undone(clips, adapter, tmp_path, in_call, monkeypatch):
    in_call(*UPDATE, 3, raising(NO_MEMORY))
    assert lora(clips, adapter, "--iters", 4) == 1
    monkeypatch.undo()
    assert lora(clips, adapter, "--iters", 4, "--resume") == 0
    assert lora(clips, tmp_path / "whole", "--iters", 4) == 0
    assert same(adapter, tmp_path / "whole")


def test_after_a_nan_a_lower_rate_goes_on_from_what_was_kept(clips, adapter, tmp_path, in_call):
    in_call(*GRADIENTS, 3, nan_loss)
    assert lora(clips, adapter, "--iters", 4) == 1
    options = ["--resume-adapter-file", adapter, "--learning-rate", 1e-30, "--iters", 1]
    assert lora(clips, tmp_path / "new", *options) == 0
    assert same(adapter, tmp_path / "new")


def test_a_cache_that_is_removed_costs_no_step(clips, adapter, tmp_path, capsys, in_call):
    cache = tmp_path / "cache"

    def remove(result):
        shutil.rmtree(cache)
        return result

    in_call(*GRADIENTS, 2, remove)
    options = ["--iters", 3, "--cache", cache]
    assert lora(clips, adapter, *options) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "is gone: the next run makes it again" in line and "2 of 3 steps are kept" in line
    assert lora(clips, adapter, *options, "--resume") == 0


def test_a_second_ctrl_c_costs_only_the_step_that_it_stops(clips, adapter, capsys, in_call):
    in_call(*GRADIENTS, 3, press_twice)
    with heeding_ctrl_c():
        assert lora(clips, adapter, "--iters", 4) == 130
    assert "interrupted: 2 of 4 steps are kept" in capsys.readouterr().err
    assert kept(adapter) == [2]


def test_an_error_that_nobody_expects_costs_no_step_either(clips, adapter, in_call):
    in_call(*GRADIENTS, 3, raising(KeyError("x")))
    with pytest.raises(KeyError) as error:
        lora(clips, adapter, "--iters", 4)
    assert "2 of 4 steps are kept" in error.value.__notes__[0] and kept(adapter) == [2]


def test_an_error_prunes_no_checkpoint(clips, adapter, in_call):
    in_call(*GRADIENTS, 4, nan_loss)
    assert lora(clips, adapter, "--iters", 5, "--save-every", 2, "--keep-checkpoints", 1) == 1
    assert kept(adapter) == [2, 3]


@pytest.mark.parametrize(("step", "save_every"), [(2, 1), (4, 9)], ids=["amidst", "at the end"])
def test_weights_that_are_not_finite_are_never_saved(
    clips, adapter, capsys, in_call, save_every, step
):
    in_call(*UPDATE, step, nan_weights)
    assert lora(clips, adapter, "--iters", 4, "--save-every", save_every) == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"the weights are NaN or infinite after step {step}" in line
    good = (step - 1) // save_every * save_every
    assert kept(adapter)[-1:] == [good] * bool(good)
    assert (f"{good} of 4 steps are kept" if good else "no step is saved yet") in line
    if good:
        assert all(np.isfinite(array).all() for array in tensors(adapter).values())
    else:
        assert not (adapter / "pytorch_lora_weights.safetensors").exists()


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_partial(
    clips, adapter, capsys, monkeypatch
):
    save = mx.save_safetensors

    def full(file, arrays, *more):
        if "optimizer" in file and len(kept(adapter)) == 1:
            raise RuntimeError("[write] Unable to write 5481 bytes to file.")
        save(file, arrays, *more)

    monkeypatch.setattr(mx, "save_safetensors", full)
    assert lora(clips, adapter, "--iters", 4, "--save-every", 2) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "is the disk full?" in line and "2 of 4 steps are kept" in line
    assert [path.name for path in (adapter / "checkpoints").iterdir()] == ["0000002"]


def test_ctrl_c_while_samples_are_made_stops_between_their_steps(clips, adapter, capsys):
    steps = []
    with ctrl_c_in_step(3), during_steps(steps.append):
        assert lora(clips, adapter, "--iters", 4, *SAMPLES, "--sample-prompt", "another") == 130
    assert steps == [1, 2, 3]
    captured = capsys.readouterr().err
    assert "interrupted: 2 of 4 steps are kept" in captured and not warnings(captured)
    assert not list((adapter / "samples").iterdir())


def test_a_step_is_saved_before_its_samples_are_made(clips, adapter):
    found = []
    with during_steps(lambda step: found.append(kept(adapter))):
        assert lora(clips, adapter, "--iters", 3, *SAMPLES) == 0
    assert found == [[2]] * 9


def test_samples_that_the_disk_has_no_room_for_are_a_warning(clips, adapter, capsys):
    adapter.mkdir()
    (adapter / "samples").touch()
    assert lora(clips, adapter, "--iters", 2, *SAMPLES) == 0
    assert "no sample of 'a red circle'" in warnings(capsys.readouterr().err)[0]


def test_a_training_that_ended_since_the_plan_is_noticed_within_the_lock(
    clips, adapter, capsys, monkeypatch
):
    """As if this process was stopped between its plan and its lock, for as long as another ran."""

    def meanwhile(**_):
        monkeypatch.undo()
        assert lora(clips, adapter, "--iters", 2) == 0

    monkeypatch.setattr(command, "manage_memory", meanwhile)
    assert lora(clips, adapter, "--iters", 3) == 1
    assert f"{adapter} holds a training" in errors(capsys.readouterr().err)[0]
    assert len(read_log(adapter)) == 2
