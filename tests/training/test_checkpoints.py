"""What a training goes on from: kept, refused, and rescued."""

import json
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_cogvideo import CheckpointError, InvalidInputError
from mlx_cogvideo.checkpoints import save_arrays
from mlx_cogvideo.errors import OutputError, PeerLostError
from mlx_cogvideo.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    saved_checkpoints,
)
from mlx_cogvideo.training.latent_cache import Cache, read_cached
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


def test_the_last_one_is_gone_on_from(tmp_path):
    save(tmp_path, 2, 10)
    (tmp_path / "checkpoints" / "0000013x").mkdir()
    step, adapter, optimizer = load(tmp_path, {"rank": 4, "iters": 20})
    assert step == 10
    assert adapter["a"].tolist() == [[10] * 3] * 2 and optimizer["m"].tolist() == [10] * 3


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
def test_so_many_are_kept_and_always_the_one_that_was_written(tmp_path, keep):
    save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert names(tmp_path) == [f"000000{step}" for step in range(1, 6)][-keep:]
    save(tmp_path, 3, keep=keep)
    assert "0000003" in names(tmp_path)


def test_what_a_killed_save_left_is_removed(tmp_path):
    left = tmp_path / "checkpoints" / ".partial"
    left.mkdir(parents=True)
    (left / "adapter.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert names(tmp_path) == ["0000001"]


def test_another_training_doesnt_go_on(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InvalidInputError, match="rank was 4 and is now 8"):
        load(tmp_path, {"rank": 8, "iters": 9})
    with pytest.raises(InvalidInputError, match="the clips were others"):
        load(tmp_path, data={"clips": "abd"})


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.safetensors", "training.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"step": 2}', "other"], ids=str)
def test_a_damaged_one_is_one_line_that_says_what_to_do(tmp_path, name, content):
    save(tmp_path, 1, 2)
    file = saved_checkpoints(tmp_path)[-1] / name
    file.unlink()
    if content == "other":
        told = {"step": 7, "settings": SETTINGS, "data": DATA}
        file.write_text(json.dumps(told))
        if file.suffix == ".safetensors":
            mx.save_safetensors(str(file), {"b": mx.ones(3)})
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"0000002 is damaged .*: remove it to go on") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_full_disk_is_told_by_the_file(tmp_path, monkeypatch):
    def full(file, *_):
        Path(file).write_bytes(b"half")
        raise RuntimeError("[write] Unable to write 5481 bytes to file.")

    save(tmp_path, 1)
    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OutputError, match=r"adapter.safetensors can't be written .*disk full"):
        save(tmp_path, 2)
    assert saved_checkpoints(tmp_path)[-1].name == "0000001"
    with pytest.raises(OutputError):
        save_arrays(tmp_path / "a.safetensors", {"a": mx.ones(1)})
    assert not list(tmp_path.glob("a*"))


def test_a_damaged_file_of_the_cache_is_told_by_its_name(tmp_path):
    path = Cache(tmp_path).path({"caption": "a"})
    Cache(tmp_path).write(path, {"embeds": mx.ones(300)})
    assert read_cached(path)["embeds"].shape == (300,)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=f"{path.name} can't be read .*: remove it"):
        read_cached(path)


@pytest.mark.parametrize("is_main", [True, False])
def test_what_was_learned_is_rescued_when_a_process_is_lost(tmp_path, monkeypatch, is_main):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    trainer, saved = object.__new__(Trainer), []

    def lost(*_):
        raise PeerLostError("gone")

    trainer.folder, trainer.peers = Path("."), SimpleNamespace(is_main=is_main, rank=1)
    trainer._train, trainer.save = lost, lambda: saved.append(trainer.folder.resolve())
    for step in (0, 3):
        trainer.step = step
        with pytest.raises(PeerLostError) as told:
            trainer.train()
    expected = tmp_path / "here" if is_main else tmp_path / "here-rescued-1-0000003"
    assert saved == [expected] and expected.is_dir()
    assert "3 steps are kept" in told.value.__notes__[0]
