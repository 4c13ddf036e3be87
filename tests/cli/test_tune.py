"""``mlx-cogvideo tune``: from prompts to presets, whatever happens on the way."""

import json
import shlex
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from commands import PROMPT, ctrl_c_in_step, errors, generate, run
from support import killed, locked_elsewhere, relative_error

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.cli import tuning_job, tuning_report
from mlx_cogvideo.cli.main import run_command
from mlx_cogvideo.diffusion.extrapolation import half_log_snr
from mlx_cogvideo.errors import OutputError
from mlx_cogvideo.pipeline.presets import keep_tuned_lists, presets_file
from mlx_cogvideo.pipeline.resolver import initial_noise, run_scheduler
from mlx_cogvideo.runs.predictions import Predictions
from mlx_cogvideo.runs.tuning import TuningFolder
from mlx_cogvideo.video import read_image, read_record, read_video
from mlx_cogvideo.video.picture_writer import write_picture

STEPS = 8
SIZE = ["--frames", "9", "--height", "32", "--width", "48", "--steps", str(STEPS)]
SAMPLING = ["--scheduler", "dpm", "--guidance-schedule", "wave", "--guidance", "3"]
OTHER = "a blue square moves up on a black background"
MADE = ["balanced.mp4", "exact.mp4", "fast.mp4", "report.json", "sheet.png"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one. Any list is kept: these videos are too small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning_report, "LEAST_PSNR", 0.0)
    return tmp_path


def tune(*arguments) -> int:
    words = ["--prompt", PROMPT, *SIZE, *SAMPLING, *map(str, arguments)]
    return run_command("tune", words)


def report(name: str | Path = "tuning") -> dict:
    return json.loads(Path(name, "report.json").read_text())


def names(name: str = "tuning") -> list[str]:
    return sorted(file.name for file in Path(name).iterdir())


def frames(name: str, folder: str | Path = "tuning") -> np.ndarray:
    return read_video(Path(folder, f"{name}.mp4"))[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A tuning that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "tuning"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder.parent / "data"))
        assert tune("-o", folder) == 0
    return folder


def test_a_tuning_leaves_videos_a_sheet_a_report_and_presets(capsys):
    assert tune() == 0
    said = capsys.readouterr()
    assert names() == MADE
    runs = {run["name"]: run for run in report()["runs"]}
    assert [*runs] == ["exact", "balanced", "fast"]
    assert [len(run["computed_steps"]) for run in runs.values()] == [8, 4, 3]
    assert [run["work"] for run in runs.values()] == [1, 4 / 8, 3 / 8]
    for name in ("balanced", "fast"):
        recorded = read_record(Path("tuning", f"{name}.mp4"))["settings"]
        assert recorded["computed_steps"] == runs[name]["computed_steps"]
        shown = f"{runs[name]['psnr']:.1f} dB"
        assert shown in said.out
    exact = lossless("exact")
    for name in ("balanced", "fast"):
        off = lossless(name) - exact
        psnr = 20 * np.log10(255) - 10 * np.log10(np.square(off).mean())
        assert runs[name]["psnr"] == pytest.approx(psnr)
        assert runs[name]["flicker"] == pytest.approx(np.abs(np.diff(off, axis=0)).mean())
        assert 0 < runs[name]["ssim"] < 1


def lossless(preset: str) -> np.ndarray:
    """The frames of the tuning's prompt and seed, by generate."""
    assert generate(preset, *SIZE, *SAMPLING, "--preset", preset, "--seed", 0) == 0
    assert "preset" not in read_record(preset)["settings"]
    pictures = sorted(Path(preset).iterdir())
    return np.stack([read_image(file, 32, 48) for file in pictures]).astype(float)


def test_the_lists_are_the_best_for_the_predictions_of_the_run():
    """By hand, from a run of the pipeline that is watched step by step."""
    assert tune("--scheduler", "ddim", "--guidance-schedule", "constant") == 0
    pipe = CogVideoXPipeline.from_pretrained("demo")
    settings = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": STEPS}
    request = pipe.request(PROMPT, seed=0, guidance_scale=3.0, scheduler="ddim", **settings)
    request = replace(request, cache="latents", computed_steps=tuple(range(STEPS)))
    (embeds,) = pipe.encode([request])
    states = list(pipe.denoise(request, embeds))
    u, c = (np.stack([x(state) for state in states]) for x in (_unconditional, _conditional))
    angles = [state.lines["conditional"].angles[-1] for state in states]
    after, half = [*angles[1:], 0.0], [*map(half_log_snr, angles)]

    def error(computed) -> float:
        total = 0.0
        for i in set(range(STEPS)) - set(computed):
            k, j = [step for step in computed if step < i][-2:]
            ahead = 0.7 * (half[i] - half[j]) / (half[j] - half[k])
            lines = [x[j] + ahead * (x[j] - x[k]) for x in (u, c)]
            off = (u[i] + 3 * (c[i] - u[i])) - (lines[0] + 3 * (lines[1] - lines[0]))
            turn = np.cos(after[i]) - np.cos(angles[i]) * np.sin(after[i]) / np.sin(angles[i])
            total += turn**2 * np.square(off).sum()
        return total

    for each in report()["runs"][1:]:
        count = len(each["computed_steps"])
        others = [(0, 1, *more) for more in combinations(range(2, STEPS), count - 2)]
        assert tuple(each["computed_steps"]) == min(others, key=error)
    size = np.square(c[-1]).sum()
    known = {len(each["computed_steps"]): each["relative_error"] for each in report()["lists"]}
    assert [*known] == [*range(2, STEPS + 1)]
    assert known[3] == pytest.approx(
        (error(report()["runs"][2]["computed_steps"]) / size) ** 0.5, rel=1e-3
    )


def _conditional(state) -> np.ndarray:
    return np.array(state.lines["conditional"].values[-1], np.float64)


def _unconditional(state) -> np.ndarray:
    return _conditional(state) + np.array(state.lines["difference"].values[-1], np.float64)


def test_several_prompts_make_an_exact_video_each(capsys):
    assert run_command("tune", ["--prompt", PROMPT, OTHER, *SIZE, *SAMPLING]) == 0
    assert names() == sorted([*MADE, "exact-2.mp4"])
    assert report()["prompts"] == 2
    texts = [
        read_record(f"tuning/{name}.mp4")["settings"]["prompt"]
        for name in ("exact", "exact-2", "fast")
    ]
    assert texts == [PROMPT, OTHER, PROMPT]
    assert PROMPT not in Path("tuning/report.json").read_text()
    assert str(Path.cwd()) not in Path("tuning/report.json").read_text()


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 2, 2 * STEPS + 1])
def test_an_interrupted_tuning_goes_on_with_the_same_command(step, whole, capsys):
    with ctrl_c_in_step(step):
        assert tune() == 130
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "interrupted" in line]
    again = shlex.split(line.partition("continue with: ")[2])
    assert again[-len(SAMPLING) :] == SAMPLING and "tune" in " ".join(again[:3])
    assert not Path("tuning/report.json").exists()
    assert tune() == 0
    assert names() == MADE
    for name in ("exact", "balanced", "fast"):
        assert (frames(name) == frames(name, whole)).all()
    for one, other in zip(report()["runs"], report(whole)["runs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_an_interrupt_between_a_save_and_the_predictions_loses_none(whole, monkeypatch):
    write, calls = Predictions._write, []

    def stopping(self, step, arrays):
        calls.append(step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(self, step, arrays)

    monkeypatch.setattr(Predictions, "_write", stopping)
    assert tune("--quiet") == 130
    assert tune() == 0
    assert calls == [0, 1, 2, 3, 3, *range(4, STEPS)]
    errors = [
        [each["relative_error"] for each in found["lists"]] for found in (report(), report(whole))
    ]
    assert errors[0] == pytest.approx(errors[1])


@pytest.mark.parametrize("name", ["compare", "keep_tuned_lists", "make_report"])
def test_an_interrupt_after_the_runs_makes_none_again(name, in_call, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning_job, name, stop)
        assert tune() == 130
    with ctrl_c_in_step(1):  # it would stop at a step
        assert tune() == 0
    assert names() == MADE and presets_file().exists()


def test_a_killed_tuning_goes_on():
    words = ["--prompt", PROMPT, *SIZE, *SAMPLING]
    killed(
        Path.cwd(),
        "from mlx_cogvideo.runs import resumable",
        "from mlx_cogvideo.cli.main import run_command",
        "import os, signal",
        "def note(self, event):",
        "    before(self, event)",
        "    if event.stage == 'denoise' and event.done == 5: os.kill(os.getpid(), signal.SIGKILL)",
        "before, resumable._Keeper.observe = resumable._Keeper.observe, note",
        f"run_command('tune', {words!r})",
    )
    assert "exact.mp4.resume" in names()
    assert tune() == 0 and names() == MADE


def test_a_finished_tuning_and_other_folders_are_left_alone(whole, capsys):
    shutil.copytree(whole, "tuning")
    before = {file.name: file.stat().st_mtime_ns for file in Path("tuning").iterdir()}
    assert tune() == 1
    assert "holds a finished tuning" in errors(capsys.readouterr().err)[0]
    assert before == {file.name: file.stat().st_mtime_ns for file in Path("tuning").iterdir()}
    Path("mine").mkdir()
    Path("mine/exact.mp4").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert tune("-o", "mine", *more) == 1
        assert "is no tuning" in errors(capsys.readouterr().err)[0]
    assert Path("mine/exact.mp4").read_text() == "mine"
    Path("file").write_text("mine")
    assert tune("-o", "file", "--overwrite") == 1
    assert "is no tuning" in errors(capsys.readouterr().err)[0]


def test_a_tuning_is_made_again_where_that_is_wanted(whole):
    shutil.copytree(whole, "tuning")
    assert tune("--overwrite", "--seed", 7) == 0
    assert names() == MADE and (frames("exact") != frames("exact", whole)).any()


def test_other_settings_are_not_mixed_with_what_is_there(capsys):
    with ctrl_c_in_step(STEPS + 1):
        assert tune() == 130
    capsys.readouterr()
    for other, words in ((("--seed", 3), "seed was 0 and is now 3"), (("--steps", 9), "now 9")):
        assert tune(*other) == 2
        (line,) = errors(capsys.readouterr().err)
        assert "holds a tuning that isn't finished, with other settings (" in line
        assert words in line and "continue it with" in line and "--overwrite" in line
    assert tune() == 0


@pytest.mark.parametrize("name", ["exact/0003.npy", "exact.frames.npy"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "of another shape"])
def test_what_is_damaged_is_made_again(name, damage, capsys):
    with ctrl_c_in_step(STEPS + 1):
        assert tune() == 130
    file = Path("tuning/unfinished", name)
    contents = file.read_bytes()
    file.unlink()
    if damage == "of another shape":
        np.save(file, np.zeros((2, 3)))
    elif damage != "gone":
        file.write_bytes(contents[: len(contents) // 2] if damage == "cut" else b"")
    assert tune() == 0 and names() == MADE
    assert "tuning/exact.mp4 is made again" in capsys.readouterr().err


def test_predictions_that_are_no_numbers_end_in_one_line(capsys):
    with ctrl_c_in_step(STEPS + 1):
        assert tune() == 130
    file = Path("tuning/unfinished/exact/0003.npy")
    np.save(file, np.full_like(np.load(file), np.nan))
    capsys.readouterr()
    assert tune() == 1
    (line,) = errors(capsys.readouterr().err)
    assert "unfinished/exact lacks predictions, or they are damaged: remove it" in line


def test_files_that_a_tuning_has_not_made_stay(whole):
    own = [
        "exact copy.mp4",
        "exact.mp4.zip",
        "fast cut.mp4",
        "balanced/a.txt",
        "unfinished/novel.txt",
    ]
    shutil.copytree(whole, "tuning")
    for name in own:
        Path("tuning", name).parent.mkdir(exist_ok=True)
        Path("tuning", name).write_text("mine")
    assert tune("--overwrite") == 0
    assert all(Path("tuning", name).read_text() == "mine" for name in own)
    for name in ("unfinished/novel.txt", "report.json"):  # such names alone make no tuning
        other = Path("other", name)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("{}")
        for more in ([], ["--overwrite"]):
            assert tune("-o", "other", *more) == 1
            assert other.read_text() == "{}"


@pytest.mark.parametrize(
    "record", [None, [], {"model": None}, {"settings": None}, {"settings": {"tiling": {}}}]
)
def test_a_damaged_description_of_what_was_started_ends_in_one_line(record, capsys):
    with ctrl_c_in_step(2):
        assert tune() == 130
    capsys.readouterr()
    Path("tuning/unfinished/tuning.json").write_text(json.dumps({"tuning": 1, "record": record}))
    assert tune() == 2
    (line,) = errors(capsys.readouterr().err)
    assert "whose tuning.json is damaged: begin again with --overwrite" in line
    assert tune("--overwrite") == 0


def test_a_folder_stays_that_of_a_tuning_wherever_it_is_killed(whole):
    Path("tuning/unfinished").mkdir(parents=True)
    Path("tuning/unfinished/.tuning.json.0123abcd.part").write_text("{")
    assert tune() == 0  # killed before it has said what it is
    shutil.rmtree("tuning")
    shutil.copytree(whole, "tuning")
    Path("tuning/unfinished").mkdir()
    Path("tuning/unfinished/exact.frames.npy").write_text("left")
    assert tune() == 1 and names() == MADE  # after it had finished


def test_a_damaged_video_is_made_again():
    with ctrl_c_in_step(STEPS + 1):
        assert tune() == 130
    Path("tuning/exact.mp4").write_bytes(b"")
    assert tune() == 0 and names() == MADE


def test_lists_of_an_earlier_tuning_stay_where_a_new_one_is_not_usable(monkeypatch):
    retuned((0, 1, 4))
    monkeypatch.setattr(tuning_report, "LEAST_PSNR", 99.0)
    assert tune() == 0
    assert json.loads(presets_file().read_text())["models"].popitem()[1].popitem()[1] == {
        "fast": [0, 1, 4]
    }


def test_all_videos_are_decoded_alike_though_memory_has_become_short(capsys):
    words = [
        "--prompt",
        PROMPT,
        "--frames",
        "9",
        "--height",
        "96",
        "--width",
        "144",
        "--steps",
        "6",
    ]
    with ctrl_c_in_step(7):
        assert run_command("tune", words) == 130
    capsys.readouterr()
    assert run_command("tune", [*words, "--memory-limit", "0.15"]) == 2  # tiles would fit
    (line,) = errors(capsys.readouterr().err)
    assert "decode needs about" in line and "what is done is kept" in line
    assert run_command("tune", words) == 0
    tilings = {read_record(f"tuning/{n}.mp4")["settings"]["tiling"] for n in ("exact", "fast")}
    assert tilings == {"none"}


def test_a_list_that_spoils_a_video_is_not_kept(whole, monkeypatch, capsys):
    monkeypatch.setattr(tuning_report, "LEAST_PSNR", 99.0)
    assert tune() == 0
    assert "fast differs too much, and its steps aren't kept" in capsys.readouterr().err
    assert json.loads(presets_file().read_text())["models"].popitem()[1].popitem()[1] == {}


@pytest.mark.parametrize("output", [".", "./tuning/", "a folder"])
def test_folders_have_all_kinds_of_names(output):
    assert tune("-o", output) == 0
    assert names(output) == MADE


def test_previews_are_drawn_and_removed():
    assert tune("--preview-every", 4) == 0
    assert names() == MADE


def test_the_file_of_presets_is_checked_first(monkeypatch, folder, capsys):
    presets_file().parent.mkdir(parents=True)
    for contents, words in (
        ("", "can't be used"),
        ('{"format": 2, "models": {}}', "newer version"),
    ):
        presets_file().write_text(contents)
        for more in ([], ["--dry-run"]):
            assert tune(*more) == 1
            assert words in errors(capsys.readouterr().err)[0]
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null/data")
    assert tune("--dry-run") == 1
    assert "isn't a folder to write in" in errors(capsys.readouterr().err)[0]
    assert list(folder.iterdir()) == []


def test_a_command_goes_on_though_its_file_of_options_says_to_overwrite(capsys):
    Path("options.toml").write_text("overwrite = true")
    with ctrl_c_in_step(STEPS + 1):
        assert tune("--config", "options.toml") == 130
    assert "--no-overwrite" in capsys.readouterr().err
    before = Path("tuning/exact.mp4").stat().st_mtime_ns
    assert tune("--config", "options.toml", "--no-overwrite") == 0
    assert Path("tuning/exact.mp4").stat().st_mtime_ns == before


def test_a_dry_run_writes_nothing(folder, capsys):
    assert tune("--dry-run") == 0
    said = capsys.readouterr().err
    assert "3, with so many computed steps: exact 8, balanced 4, fast 3; 15 in all" in said
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "demo-i2v"], "give it an image"),
        (["--steps", 2], "3 to 100 steps"),
        (["--steps", 101], "3 to 100 steps"),
        (["--resume"], "the same command goes on"),
        (["--cache", "latents"], "isn't an option of tune"),
        (["--prompt", "a", "b", "c", "d"], "at most 3 prompts"),
        (["--output", "missing/tuning"], "missing"),
        (["--model", "nothing"], "no model 'nothing'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(arguments, message, folder, capsys):
    assert tune(*arguments) in (1, 2)
    (line,) = errors(capsys.readouterr().err)
    assert message in line
    assert list(folder.iterdir()) == []


def test_two_tunings_do_not_share_a_folder(capsys):
    Path("tuning/unfinished").mkdir(parents=True)
    with locked_elsewhere(Path("tuning")):
        assert tune() == 1
    assert "choose another --output" in errors(capsys.readouterr().err)[0]


def test_a_full_disk_is_found_before_the_first_step(monkeypatch, capsys):
    def full(needs):
        assert [need.what for need in needs] == ["the tuning"]
        raise OutputError("the disk is full")

    monkeypatch.setattr(tuning_job, "check_room", full)
    assert tune() == 1 and not Path("tuning").exists()


def test_a_picture_and_no_guidance_can_be_tuned_with(capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    image = Path("picture.png")
    write_picture(image, pixels)
    assert tune("--model", "demo-i2v", "--image", image, "--guidance", 1) == 0
    assert names() == MADE
    predicted = report()
    assert predicted["settings"]["guidance_scale"] == 1


def test_events_tell_what_happens(capsys):
    assert tune("--json-events") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [line["event"] for line in lines]
    assert kinds[:2] == ["start", "tuning"] and kinds[-2:] == ["record", "end"]
    assert kinds.count("output") == 3
    assert lines[1]["steps"] == 15 and lines[1]["prompts"] == [PROMPT]
    assert {"tuning": 1, **lines[-2]["record"]} == report()


def test_predictions_are_those_of_the_model():
    folder = TuningFolder(Path("tuning"))
    with ctrl_c_in_step(STEPS + 1):
        assert tune() == 130
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(
        PROMPT,
        seed=0,
        guidance_scale=3.0,
        scheduler="dpm",
        dynamic_cfg="wave",
        num_frames=9,
        height=32,
        width=48,
        num_inference_steps=STEPS,
    )
    (embeds,) = pipe.encode([request])
    rows = []
    with pipe.keeping("transformer"):
        states = [None, *pipe.denoise(request, embeds)]
        scheduler = run_scheduler(pipe, request)
        for i, t in enumerate(map(int, scheduler.timesteps)):
            x = initial_noise(request) if i == 0 else states[i].latents
            velocity = pipe.transformer(mx.repeat(x, 2, axis=0), embeds, mx.full(2, t))
            u, c = (np.array(scheduler.predict_x0(velocity[n : n + 1], t, x)) for n in (0, 1))
            rows.append((c, u - c))
    expected = [row[name].reshape(-1) for name in (0, 1) for row in rows]
    expected = np.array(expected, np.float64)
    predictions = folder.predictions("exact", request)
    assert relative_error(predictions.products(), expected @ expected.T) < 1e-4


def retuned(fast: tuple[int, ...]) -> None:
    """Another tuning of the demo, that has found these steps."""
    pipe = CogVideoXPipeline.from_pretrained("demo")
    request = pipe.request(PROMPT, num_inference_steps=STEPS, scheduler="dpm")
    keep_tuned_lists(pipe, run_scheduler(pipe, request), {"fast": fast})


def test_a_run_with_a_preset_goes_on_with_its_steps_after_another_tuning(capsys):
    make = [*SIZE, *SAMPLING, "--preset", "fast"]
    retuned((0, 1, 4))
    assert generate("whole.mp4", *make) == 0
    with ctrl_c_in_step(3):
        assert generate("video.mp4", *make) == 130
    retuned((0, 1, 6))
    capsys.readouterr()
    assert generate("video.mp4", *make, "--resume") == 0
    assert read_record("video.mp4")["settings"]["computed_steps"] == [0, 1, 4]
    assert (read_video("video.mp4")[0] == read_video("whole.mp4")[0]).all()
    assert generate("video.mp4", *make, "--resume") == 0  # it is finished
    assert generate("video.mp4", *make[:-1], "balanced", "--resume") == 1
    assert run("--replay", "whole.mp4", "--output", "again.mp4") == 0
    assert (read_video("again.mp4")[0] == read_video("whole.mp4")[0]).all()
    assert run("--replay", "whole.mp4", "--output", "other.mp4", "--preset", "fast") == 0
    assert read_record("other.mp4")["settings"]["computed_steps"] == [0, 1, 6]


def test_another_preset_does_not_continue_a_run(capsys):
    make = [*SIZE, *SAMPLING, "--preset"]
    with ctrl_c_in_step(3):
        assert generate("video.mp4", *make, "fast") == 130
    for preset in ("balanced", "exact"):
        assert generate("video.mp4", *make, preset, "--resume") == 2
        assert "was started with other settings" in errors(capsys.readouterr().err)[0]
    assert generate("video.mp4", *make, "fast", "--cache", "none", "--resume") == 2
    assert "preset and cache say" in errors(capsys.readouterr().err)[0]


def test_a_plan_says_where_the_steps_come_from(capsys):
    make = [*SIZE, *SAMPLING, "--preset", "fast", "--dry-run"]
    assert generate("video.mp4", *make) == 0
    assert "preset fast: 3 computed in full, 38% of the work; the usual ones" in said(capsys)
    retuned((0, 1, 4))
    assert generate("video.mp4", *make) == 0
    assert "the work; found by tune" in said(capsys)
    for cache in ("teacache", "first-block"):
        assert generate("video.mp4", *SIZE, "--cache", cache, "--dry-run") == 0
        assert f"({cache} skips blocks in some)" in said(capsys)
    assert generate("video.mp4", *SIZE, "--guidance-range", 1, 4, "--dry-run") == 0
    assert "guidance 2 in steps 1 to 3" in said(capsys)


def said(capsys) -> str:
    return capsys.readouterr().err
