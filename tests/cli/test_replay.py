"""The record inside a video, ``--show``, which prints it, and ``--replay``, which repeats it."""

import json
import shutil

import numpy as np
import pytest
from commands import PROMPT, errors, generate, run, warnings

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.video import read_record, read_video, write_latents, write_video

DRY = ["--frames", "9", "--dry-run"]
OF_OTHERS = (
    "image_latent_scale",
    "source_tiling",
    "cache",
    "preset",
    "cache_threshold",
    "computed_steps",
    "quantize",
)
OF_FILES = ("interpolate", "tiny_vae")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SETTINGS = ["--scheduler", "dpm", "--guidance-schedule", "wave", "--negative-prompt", "blue"]


def test_show_prints_the_record_of_a_video(folder, capsys):
    assert generate("video.mp4", *SETTINGS) == 0
    capsys.readouterr()
    assert run("--show", "video.mp4") == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert shown == read_record("video.mp4")
    assert captured.err == ""
    given = {"prompt": PROMPT, "negative_prompt": "blue", "num_frames": 9, "scheduler": "dpm"}
    assert shown["settings"].items() >= (given | {"dynamic_cfg": "wave", "seed": 1}).items()
    off = {n for n in RunSettings.__dataclass_fields__ if n not in shown["settings"]}
    of_sources = {"image", "video", "video_start", "video_end", "strength", "image_fit"}
    assert off == {"extend", "overlap", *of_sources, *OF_OTHERS, *OF_FILES}
    assert set(shown["timings"]) == set(shown["peak_memory"]) == {"encode", "denoise", "decode"}
    assert shown["model"]["name"] == "demo"
    assert {"mlx", "python", "system", "device"} == set(shown["versions"])


@pytest.mark.parametrize("name", ["video.mp4", "video.gif", "frames", "latents.safetensors"])
def test_a_replay_makes_identical_frames(folder, capsys, name):
    assert generate("original", *SETTINGS) == 0
    assert generate(name, *SETTINGS) == 0
    assert run("--replay", name, "--output", "again") == 0
    for i in range(1, 10):
        frame = f"000{i}.png"
        assert np.array_equal(
            read_video(folder / "again" / frame)[0], read_video(folder / "original" / frame)[0]
        )
    assert warnings(capsys.readouterr().err) == []


def test_a_replayed_mp4_has_the_frames_of_the_first(folder):
    assert generate("video.mp4") == 0
    assert run("--replay", "video.mp4", "--output", "again.mp4") == 0
    assert (read_video("video.mp4")[0] == read_video("again.mp4")[0]).all()
    first, again = read_record("video.mp4"), read_record("again.mp4")
    for part in ("mlx_cogvideo", "model", "settings", "versions"):
        assert first[part] == again[part]


def test_a_resumed_replay_does_not_accept_a_video_of_another_seed(folder):
    assert generate("a.mp4") == 0
    assert generate("b.mp4", "--seed", 7) == 0
    assert run("--replay", "a.mp4", "--output", "b.mp4", "--resume") == 1
    assert read_record("b.mp4")["settings"]["seed"] == 7


def test_options_of_a_replay_override_the_record(folder):
    assert generate("video.mp4", *SETTINGS) == 0
    assert run("--replay", "video.mp4", "--seed", 5, "--steps", 1, "--output", "b.mp4") == 0
    first, other = (read_record(name)["settings"] for name in ("video.mp4", "b.mp4"))
    assert other == {**first, "seed": 5, "num_inference_steps": 1}


def test_a_replay_with_a_changed_model_warns_of_what_differs(folder, capsys):
    shutil.copytree(DEMO_PATH, folder / "model")
    assert generate("video.mp4", "--model", "model") == 0
    assert run("--replay", "video.mp4", "--output", "same.mp4") == 0
    assert warnings(capsys.readouterr().err) == []
    with (folder / "model/vae/config.json").open("a") as config:
        config.write("\n")
    assert run("--replay", "video.mp4", "--output", "other.mp4") == 0
    (warning,) = warnings(capsys.readouterr().err)
    assert "the model's vae was " in warning


def test_a_replay_without_its_model_is_one_line(folder, capsys):
    shutil.copytree(DEMO_PATH, folder / "model")
    assert generate("video.mp4", "--model", "model") == 0
    shutil.move("model", "elsewhere")
    assert run("--replay", "video.mp4", "--output", "b.mp4") == 1
    assert "no model 'model'" in errors(capsys.readouterr().err)[0]
    assert run("--replay", "video.mp4", "--output", "b.mp4", "--model", "elsewhere") == 0
    assert warnings(capsys.readouterr().err) == []


def test_a_replay_downloads_the_recorded_revision(folder, monkeypatch):
    model = {"name": "THUDM/CogVideoX-2b", "revision": "a1" * 20}
    settings = {"prompt": "a cat", "seed": 1, "num_frames": 9}
    write_video(
        "video.mp4",
        np.zeros((1, 16, 16, 3), np.uint8),
        8,
        record={"mlx_cogvideo": "0.1.0", "model": model, "settings": settings},
    )
    downloads = []

    def fetch(repo, *, revision, **_):
        downloads.append((repo, revision))
        return DEMO_PATH

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert run("--replay", "video.mp4", "--output", "b.mp4", "--dry-run") == 0
    assert set(downloads) == {("THUDM/CogVideoX-2b", "a1" * 20)}


@pytest.mark.parametrize("option", ["--replay", "--show"])
def test_a_video_without_a_record_is_one_clear_line(folder, capsys, option):
    write_video("mine.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    for name, message in (
        ("mine.mp4", "mine.mp4 holds no record"),
        ("nowhere.mp4", "nowhere.mp4 doesn't exist"),
        ("text.mp4", "text.mp4 can't be read"),
    ):
        (folder / "text.mp4").write_text("no video")
        assert run(option, name, *([] if option == "--show" else ["--output", "b.mp4"])) == 2
        (line,) = errors(capsys.readouterr().err)
        assert message in line


def test_an_incomplete_record_cannot_be_replayed(folder, capsys):
    clip = np.zeros((1, 16, 16, 3), np.uint8)
    write_video("half.mp4", clip, 8, record={"mlx_cogvideo": "0.1.0", "settings": {}})
    assert run("--replay", "half.mp4", "--output", "b.mp4") == 2
    assert "holds no record" in errors(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"sha256": 7}},
        {"model": {"sha256": {"vae": 7}}},
        {"model": {"base": "demo"}},
        {"versions": "1.0"},
        {"timings": {"denoise": "long"}},
        {"settings": {"lora": 1.5}},
        {"settings": {"lora": [{"source": "a"}]}},
        {"settings": {"dtype": ["float32"]}},
        {"settings": {"fps": "fast"}},
        {"settings": {"fps": 10**400}},
        {"settings": {"image": 3}},
        {"settings": {"tiling": ["none"]}},
        {"settings": {"steps_of_tomorrow": 3}},
    ],
)
def test_a_record_with_values_of_other_types_is_one_clear_line(folder, capsys, changes):
    write_record("changed.safetensors", changes)
    assert run("--replay", "changed.safetensors", "--output", "b.mp4") == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: changed.safetensors can't be replayed: ")


def write_record(file, changes) -> None:
    """Writes an output with the record of a run of the demo, and changes in it."""
    settings = {"prompt": PROMPT, "seed": 1, "num_frames": 9}
    record = {"mlx_cogvideo": "0.1.0", "model": {"name": "demo"}, "settings": settings}
    for name, values in changes.items():
        is_part = isinstance(values, dict)
        record[name] = {**record.get(name, {}), **values} if is_part else values
    write_latents(file, np.zeros((1, 3, 4, 6, 16), np.float32), record=record)


def test_a_damaged_record_is_not_that_of_a_finished_video(folder, capsys):
    write_record("1.safetensors", {"model": {"sha256": 7}})
    assert run("--prompt", PROMPT, "--seed", 1, 2, "--output", "{seed}.safetensors", *DRY) == 1
    (line,) = errors(capsys.readouterr().err)
    assert "1.safetensors exists and isn't the result of such a run" in line


def test_control_characters_of_a_file_are_spelled(folder, capsys):
    versions = {"mlx": "\x1b[2J\x07\x9b\n1", "device": "gpu \u9a6c \U0001f408"}
    write_record("changed.safetensors", {"versions": versions})
    assert run("--replay", "changed.safetensors", "--output", "b.mp4", "--dry-run") == 0
    said = "\n".join(warnings(capsys.readouterr().err))
    assert r"mlx was \x1b[2J\x07\x9b\n1 and is now" in said
    assert "gpu \u9a6c \U0001f408 and is now" in said
    assert run("--replay", "changed.safetensors", "--steps", "\x1b[2J") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_replay_says_first_what_it_opens_and_a_dry_run_downloads_nothing(
    tmp_path, monkeypatch, capsys
):
    """The record may be a stranger's."""
    video, asked = tmp_path / "a.safetensors", []
    assert generate(video) == 0
    record = read_record(video)
    record["settings"]["lora"] = [{"source": "some/adapter", "scale": 1.0, "sha256": "0"}]
    record["settings"]["image"] = "/somewhere/cat.png"
    write_latents(video, np.zeros((1, 3, 4, 6, 16), np.float32), overwrite=True, record=record)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **o: asked.append(o) or "")
    capsys.readouterr()
    assert run("--replay", video, "--output", tmp_path / "b.mp4", "--dry-run") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{video} opens demo, some/adapter, /somewhere/cat.png"
    assert [options["local_files_only"] for options in asked] == [True]
