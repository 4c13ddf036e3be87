"""A run that stops at any point resumes to the same video, and loses nothing."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import during_steps
from support import watch_networks

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.errors import GenerationError, InvalidInputError, OutputError
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.pipeline.recording import make_record
from mlx_cogvideo.pipeline.resolver import resolve
from mlx_cogvideo.pipeline.settings import VideoSettings
from mlx_cogvideo.runs import resumable
from mlx_cogvideo.runs.resumable import VideoJob, encode_all
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.runs.settings import video_settings
from mlx_cogvideo.video import read_record, read_video

PROMPT = "a red circle moves right on a white background"
STEPS = 4


@pytest.fixture
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained(DEMO_PATH)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def new_run(pipe, folder, name="frames", scheduler="dpm", prompt=PROMPT) -> SavedRun:
    """Encodes and saves a run of four steps."""
    request = pipe.request(
        prompt,
        num_frames=9,
        height=32,
        width=48,
        num_inference_steps=STEPS,
        scheduler=scheduler,
        seed=1,
    )
    record = make_record(pipe, request, {"name": "demo"}, fps=8)
    path = folder / f"{name}.resume"
    ((_, run),) = encode_all(pipe, [VideoJob("", request, record, str(folder / name), path)])
    run.save(path)
    return run


def finish(pipe, run, path, **options) -> dict:
    """Finishes a run with the settings in its record."""
    settings = resolve(pipe, video_settings(run.record["settings"]))
    return resumable.finish(pipe, settings, run, path, **options)


def read_frames(path) -> np.ndarray:
    return np.concatenate([read_video(file)[0] for file in sorted(path.iterdir())])


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_run_stopped_after_any_step_resumes_to_the_same_frames(pipe, folder, scheduler, stop):
    run, path = new_run(pipe, folder, scheduler=scheduler), folder / "frames.resume"
    expected = np.asarray(pipe(**pipe_arguments(run)))
    steps = []
    with during_steps(steps.append), pytest.raises(KeyboardInterrupt) as interrupt:
        finish(pipe, run, path, should_stop=lambda: len(steps) == stop)
    assert [file.name for file in folder.iterdir()] == ["frames.resume"]
    (note,) = interrupt.value.__notes__
    assert note.startswith(f"{stop} of 4 steps")
    assert note.endswith(f"mlx-cogvideo generate --resume {path}")
    finish(CogVideoXPipeline(DEMO_PATH), SavedRun.load(path), path)
    assert [file.name for file in folder.iterdir()] == ["frames"]
    assert (read_frames(folder / "frames") == expected).all()


def pipe_arguments(run) -> dict:
    settings = run.record["settings"]
    return {name: settings[name] for name in settings if name in settings_of(VideoSettings)}


def test_a_16_bit_run_resumes_in_16_bit(folder):
    pipe = CogVideoXPipeline.from_pretrained(DEMO_PATH, mx.bfloat16)
    run, path = new_run(pipe, folder), folder / "frames.resume"
    expected = np.asarray(pipe(**pipe_arguments(run)))
    with pytest.raises(KeyboardInterrupt):
        finish(pipe, run, path, should_stop=lambda: True)
    finish(pipe, SavedRun.load(path), path)
    assert (read_frames(folder / "frames") == expected).all()


def test_ctrl_c_in_the_middle_of_a_step_keeps_the_steps_before(pipe, folder):
    run, path = new_run(pipe, folder), folder / "frames.resume"

    def interrupt(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with during_steps(interrupt), pytest.raises(KeyboardInterrupt):
        finish(pipe, run, path)
    assert SavedRun.load(path).steps_done == 2


def test_another_run_that_writes_the_same_name_is_neither_taken_nor_removed(
    pipe, folder, tmp_path, monkeypatch, caplog
):
    """As where a file system has no locks, and two commands have one output."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run, path = new_run(pipe, folder), folder / "frames.resume"
    other = replace(run, owner="other")

    def write(step: int) -> None:
        if step == 3:
            other.save(path)

    with during_steps(write):
        finish(pipe, run, path, save_every=1)
    assert f"another run has written {path}" in caplog.text
    assert SavedRun.load(path).owner == "other"
    assert [file.name for file in folder.iterdir() if file.suffix] == ["frames.resume"]
    with pytest.raises(InvalidInputError, match="another run has written it"):
        SavedRun.load(path, run.owner)


@pytest.mark.parametrize(("every", "saves"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (None, [4])])
def test_a_run_is_saved_every_few_steps_and_before_decoding(
    pipe, folder, monkeypatch, every, saves
):
    run, seen = new_run(pipe, folder), []
    save = SavedRun.save
    monkeypatch.setattr(
        SavedRun, "save", lambda self, path: seen.append(self.steps_done) or save(self, path)
    )
    finish(pipe, run, folder / "frames.resume", save_every=every)
    assert seen == saves


def test_by_default_a_run_is_saved_about_once_a_minute(pipe, folder, monkeypatch):
    run, steps, saves = new_run(pipe, folder), [], []
    monkeypatch.setattr(SavedRun, "save", lambda self, path: saves.append(self.steps_done))
    monkeypatch.setattr("time.monotonic", lambda: 25.0 * len(steps))  # each step takes 25 seconds
    with during_steps(steps.append):
        finish(pipe, run, folder / "frames.resume")
    assert saves == [3, 4]


def test_failed_decoding_is_repeated_without_the_transformer(pipe, folder, monkeypatch):
    run, path = new_run(pipe, folder), folder / "frames.resume"
    expected = np.asarray(pipe(**pipe_arguments(run)))
    with monkeypatch.context() as patch:
        patch.setattr(
            "mlx_cogvideo.nn.autoencoder.AutoencoderKLCogVideoX.decode_chunks",
            lambda *_, **__: (_ for _ in ()).throw(RuntimeError("[malloc] Unable to allocate")),
        )
        with pytest.raises(GenerationError, match=r"Unable to allocate.*--tiling tiled") as error:
            finish(pipe, run, path)
    assert "4 of 4 steps are kept" in error.value.__notes__[0]
    monkeypatch.setattr(
        "mlx_cogvideo.nn.transformer.CogVideoXTransformer3DModel.__call__",
        lambda *_, **__: pytest.fail("the latents were saved"),
    )
    finish(pipe, SavedRun.load(path), path)
    assert (read_frames(folder / "frames") == expected).all()


def test_a_folder_that_vanishes_loses_nothing(pipe, folder, caplog):
    run, path = new_run(pipe, folder), folder / "frames.resume"
    expected = np.asarray(pipe(**pipe_arguments(run)))
    elsewhere = folder.with_name("elsewhere")
    with pytest.raises(OutputError, match="out doesn't exist") as error:
        finish(
            pipe,
            run,
            path,
            save_every=1,
            observers=[lambda event: event.done == 2 and shutil.rmtree(folder, True)],
        )
    fallback = Path(error.value.__notes__[0].split("--resume ")[1])
    assert str(fallback) in caplog.text
    saved = replace(SavedRun.load(fallback), output=str(elsewhere))
    assert saved.steps_done == STEPS
    finish(pipe, saved, fallback)
    assert (read_frames(elsewhere) == expected).all()
    assert not fallback.parent.exists()


def test_a_saved_run_that_was_moved_also_removes_its_file_beside_the_output(pipe, folder, tmp_path):
    run, path = new_run(pipe, folder), folder / "frames.resume"
    other = replace(run, record={**run.record, "settings": {**run.record["settings"], "seed": 9}})
    (tmp_path / "moved.resume").write_bytes(path.read_bytes())
    finish(pipe, SavedRun.load(tmp_path / "moved.resume"), tmp_path / "moved.resume")
    assert [file.name for file in folder.iterdir()] == ["frames"]
    shutil.rmtree(folder / "frames")
    run.save(tmp_path / "moved.resume")
    other.save(path)
    finish(pipe, SavedRun.load(tmp_path / "moved.resume"), tmp_path / "moved.resume")
    assert SavedRun.load(path).record == other.record


def test_a_disk_that_is_full_for_a_while_loses_nothing(pipe, folder, monkeypatch, caplog, tmp_path):
    run, path = new_run(pipe, folder), folder / "frames.resume"
    expected = np.asarray(pipe(**pipe_arguments(run)))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no-such-folder"))
    save = SavedRun.save

    def fail_at_first(self, path):
        if self.steps_done < 3:
            raise OutputError(f"{path} can't be written: No space left on device")
        save(self, path)

    monkeypatch.setattr(SavedRun, "save", fail_at_first)
    finish(pipe, run, path, save_every=1)
    assert caplog.text.count("the run can't be saved") == 2
    assert (read_frames(folder / "frames") == expected).all()
    assert [file.name for file in folder.iterdir()] == ["frames"]


def test_the_record_sums_the_timings_of_all_parts_of_a_run(pipe, folder):
    run, path = new_run(pipe, folder, "video.mp4"), folder / "video.mp4.resume"
    with pytest.raises(KeyboardInterrupt):
        finish(pipe, run, path, should_stop=lambda: True)
    before = SavedRun.load(path).record
    assert set(before["timings"]) == set(before["peak_memory"]) == {"encode", "denoise"}
    after = finish(pipe, SavedRun.load(path), path)
    assert after["timings"]["denoise"] > before["timings"]["denoise"] > 0
    assert set(after["timings"]) == set(after["peak_memory"]) == {"encode", "denoise", "decode"}
    assert read_record(folder / "video.mp4") == after


def test_latents_are_written_unchanged(pipe, folder):
    run = new_run(pipe, folder, "latents.safetensors")
    expected = pipe(**pipe_arguments(run), output_type="latent").frames
    finish(pipe, run, folder / "latents.safetensors.resume")
    latents = mx.load(str(folder / "latents.safetensors"))["latents"]
    assert mx.array_equal(latents, expected)
    pixels = np.concatenate(list(pipe.decode(pipe.request(**pipe_arguments(run)), latents)))
    assert (pixels == np.asarray(pipe(**pipe_arguments(run)))).all()


def test_texts_are_encoded_once_and_the_encoder_is_freed(pipe, folder, monkeypatch):
    in_memory, texts = watch_networks(monkeypatch), []
    encode = CogVideoXPipeline.encode_prompt
    monkeypatch.setattr(
        CogVideoXPipeline,
        "encode_prompt",
        lambda self, text, **_: texts.append(text) or encode(self, text),
    )
    request = pipe.request(PROMPT, seed=1)
    other = pipe.request("a blue square", seed=1)
    jobs = [
        VideoJob("", each, make_record(pipe, each, {}, fps=8), "a", folder / "a")
        for each in (request, request, other)
    ]
    runs = list(encode_all(pipe, jobs))
    assert texts == ["", PROMPT, "a blue square"]
    assert in_memory() == set()
    assert [run.run.embeds.shape for _, run in runs] == [
        (2, 32, runs[0][1].run.embeds.shape[2])
    ] * 3


def test_a_saved_run_that_does_not_fit_its_settings_is_refused(pipe, folder):
    run, path = new_run(pipe, folder), folder / "frames.resume"
    with pytest.raises(KeyboardInterrupt):
        finish(pipe, run, path, should_stop=lambda: True)
    saved = SavedRun.load(path)
    state = replace(saved.run.denoising, latents=saved.run.latents[:, :1])
    short = replace(saved, run=replace(saved.run, denoising=state))
    with pytest.raises(InvalidInputError, match="remove it"):
        finish(pipe, short, path)
    strange = {**saved.record, "settings": {**saved.record["settings"], "zoom": 2}}
    with pytest.raises(InvalidInputError, match="zoom"):
        finish(pipe, replace(saved, record=strange), path)
