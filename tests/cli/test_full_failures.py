"""What a training of all weights keeps when it fails or is interrupted, and what it refuses."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from commands import errors, heeding_ctrl_c, press_ctrl_c, press_twice, raising, warnings
from trainings import lora, read_log

from mlx_cogvideo import device
from mlx_cogvideo.checkpoints import finetuned
from mlx_cogvideo.cli import lora as command
from mlx_cogvideo.cli.convert import main as convert
from mlx_cogvideo.files import file_digest
from mlx_cogvideo.training.checkpoint import checkpoint_files, saved_checkpoints
from mlx_cogvideo.training.loss import TransformerLoss
from mlx_cogvideo.training.optimizers import Adafactor
from mlx_cogvideo.training.trained_model import TrainedModel

# Two parts are updated one after the other: what is behind the blocks, and the last block.
LAYERS = ["--train-layers", "proj_out.*", "transformer_blocks.4.*"]
SMALL = ["--frames", 9, "--height", 32, "--width", 48, "--warmup", 1, "--learning-rate", 1e-3]
ITERS, SAVE_EVERY = 5, 2
NO_MEMORY = RuntimeError("[malloc] Unable to allocate 9 bytes.")
NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "full"


def full(clips, folder, *arguments, layers=LAYERS) -> int:
    """Trains weights of the demo and returns the exit code."""
    kind = ["--fine-tune-type", "full", *layers, "--iters", ITERS, "--save-every", SAVE_EVERY]
    return lora(clips, folder, *kind, *arguments, small=SMALL)


def digests(folder: Path) -> dict[str, str]:
    """The digests of a model folder and of the last checkpoint beside it."""
    files = [*saved_checkpoints(folder)[-1].iterdir(), *(folder / "model").rglob("*")]
    return {str(f.relative_to(folder)): file_digest(f) for f in files if f.suffix in KEPT}


KEPT = (".safetensors", ".json")


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory) -> dict[str, str]:
    """What a training that nothing interrupts makes."""
    folder = tmp_path_factory.mktemp("whole") / "full"
    assert full(clips, folder) == 0
    return digests(folder)


def kept(folder: Path) -> list[int]:
    return [int(path.name) for path in saved_checkpoints(folder)]


def hidden(folder: Path) -> list[Path]:
    """Locks and parts of files that are left in a folder or beside it."""
    return [*folder.rglob(".*"), *folder.parent.glob(f".{folder.name}*")]


def nan_loss(done):
    done.losses = done.losses * float("nan")
    return done


def nan_in_the_second_part(parts) -> Iterator:
    yield next(parts)
    for part in parts:
        yield {path: gradient * float("nan") for path, gradient in part.items()}


FORWARD, BACKWARD = (TransformerLoss, "forward"), (TransformerLoss, "backward")
UPDATE, STEP = (Adafactor, "update_all"), (TrainedModel, "update")
INTERRUPTED = raising(KeyboardInterrupt())
BEFORE_AN_UPDATE = {  # where, in which call, what happens, the steps before, and the message
    "NaN loss": (FORWARD, 4, nan_loss, 3, "the loss of step 4 is nan"),
    "memory": (FORWARD, 4, raising(NO_MEMORY), 3, "memory ran out"),
    "second Ctrl-C": (FORWARD, 4, press_twice, 3, "interrupted: 3 of 5 steps"),
    "Ctrl-C right after an update": (STEP, 3, INTERRUPTED, 3, "interrupted: 3 of 5 steps"),
    "Ctrl-C": (FORWARD, 4, lambda done: press_ctrl_c() or done, 4, "interrupted: 4 of 5 steps"),
}
IN_AN_UPDATE = {  # in the second of the two parts of the fourth step
    "NaN gradient": (BACKWARD, 4, nan_in_the_second_part, "and its gradient nan"),
    "memory": (UPDATE, 8, raising(NO_MEMORY), "memory ran out"),
    "second Ctrl-C": (UPDATE, 8, press_twice, "interrupted: "),
}


@pytest.mark.parametrize("fault", BEFORE_AN_UPDATE)
def test_an_error_before_an_update_costs_no_step(
    clips, folder, whole, capsys, in_call, monkeypatch, fault
):
    (owner, name), number, action, steps, message = BEFORE_AN_UPDATE[fault]
    in_call(owner, name, number, action)
    with heeding_ctrl_c():
        assert full(clips, folder) in (1, 130)
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and "lost" not in line
    assert f"{steps} of 5 steps are kept in {folder}; the same command with --resume" in line
    assert kept(folder)[-1] == steps
    monkeypatch.undo()
    assert full(clips, folder, "--resume") == 0
    assert digests(folder) == whole and not hidden(folder)


@pytest.mark.parametrize("fault", IN_AN_UPDATE)
def test_an_error_in_an_update_goes_back_to_the_last_checkpoint(
    clips, folder, whole, capsys, in_call, monkeypatch, fault
):
    (owner, name), number, action, message = IN_AN_UPDATE[fault]
    in_call(owner, name, number, action)
    with heeding_ctrl_c():
        assert full(clips, folder) in (1, 130)
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert "an update was half done: the steps since the last checkpoint are lost" in line
    assert f"2 of 5 steps are kept in {folder}; the same command with --resume" in line
    assert kept(folder) == [2] and not (folder / "model").exists()
    monkeypatch.undo()
    assert full(clips, folder, "--resume") == 0
    assert digests(folder) == whole and len(read_log(folder)) == ITERS


def test_after_a_nan_a_lower_rate_goes_on_from_the_model_of_what_was_kept(
    clips, folder, tmp_path, capsys, in_call
):
    in_call(*FORWARD, 3, nan_loss)
    assert full(clips, folder) == 1
    model = folder / "model"
    (line,) = errors(capsys.readouterr().err)
    assert f"with --resume --iters 2 it writes the model of these steps to {model}" in line
    assert f"--model {model} with another --adapter-path then starts a new one" in line
    assert full(clips, folder, "--resume", "--iters", 2) == 0 and kept(folder) == [2]
    new, lower = tmp_path / "new", ["--learning-rate", 1e-30, "--iters", 1]
    assert full(clips, new, "--model", model, *lower) == 0
    name = "model/transformer/diffusion_pytorch_model.safetensors"
    weights, others = mx.load(str(folder / name)), mx.load(str(new / name))
    assert all(mx.array_equal(array, others[path]) for path, array in weights.items())


def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_partial(
    clips, folder, capsys, monkeypatch
):
    save = mx.save_safetensors

    def failing(file, arrays, *more):
        if "optimizer" in file and kept(folder) == [2]:
            raise RuntimeError("[write] Unable to write 5481 bytes to file.")
        save(file, arrays, *more)

    monkeypatch.setattr(mx, "save_safetensors", failing)
    assert full(clips, folder) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "is the disk full?" in line and "2 of 5 steps are kept" in line
    assert kept(folder) == [2] and not hidden(folder)


@pytest.mark.parametrize("place", ["the weights", "another file"])
def test_a_full_disk_leaves_the_model_that_was_there(
    clips, folder, whole, capsys, monkeypatch, place
):
    assert full(clips, folder, "--iters", 2) == 0
    before = digests(folder)
    save = mx.save_safetensors

    def failing(file, arrays, *more):
        if "diffusion_pytorch_model" in file:
            raise RuntimeError("[write] Unable to write 5481 bytes to file.")
        save(file, arrays, *more)

    if place == "the weights":
        monkeypatch.setattr(mx, "save_safetensors", failing)
    else:
        monkeypatch.setattr(finetuned.shutil, "copyfile", lambda *_: raising(NO_ROOM)(None))
    assert full(clips, folder, "--resume") == 1
    (line,) = errors(capsys.readouterr().err)
    reason = "is the disk full?" if place == "the weights" else "(No space left on device)"
    assert "model" in line and reason in line
    assert "5 of 5 steps are kept" in line
    model = {name: digest for name, digest in digests(folder).items() if "model/" in name}
    assert model.items() <= before.items() and not hidden(folder)
    monkeypatch.undo()
    assert full(clips, folder, "--resume") == 0
    assert digests(folder) == whole


def test_what_a_killed_training_left_is_removed(clips, folder, whole):
    assert full(clips, folder) == 0
    partial = folder / "checkpoints" / ".partial"
    partial.mkdir()
    (partial / "transformer.safetensors").write_bytes(b"half of it")
    assert full(clips, folder, "--resume") == 0
    assert not hidden(folder) and digests(folder) == whole


@pytest.fixture
def encodes_nothing(monkeypatch) -> None:
    def fail(*_):
        pytest.fail("the clips were encoded before the problem was found")

    monkeypatch.setattr(command, "prepare", fail)


@pytest.fixture(scope="module")
def trained(clips, tmp_path_factory) -> Path:
    """The folder of a training that is done."""
    folder = tmp_path_factory.mktemp("trained") / "full"
    assert full(clips, folder, "--iters", 2) == 0
    return folder


OTHERS = {
    "optimizer": (["--optimizer", "adamw_8bit"], "optimizer was adafactor and is now adamw_8bit"),
    "masters": (["--master-weights"], "master_weights was False and is now True"),
    "layers": (["--train-layers", "proj_out.*"], "train_layers was "),
    "dtype": (["--dtype", "bfloat16"], "the model's weights differ"),
    "model": (["--model", "demo-i2v"], "the model's weights differ"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_training_is_not_resumed(clips, trained, capsys, encodes_nothing, other):
    options, message = OTHERS[other]
    before = digests(trained)
    assert full(clips, trained, "--resume", *options) == 2
    (line,) = errors(capsys.readouterr().err)
    assert f"belongs to another training: {message}" in line
    assert "its own settings with --resume --iters 2" in line and digests(trained) == before


def test_an_adapter_does_not_resume_a_full_training_nor_the_other_way_round(
    clips, trained, tmp_path, capsys, encodes_nothing, monkeypatch
):
    assert lora(clips, trained, "--resume") == 2
    assert "fine_tune_type was full and is now lora" in errors(capsys.readouterr().err)[0]
    monkeypatch.undo()
    assert lora(clips, tmp_path / "adapter", "--iters", 1) == 0
    assert full(clips, tmp_path / "adapter", "--resume") == 2
    assert "fine_tune_type was lora and is now full" in errors(capsys.readouterr().err)[0]


@pytest.mark.parametrize("name", ["transformer.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_found_first(
    clips, trained, tmp_path, capsys, encodes_nothing, name
):
    folder = shutil.copytree(trained, tmp_path / "copy")
    damaged = folder / "checkpoints" / "0000002" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert full(clips, folder, "--resume") == 1
    (line,) = errors(capsys.readouterr().err)
    assert f"{damaged} is cut off" in line and "there is no other to resume from" in line
    shutil.copytree(damaged.parent, folder / "checkpoints" / "0000001")
    assert full(clips, folder, "--resume") == 1
    assert "remove it to resume from the one before" in errors(capsys.readouterr().err)[0]


def test_nothing_of_the_user_is_replaced(clips, folder, trained, capsys, encodes_nothing):
    own = folder / "model" / "own.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    inside = trained / "model" / "more"
    for path, more, message in (
        (folder, [], f"the trained model would replace {own.parent}"),
        (trained / "model", [], f"{trained / 'model'} holds a model"),
        (inside, ["--model", trained / "model"], f"{inside} is inside of the model"),
    ):
        assert full(clips, path, *more) == 1
        (line,) = errors(capsys.readouterr().err)
        assert message in line and "choose another --adapter-path" in line
    assert own.read_text() == "mine" and not inside.exists()


def test_weights_that_cannot_be_trained_are_refused(
    clips, folder, tmp_path, capsys, encodes_nothing
):
    packed = tmp_path / "packed"
    assert convert(["--model", "demo", "--mlx-path", str(packed), "-q", "4"]) == 0
    capsys.readouterr()
    for options, message in (
        (["--model", packed], "a quantized model can't be trained as a whole"),
        (["-q", 4], "-q isn't possible with --fine-tune-type full"),
        (["--train-layers", "blocks.*"], "--train-layers blocks.* matches no weight"),
        (["--optimizer", "sgd"], "must be one of adamw, adamw_8bit, adafactor; got 'sgd'"),
    ):
        for more in ([], ["--dry-run"]):
            assert full(clips, folder, *options, *more) == 2
            (line,) = errors(capsys.readouterr().err)
            assert message in line and not folder.exists()


def test_a_copy_of_float32_weights_has_no_effect(clips, folder, capsys):
    for dtype, count in (("float32", 1), ("bfloat16", 0)):
        assert full(clips, folder, "--master-weights", "--dtype", dtype, "--dry-run") == 0
        found = [line for line in warnings(capsys.readouterr().err) if "--master-weights" in line]
        assert len(found) == count


KINDS = {
    "adafactor": ["--dtype", "bfloat16"],
    "adamw_8bit": ["--optimizer", "adamw_8bit"],
    "float32 copies": ["--master-weights", "--optimizer", "adamw", "--dtype", "bfloat16"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_estimates_what_is_written(clips, folder, capsys, kind):
    options = [*KINDS[kind], "--iters", 1, "--json-events", "--dtype", "bfloat16"]
    found = []
    for more in (["--dry-run"], []):
        assert full(clips, folder, *options, *more, layers=[]) == 0
        events = map(json.loads, capsys.readouterr().out.splitlines())
        found.append(next(event["disk"] for event in events if event["event"] == "plan"))
    assert found[0] == found[1]
    checkpoint = sum(file.stat().st_size for file in checkpoint_files(folder))
    weights = (folder / "model/transformer/diffusion_pytorch_model.safetensors").stat().st_size
    headers = 2**16  # of the files, which are no part of the estimate
    assert 0 <= 2 * checkpoint - found[0]["checkpoints"] < 2 * headers
    assert 0 <= weights - found[0]["result"] < headers


def test_a_disk_without_room_is_found_first(clips, folder, capsys, encodes_nothing, monkeypatch):
    monkeypatch.setattr(device, "free_space", lambda _: 20 * 2**20)
    assert full(clips, folder, layers=[]) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "20 MiB free and keeping checkpoints needs 24 MiB" in line
    assert "choose another --adapter-path" in line and not folder.exists()
    assert full(clips, folder, "--dry-run", layers=[]) == 0
    assert "20 MiB free" in warnings(capsys.readouterr().err)[0]
