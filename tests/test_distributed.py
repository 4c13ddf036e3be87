"""Training with two processes on this machine, over MLX's ring backend."""

import json
import shutil
import signal
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from clips import make_clip
from processes import ended, launched, start

from mlx_cogvideo import InvalidInputError, PeerLostError
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.distributed import ALONE, Distributed
from mlx_cogvideo.video import write_video

SCRIPT = Path(__file__).parents[1] / "lora.py"
SMALL = ["--frames", "9", "--height", "32", "--width", "48", "--seed", "3"]


@pytest.fixture
def clips(tmp_path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(5):
        write_video(folder / f"{i}.mp4", np.roll(make_clip(9, 32, 48), 9 * i, axis=2), 8)
        (folder / f"{i}.txt").write_text(f"clip number {i}")
    return folder


def command(clips: Path, adapter: Path, *more) -> list[str]:
    rank = [] if "full" in more else ["--rank", "4"]
    words = ["--data", clips, "--adapter-path", adapter, "--model", "demo", *SMALL, *rank, *more]
    return [str(word) for word in words]


def adapter_of(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "pytorch_lora_weights.safetensors"))


def test_two_processes_learn_what_one_learns_from_batches_twice_as_large(clips, tmp_path):
    """Uses prior prompts, accumulation and a last batch that is filled up."""
    prompts = tmp_path / "prior.txt"
    prompts.write_text("a red circle\na blue square\na green triangle\n")
    more = ["--prior-prompts", prompts, "--grad-accumulation-steps", 2, "--learning-rate", 1e-3]
    more += ["--iters", 8, "--save-every", 4, "--quiet"]
    one, two = tmp_path / "one", tmp_path / "two"
    each = ["--batch-size", 1, "--prior-batch-size", 1]
    done = launched(command(clips, two, *more, *each), SCRIPT)
    assert done.count(str(two)) == 1, "only the main process prints where the adapter is"
    assert main(command(clips, one, *more, "--batch-size", 2, "--prior-batch-size", 2)) == 0
    expected, made = adapter_of(one), adapter_of(two)
    whole, other = (
        mx.concatenate([arrays[name].flatten() for name in sorted(expected)])
        for arrays in (expected, made)
    )
    # Measured: 4e-7, and at most 2e-6 in one number. Adam amplifies the rounding of small ones.
    assert mx.linalg.norm(other - whole) < 1e-5 * mx.linalg.norm(whole)
    assert mx.abs(other - whole).max() < 1e-5
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (one, two)]
    rows = [[json.loads(line) for line in log] for log in logs]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["prior_loss"] == pytest.approx(b["prior_loss"], rel=1e-2)


def weights_of(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "transformer/diffusion_pytorch_model.safetensors"))


def test_two_processes_train_all_weights_as_one_does_and_one_resumes_what_they_saved(
    clips, tmp_path
):
    """Uses AdamW, whose states they share when they resume, and accumulation.

    Adam makes whole steps of a gradient that is rounding only, such as that of norm_k.bias.
    """
    layers = ["patch_embed.*", "time_*", "*_blocks.[03].attn1.to_*", "*_blocks.[03].ff.*"]
    more = ["--fine-tune-type", "full", "--optimizer", "adamw", "--train-layers", *layers]
    more += ["--learning-rate", 1e-3, "--grad-accumulation-steps", 2, "--warmup", 1, "--quiet"]
    one, two, alone = (tmp_path / name for name in ("one", "two", "alone"))
    done = launched(command(clips, two, *more, "--batch-size", 1, "--iters", 2), SCRIPT)
    assert done.count(str(two / "model")) == 1
    shutil.copytree(two, alone)
    more += ["--iters", 4]
    launched(command(clips, two, *more, "--batch-size", 1, "--resume"), SCRIPT)
    assert main(command(clips, alone, *more, "--batch-size", 2, "--resume")) == 0
    assert main(command(clips, one, *more, "--batch-size", 2)) == 0
    start, expected = weights_of(DEMO_PATH), weights_of(one / "model")
    change = norm_of_difference(start, expected)
    for folder in (two, alone):
        # Measured: 5e-5 of the change.
        difference = norm_of_difference(expected, weights_of(folder / "model"))
        assert difference < 5e-4 * change


def norm_of_difference(first: dict[str, mx.array], second: dict[str, mx.array]) -> float:
    squares = [mx.square(array - second[name]).sum() for name, array in first.items()]
    return mx.sqrt(mx.stack(squares).sum()).item()


def test_two_processes_resume_bit_for_bit(clips, tmp_path):
    folders = [tmp_path / name for name in ("whole", "stopped")]
    more = ["--batch-size", 1, "--warmup", 1, "--quiet"]
    launched(command(clips, folders[0], *more, "--iters", 6), SCRIPT)
    launched(command(clips, folders[1], *more, "--iters", 3), SCRIPT)
    launched(command(clips, folders[1], *more, "--iters", 6, "--resume"), SCRIPT)
    whole, stopped = map(adapter_of, folders)
    assert all(mx.array_equal(array, stopped[name]) for name, array in whole.items())


def test_a_late_process_changes_nothing(clips, tmp_path):
    """It is late by more than the five seconds for which Metal lets GPU work wait."""
    late = tmp_path / "late.py"
    late.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from mlx_cogvideo.cli.lora import main\n"
        "from mlx_cogvideo.distributed import Distributed\n"
        "all_mean = Distributed.all_mean\n"
        "def sleep_first(self, gradients):\n"
        "    time.sleep(6 * self.rank)\n"
        "    return all_mean(self, gradients)\n"
        "Distributed.all_mean = sleep_first\n"
        "sys.exit(main())\n"
    )
    more = ["--batch-size", 1, "--warmup", 0, "--iters", 2, "--quiet"]
    folders = [tmp_path / name for name in ("punctual", "late")]
    for folder, script in zip(folders, (SCRIPT, late), strict=True):
        launched(command(clips, folder, *more), script)
    rows = [json.loads(line) for line in (folders[1] / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and min(row["seconds"] for row in rows) > 6
    expected, made = map(adapter_of, folders)
    assert all(mx.array_equal(array, made[name]) for name, array in expected.items())


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_lost_the_other_saves_a_checkpoint_and_ends(clips, tmp_path, victim):
    adapter = tmp_path / "adapter"
    arguments = command(clips, adapter, "--iters", 5000, "--save-every", 5000, "--batch-size", 1)
    processes = start(arguments, SCRIPT, 2, tmp_path)
    log, since = adapter / "log.jsonl", time.monotonic()
    while not log.exists() or log.read_text().count("\n") < 3:
        assert time.monotonic() - since < 120 and processes[victim].poll() is None
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    code, _, stderr = ended(processes)[1 - victim]
    assert code == 1
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "another process is gone" in error and "--resume" in error
    rows = len(log.read_text().splitlines())
    if victim == 0:
        assert not (adapter / "checkpoints").exists()
        (adapter,) = tmp_path.glob("adapter-rescued-1-*")
        assert f"--resume --adapter-path {adapter}" in error
        rows = 0  # the rescued copy has no log yet
    (checkpoint,) = (adapter / "checkpoints").iterdir()
    steps = int(checkpoint.name)
    assert steps >= 3 and rows in (0, steps)
    more = ["--iters", steps + 2, "--save-every", 5000, "--batch-size", 2, "--resume", "--quiet"]
    assert main(command(clips, adapter, *more)) == 0
    assert len((adapter / "log.jsonl").read_text().splitlines()) == rows + 2


def test_a_single_process_exchanges_nothing():
    assert (ALONE.rank, ALONE.size, ALONE.is_main) == (0, 1, True)
    arrays = {"a": mx.ones(3)}
    assert ALONE.all_mean(arrays) is arrays and ALONE.broadcast(arrays)["a"] is arrays["a"]
    assert ALONE.mean([1.5]) == [1.5] and ALONE.any(True) and not ALONE.any(False)
    assert list(ALONE.own(4)) == [0, 1, 2, 3]
    ALONE.check_same({"clips": 1})
    with ALONE.main_process_first():
        pass


def one_of_two(monkeypatch, rank: int, other) -> Distributed:
    """Returns one process of two. `other` is the share of the other one in each sum."""
    process = Distributed()
    process.rank, process.size = rank, 2
    monkeypatch.setattr(mx.distributed, "all_sum", lambda array, group: array + other(array))
    return process


PROJECTION = ["--train-layers", "proj_out.weight"]


@pytest.mark.parametrize(
    ("more", "count"),
    [
        (PROJECTION, "24 KiB"),
        ([*PROJECTION, "--grad-accumulation-steps", 2], "48 KiB"),
        (["--model", "5b"], "10.4 GiB"),
    ],
)
def test_a_plan_names_the_bytes_that_processes_exchange(
    clips, tmp_path, monkeypatch, capsys, more, count
):
    """proj_out.weight has 64 x 192 numbers. Several batches are added in float32."""
    process = one_of_two(monkeypatch, 0, mx.zeros_like)
    monkeypatch.setattr(Distributed, "connect", lambda: process)
    full = ["--fine-tune-type", "full", "--dtype", "bfloat16", "--dry-run"]
    assert main(command(clips, tmp_path / "full", *full, *more)) == 0
    assert f"each update exchanges {count} of gradients" in capsys.readouterr().err


def test_processes_with_different_settings_are_refused(monkeypatch):
    """The digests of the other process never match."""
    main_process = one_of_two(monkeypatch, 0, lambda array: mx.ones_like(array))
    with pytest.raises(InvalidInputError, match="the clips differ between the processes"):
        main_process.check_same({"clips": "mine"})


def test_each_process_gets_its_own_share():
    shares = []
    for rank in range(3):
        process = Distributed()
        process.rank, process.size = rank, 3
        shares += process.own(12)
    assert shares == list(range(12))


def test_a_failed_exchange_means_a_lost_process(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[ring] connection to a peer was lost\nmore")

    process = one_of_two(monkeypatch, 1, fail)
    monkeypatch.setattr(nn, "average_gradients", fail)
    for exchange in (lambda: process.any(True), lambda: process.all_mean({"a": mx.ones(1)})):
        with pytest.raises(PeerLostError, match=r"\[ring\] connection to a peer was lost\)"):
            exchange()
