"""A saved run on disk: what is restored, and what is refused."""

import os
import tempfile

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_cogvideo.diffusion.denoising import DenoisingState
from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.pipeline.events import RunState
from mlx_cogvideo.runs.channel import Channel
from mlx_cogvideo.runs.guard import Guard
from mlx_cogvideo.runs.saved_run import SavedRun, saved_path
from mlx_cogvideo.video import read_record

RECORD = {"mlx_cogvideo": "0.1.0", "settings": {"prompt": "“a cat”", "num_inference_steps": 4}}


def make_run(step: int = 2) -> SavedRun:
    keys = mx.random.split(mx.random.key(0), 3)
    embeds = mx.random.normal((2, 5, 8), key=keys[0]).astype(mx.bfloat16)
    latents, x0 = (mx.random.normal((1, 3, 4, 6, 16), key=key) for key in keys[1:])
    state = DenoisingState(step, 499, latents, x0) if step else None
    return SavedRun(RECORD, "video.mp4", RunState(embeds, denoising=state))


@pytest.mark.parametrize("step", [0, 2, 4])
def test_a_saved_run_is_restored_bit_for_bit(tmp_path, monkeypatch, step):
    monkeypatch.chdir(tmp_path)
    run, path = make_run(step), tmp_path / "video.mp4.resume"
    run.save(path)
    back = SavedRun.load(path)
    assert back.record == RECORD
    assert back.output == str(tmp_path / "video.mp4")
    assert back.progress == f"{step} of 4 steps"
    assert mx.array_equal(back.run.embeds.astype(mx.bfloat16), run.run.embeds)
    if step:
        assert back.run.denoising.timestep == 499
        assert mx.array_equal(back.run.denoising.latents, run.run.denoising.latents)
        assert mx.array_equal(back.run.denoising.x0, run.run.denoising.x0)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_frames_keeps_its_slash(tmp_path):
    run = SavedRun(RECORD, f"{tmp_path}/take.2/", make_run().run)
    run.save(saved_path(run.output))
    assert SavedRun.load(tmp_path / "take.2.resume").output == run.output


def test_the_record_can_be_read_as_that_of_a_video(tmp_path):
    make_run().save(tmp_path / "a.resume")
    assert read_record(tmp_path / "a.resume") == RECORD


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "a.resume"
    make_run(1).save(path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OutputError, match="can't be written: disk full"):
        make_run(2).save(path)
    assert SavedRun.load(path).steps_done == 1
    assert list(tmp_path.iterdir()) == [path]


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def write_text(path):
    path.write_text("not a run")


def leave_out_the_latents(path):
    about = '{"output": "video.mp4", "step": 2, "timestep": 1}'
    record = '{"mlx_cogvideo": "1", "settings": {"num_inference_steps": 4}}'
    metadata = {"mlx_cogvideo": record, "run": about}
    save_file({"embeds": np.ones(1)}, path, metadata)


def write_another_file(path):
    save_file({"latents": np.ones(1)}, path)


def exceed_the_steps(path):
    make_run(5).save(path)


@pytest.mark.parametrize(
    "damage", [cut_off, write_text, leave_out_the_latents, write_another_file, exceed_the_steps]
)
def test_a_damaged_saved_run_is_one_clear_line(tmp_path, damage):
    path = tmp_path / "video.mp4.resume"
    make_run().save(path)
    damage(path)
    with pytest.raises(InvalidInputError, match=r"can't be read.*remove it") as error:
        SavedRun.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_saved_run_is_an_error(tmp_path):
    with pytest.raises(InvalidInputError, match="nothing to resume"):
        SavedRun.load(tmp_path / "video.mp4.resume")


def test_a_guarded_step_goes_to_a_temporary_folder_where_its_own_is_gone(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    guard = Guard(Channel({}), lambda code, error: None)
    guard.save()
    assert not any(temporary.iterdir()), "there is nothing to save yet"
    for path in (tmp_path / "a.resume", tmp_path / "gone" / "b.resume"):
        guard.note(make_run(), path)
        guard.save()
    assert SavedRun.load(tmp_path / "a.resume").steps_done == 2
    (file,) = temporary.glob("*/b.resume")
    assert SavedRun.load(file).steps_done == 2
