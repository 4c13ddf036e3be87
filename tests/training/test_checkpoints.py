"""Checkpoints of a training: which are kept, which are refused, and when one is rescued."""

import json
from pathlib import Path

import mlx.core as mx
import pytest
from trainers import write_samples

from mlx_cogvideo import CheckpointError, CogVideoXPipeline, InvalidInputError
from mlx_cogvideo.checkpoints import save_arrays
from mlx_cogvideo.distributed import Distributed
from mlx_cogvideo.errors import OutputError, PeerLostError
from mlx_cogvideo.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_checkpoints,
)
from mlx_cogvideo.training.latent_cache import Cache, read_cached
from mlx_cogvideo.training.settings import TrainingSettings
from mlx_cogvideo.training.trainer import Trainer

SETTINGS, DATA = {"rank": 4, "iters": 9}, {"clips": "abc"}


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"a": mx.ones((2, 3)) * step}, {"m": mx.ones(3) * step})


def save(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_checkpoint(folder, checkpoint(step), SETTINGS, DATA, keep)


def load(folder: Path, settings=SETTINGS, data=DATA) -> Checkpoint:
    return load_checkpoint(folder, checkpoint(0), settings, data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_training_resumes_from_the_last_checkpoint(tmp_path):
    save(tmp_path, 2, 10)
    (tmp_path / "checkpoints" / "0000013x").mkdir()
    step, adapter, optimizer, _ = load(tmp_path, {"rank": 4, "iters": 20})
    assert step == 10
    assert adapter["a"].tolist() == [[10] * 3] * 2 and optimizer["m"].tolist() == [10] * 3


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_the_last_checkpoints_and_the_one_just_written_are_kept(tmp_path, keep):
    save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert names(tmp_path) == [f"000000{step}" for step in range(1, 6)][-keep:]
    save(tmp_path, 3, keep=keep)
    assert "0000003" in names(tmp_path)


def test_a_partial_checkpoint_of_a_killed_process_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".partial"
    left.mkdir(parents=True)
    (left / "adapter.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["0000001"]


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InvalidInputError, match="rank was 4 and is now 8"):
        load(tmp_path, {"rank": 8, "iters": 9})
    with pytest.raises(InvalidInputError, match="the clips"):
        load(tmp_path, data={"clips": "abd"})


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "training.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"step": 2}', "other"], ids=str)
def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(tmp_path, name, content):
    save(tmp_path, 1, 2)
    file = saved_checkpoints(tmp_path)[-1] / name
    file.unlink()
    if content == "other":
        file.write_text(json.dumps({"step": 7, "settings": SETTINGS, "data": DATA}))
        if file.suffix == ".safetensors":
            mx.save_safetensors(str(file), {"b": mx.ones(3)})
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"0000002 is damaged .*remove it") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_an_error_on_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(file, *_):
        Path(file).write_bytes(b"half")
        raise RuntimeError("[write] Unable to write 5481 bytes to file.")

    save(tmp_path, 1)
    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OutputError, match=r"adapter\.safetensors can't be written"):
        save(tmp_path, 2)
    assert saved_checkpoints(tmp_path)[-1].name == "0000001"
    with pytest.raises(OutputError):
        save_arrays(tmp_path / "a.safetensors", {"a": mx.ones(1)})
    assert not list(tmp_path.glob("a*"))


def test_an_error_in_a_damaged_cache_file_names_the_file(tmp_path):
    path = Cache(tmp_path).path({"caption": "a"})
    Cache(tmp_path).write(path, {"embeds": mx.ones(300)})
    assert read_cached(path)["embeds"].shape == (300,)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path.name} can't be read .*: remove it"):
        read_cached(path)


class OneOfTwo(Distributed):
    """A process whose only peer is lost after some updates."""

    def __init__(self, rank: int, updates: int):
        super().__init__()
        self.rank, self.size, self.updates = rank, 2, updates

    def check_same(self, values):
        pass

    def wait(self):
        pass

    def mean(self, values):
        return list(values)

    def all_mean(self, gradients):
        if self.updates == 0:
            raise PeerLostError("gone")
        self.updates -= 1
        return gradients


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("updates", [0, 3])
def test_a_process_rescues_its_steps_when_another_one_is_lost(tmp_path, monkeypatch, rank, updates):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pipe, samples = CogVideoXPipeline.from_pretrained("demo"), write_samples(tmp_path / "cache", 2)
    distributed, settings = OneOfTwo(rank, updates), TrainingSettings(iters=9, rank=4)
    with pipe.keeping("transformer"):
        trainer = Trainer(
            pipe, samples, samples[0].text, settings, Path("."), distributed=distributed
        )
        with pytest.raises(PeerLostError) as error:
            trainer.train()
    rescued = tmp_path / "here" if rank == 0 else tmp_path / "here-rescued-1-0000003"
    if updates == 0:
        assert not (tmp_path / "here" / "checkpoints").exists() and not list(tmp_path.glob("*-*"))
    else:
        assert names(rescued) == ["0000003"]
        assert "3 of 9 steps are kept" in error.value.__notes__[0]
