"""All forms of output: their paths, how they appear, and the record inside."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from clips import RECORD, make_clip
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import killed

from mlx_cogvideo.errors import InvalidInputError, OutputError
from mlx_cogvideo.video import (
    GifWriter,
    PngWriter,
    VideoWriter,
    check_output_path,
    open_writer,
    read_record,
    read_video,
    write_latents,
    write_video,
)

FORMS = ["clip.mp4", "clip.gif", "clip"]


def make_latents():
    return np.random.default_rng(0).normal(size=(1, 3, 6, 8, 16)).astype(np.float32)


# All forms.


@pytest.mark.parametrize(
    "name, kind", [("a.mp4", VideoWriter), ("A.GIF", GifWriter), ("a", PngWriter)]
)
def test_the_ending_chooses_the_writer(tmp_path, name, kind):
    assert type(open_writer(tmp_path / name, 8)) is kind


def test_a_slash_at_the_end_makes_a_folder_of_a_name_with_dots(tmp_path):
    write_video(f"{tmp_path}/take.2/", make_clip(2), 8)
    assert {p.name for p in (tmp_path / "take.2").iterdir()} == {"0001.png", "0002.png"}


def test_a_writer_refuses_the_ending_of_another(tmp_path):
    with pytest.raises(OutputError, match="open_writer"):
        VideoWriter(tmp_path / "clip.gif", 8)


@pytest.mark.parametrize("name", FORMS)
def test_the_record_comes_back_from_every_form(tmp_path, name):
    write_video(tmp_path / name, make_clip(3), 8, record=RECORD)
    assert read_record(tmp_path / name) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMS)
def test_a_record_with_paths_and_broken_text_does_not_cost_the_video(tmp_path, name):
    record = {"mlx_cogvideo": "0.1.0", "folder": tmp_path, "prompt": "\udc80 a\0b"}
    write_video(tmp_path / name, make_clip(1), 8, record=record)
    assert read_record(tmp_path / name) == {**record, "folder": str(tmp_path)}


@pytest.mark.parametrize("name", FORMS)
def test_a_clip_without_a_record_has_none(tmp_path, name):
    write_video(tmp_path / name, make_clip(1), 8)
    assert read_record(tmp_path / name) is None


@pytest.mark.parametrize("name", FORMS)
def test_the_output_appears_with_the_end_of_the_block(tmp_path, name):
    with open_writer(tmp_path / name, 8) as writer:
        writer.write(make_clip(3))
        writer.record = RECORD
        hidden = [file.name for file in tmp_path.iterdir()]
        assert len(hidden) == 2 and all(n.startswith(f".{name}.") for n in hidden)
    assert list(tmp_path.iterdir()) == [tmp_path / name]


@pytest.mark.parametrize("name", FORMS)
def test_an_exception_leaves_nothing_of_any_form(tmp_path, name):
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / name, 8) as writer:
        writer.write(make_clip(3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMS)
def test_the_temporary_of_a_killed_run_is_removed_and_nothing_else(tmp_path, name):
    own = tmp_path / f".{name}.part"
    own.mkdir()
    (own / "0003.png").write_bytes(b"somebody's own")
    killed(
        tmp_path,
        "from clips import make_clip; from mlx_cogvideo.video import open_writer",
        f"writer = open_writer({str(tmp_path / name)!r}, 8).__enter__()",
        "writer.write(make_clip(2))",
    )
    assert len(list(tmp_path.iterdir())) == 3
    write_video(tmp_path / name, make_clip(2), 8, record=RECORD)
    assert {p.name for p in tmp_path.iterdir()} == {name, own.name}
    assert read_record(tmp_path / name) == RECORD
    assert (own / "0003.png").exists()


@pytest.mark.parametrize("name", FORMS)
def test_an_output_that_appears_meanwhile_is_kept_and_so_is_the_clip(tmp_path, name):
    message = rf"appeared meanwhile.*\.{name}\..*\.part"
    with pytest.raises(OutputError, match=message), open_writer(tmp_path / name, 8) as writer:
        writer.write(make_clip(2))
        writer.record = RECORD
        (tmp_path / name).write_bytes(b"newer")
    assert (tmp_path / name).read_bytes() == b"newer"
    (part,) = tmp_path.glob(".*")
    assert read_record(part) == RECORD


@pytest.mark.parametrize("name", FORMS)
def test_a_folder_that_disappears_is_one_clear_error(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        pytest.raises(OutputError, match=rf"folder/{name} can't be written: No such file"),
        open_writer(folder / name, 8) as writer,
    ):
        writer.write(make_clip(2))
        shutil.rmtree(folder)
        writer.write(make_clip(2))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", [*FORMS, "clip.safetensors"])
def test_a_full_disk_is_one_clear_error_and_nothing_stays(small_disk, name):
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    with pytest.raises(OutputError, match=rf"{name} can't be written: No space left on device"):
        if name == "clip.safetensors":
            write_latents(small_disk / name, np.zeros((1, 4, 64, 64, 16), np.float32))
        else:
            write_video(small_disk / name, noise, 8, record=RECORD)
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("name", FORMS)
def test_a_disk_without_room_for_the_record_keeps_the_video(small_disk, name):
    with (
        pytest.raises(OutputError, match=r"No space left on device: the .* is ") as caught,
        open_writer(small_disk / name, 8) as writer,
    ):
        writer.write(make_clip(3))
        writer.record = {"mlx_cogvideo": "0.1.0", "prompt": "x" * 60_000}
    (finished,) = small_disk.iterdir()
    assert str(caught.value).endswith(str(finished))
    for file in [finished] if finished.is_file() else finished.iterdir():
        assert len(read_video(file)[0]) == (3 if finished.is_file() else 1)
        read_record(file)


# Latents.


def test_latents_come_back_bit_for_bit_with_their_record(tmp_path):
    path, latents = tmp_path / "clip.safetensors", make_latents()
    write_latents(path, latents, record=RECORD)
    (read,) = load_file(path).values()
    assert (read == latents).all()
    assert read_record(path) == RECORD
    with safe_open(path, framework="numpy") as stored:
        assert json.loads(stored.metadata()["mlx_cogvideo"]) == RECORD
        assert list(stored.keys()) == ["latents"]
    assert list(tmp_path.iterdir()) == [path]


def test_latents_without_a_record_have_none(tmp_path):
    write_latents(tmp_path / "a.safetensors", make_latents())
    assert read_record(tmp_path / "a.safetensors") is None
    save_file({"x": make_latents()}, tmp_path / "b.safetensors", {"format": "pt"})
    assert read_record(tmp_path / "b.safetensors") is None


def test_latents_in_another_memory_order_are_stored_in_order(tmp_path):
    latents = make_latents().transpose(0, 1, 3, 2, 4)
    write_latents(tmp_path / "a.safetensors", latents)
    assert (load_file(tmp_path / "a.safetensors")["latents"] == latents).all()


def test_older_latents_are_kept_without_overwrite(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"older")
    with pytest.raises(OutputError, match="exists"):
        write_latents(path, make_latents())
    assert path.read_bytes() == b"older"
    write_latents(path, make_latents(), overwrite=True)
    assert load_file(path)


@pytest.mark.parametrize("latents", [np.zeros((1, 3, 6, 8, 16)), np.zeros((3, 6, 8, 16), "f4")])
def test_arrays_that_are_no_latents_are_refused(tmp_path, latents):
    with pytest.raises(InvalidInputError, match=r"float32 \[1, f, h, w, c\]"):
        write_latents(tmp_path / "a.safetensors", latents)


def test_latents_and_frames_keep_to_their_endings(tmp_path):
    with pytest.raises(InvalidInputError, match="is for latents"):
        open_writer(tmp_path / "a.safetensors", 8)
    with pytest.raises(InvalidInputError, match="is for frames"):
        write_latents(tmp_path / "a.mp4", make_latents())


# Paths of outputs.


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4.txt", "take.2", "clip.webm"])
def test_another_ending_is_refused_with_what_can_be_written(tmp_path, name):
    with pytest.raises(OutputError, match=r"only \.mp4, \.gif, \.safetensors .* and folders of"):
        check_output_path(tmp_path / name)


@pytest.mark.parametrize("name", ["", ".", "..", "./", "/", ".mp4", ".GIF"])
def test_a_path_without_a_name_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="is no name for an output"):
            check_output_path(name, overwrite)


def test_a_name_too_long_for_the_disk_is_refused_before_any_frame(tmp_path):
    check_output_path(tmp_path / f"{'x' * 236}.mp4")
    with pytest.raises(OutputError, match="too long"):
        check_output_path(tmp_path / f"{'x' * 237}.mp4")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.safetensors"])
def test_a_folder_in_place_of_the_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output_path(tmp_path / name, overwrite=True)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "README").touch()
    with pytest.raises(OutputError, match="is a file"):
        check_output_path(tmp_path / "README", overwrite=True)


# Reading records.


@pytest.mark.parametrize("comment", ["hello", "{", "[1]", '{"other": 1}', "[" * 100_000])
def test_a_comment_of_another_program_is_no_record(tmp_path, monkeypatch, comment):
    monkeypatch.setattr("mlx_cogvideo.video.writer.record_text", lambda _: comment)
    for name in FORMS:
        write_video(tmp_path / name, make_clip(1), 8, record={})
        assert read_record(tmp_path / name) is None


def test_a_record_is_found_whatever_the_file_is_called(tmp_path):
    for name in ("clip.mp4", "clip.gif"):
        write_video(tmp_path / name, make_clip(2), 8, record=RECORD)
        os.rename(tmp_path / name, tmp_path / "renamed")
        assert read_record(tmp_path / "renamed") == RECORD


def test_a_missing_file_has_no_record_to_read(tmp_path):
    with pytest.raises(InvalidInputError, match=r"nothing\.mp4 doesn't exist"):
        read_record(tmp_path / "nothing.mp4")


def test_a_folder_without_frames_has_no_record_to_read(tmp_path):
    with pytest.raises(InvalidInputError, match="without numbered PNG frames"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip/0001.png", "a.safetensors"])
def test_a_file_that_is_cut_off_is_an_error_of_one_line(tmp_path, name):
    write_video(tmp_path / "clip.mp4", make_clip(2), 8)
    write_video(tmp_path / "clip.gif", make_clip(2), 8)
    write_video(tmp_path / "clip", make_clip(2), 8)
    write_latents(tmp_path / "a.safetensors", make_latents())
    data = (tmp_path / name).read_bytes()
    # The rest of an mp4 is pictures, which aren't read here.
    for size in (0, 20) if name == "clip.mp4" else (0, 20, len(data) // 2, len(data) - 1):
        (tmp_path / name).write_bytes(data[:size])
        with pytest.raises(InvalidInputError, match="can't be read: ") as caught:
            read_record(tmp_path / name)
        assert "\n" not in str(caught.value)
