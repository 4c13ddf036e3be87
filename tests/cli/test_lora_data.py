"""The data sets of ``lora.py``, as people and tools lay them out, listed by ``--dry-run``."""

import json
import logging
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from commands import errors, warnings

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.video import write_video

SMALL = ["--model", "demo", "--frames", "9", "--height", "32", "--width", "48"]
CLIP, PICTURE = object(), object()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict:
    """A clip of 9 frames and a picture."""
    folder = tmp_path_factory.mktemp("made")
    gray = np.full((9, 32, 48, 3), 90, np.uint8)
    write_video(folder / "clip.mp4", gray, 8)
    write_video(folder / "pictures", gray[:1], 8)
    (picture,) = (folder / "pictures").iterdir()
    return {CLIP: folder / "clip.mp4", PICTURE: picture}


@pytest.fixture
def lay_out(tmp_path, made):
    """Writes the files of a data set, which are texts, or `CLIP` or `PICTURE`."""

    def write(files) -> Path:
        data = tmp_path / "data"
        data.mkdir()
        for name, content in files.items():
            path = data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content in made:
                shutil.copy(made[content], path)
            else:
                path.write_text(content)
        return data

    return write


def lora(data, *arguments) -> int:
    logging.getLogger("mlx_cogvideo").handlers.clear()
    command = ["--data", data, "--adapter-path", "never/written", *SMALL, *arguments]
    try:
        return main([str(argument) for argument in command])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def listed(tmp_path, monkeypatch, capsys):
    """Lists the clips of a data set that are learned: captions by file, and the warnings."""
    monkeypatch.chdir(tmp_path)

    def dry_run(data, *arguments) -> tuple[dict[str, str], list[str]]:
        assert lora(data, *arguments, "--dry-run") == 0
        captured = capsys.readouterr()
        folder = data if data.is_dir() else data.parent
        found = {}
        for line in captured.out.splitlines():
            name, use, caption = line.removeprefix(f"{folder}/").split(": ", 2)
            assert use.startswith("9 frames") and name not in found, line
            found[name] = caption
        return found, warnings(captured.err)

    return dry_run


VIDEOS = {"videos/0.mp4": CLIP, "videos/1.mp4": CLIP}
PATHS = "videos/0.mp4\nvideos/1.mp4\n"
PAIR = {"videos/0.mp4": "a dog, running", "videos/1.mp4": "a cat"}
TEXTS = "a dog, running\na cat\n"
ROWS = [{"file_path": name, "text": text} for name, text in PAIR.items()]
LINES = "\n".join(
    json.dumps({"file_name": name[7:], "prompt": text}) for name, text in PAIR.items()
)


@pytest.mark.parametrize(
    ("files", "data", "expected"),
    [
        (VIDEOS | {"prompt.txt": TEXTS, "videos.txt": PATHS}, "", PAIR),
        (VIDEOS | {"prompts.txt": TEXTS, "videos.txt": PATHS}, "", PAIR),
        (VIDEOS | {"caption.txt": TEXTS, "video.txt": PATHS}, "", PAIR),
        (VIDEOS | {"captions.txt": TEXTS, "videos.txt": PATHS}, "", PAIR),
        (VIDEOS | {"metadata.json": json.dumps(ROWS)}, "", PAIR),
        (VIDEOS | {"dataset.json": json.dumps(ROWS)}, "", PAIR),
        (VIDEOS | {"internal.json": json.dumps(ROWS)}, "internal.json", PAIR),
        (VIDEOS | {"videos/metadata.jsonl": LINES}, "", PAIR),
        (VIDEOS | {"metadata.csv": "file_name;text\nvideos\\0.mp4;x\n./videos/1.mp4;y"}, "",
         {"videos/0.mp4": "x", "videos/1.mp4": "y"}),
        (VIDEOS | {"labels/0.txt": "a dog\nmore of it\n", "labels/1.txt": "a cat"}, "",
         {"videos/0.mp4": "a dog", "videos/1.mp4": "a cat"}),
        (VIDEOS | {"labels/0.txt": "a dog\nmore\n", "labels/1.txt": "a cat"}, "videos",
         {"0.mp4": "a dog", "1.mp4": "a cat"}),
        ({"videos/x/0.mp4": CLIP, "labels/x/0.txt": "a dog\nmore\n"}, "videos/x",
         {"0.mp4": "a dog"}),
        ({"A/videos/0.mp4": CLIP, "A/labels/0.txt": "a dog", "B/videos/0.mp4": CLIP,
          "B/labels/0.txt": "a cat", "c.mp4": CLIP, "c.txt": "a bird"}, "",
         {"A/videos/0.mp4": "a dog", "B/videos/0.mp4": "a cat", "c.mp4": "a bird"}),
        ({"walk/0.png": PICTURE, "walk.txt": "a walk", "a.png": PICTURE, "a.txt": "x"}, "",
         {"walk": "a walk", "a.png": "x"}),
    ],
    ids=[
        *("disney", "finetune", "factory", "captions", "videox-fun", "dataset", "named table"),
        *("table inside", "windows", "sat", "sat videos", "sat inside", "several", "pictures"),
    ],
)  # fmt: skip
def test_layouts_are_read_as_tools_write_them(lay_out, listed, files, data, expected):
    found, warned = listed(lay_out(files) / data, "--short", "repeat")
    assert (found, warned) == (expected, [])


def test_only_the_training_split_of_a_videofolder_is_learned(lay_out, listed):
    table = "file_name,text\n0.mp4,a dog\n"
    files = {f"{split}/{name}": content for split in ("train", "test")
             for name, content in (("0.mp4", CLIP), ("metadata.csv", table))}  # fmt: skip
    found, (warned,) = listed(lay_out(files))
    assert found == {"train/0.mp4": "a dog"}
    assert "beside train: test" in warned


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        ("Clip1.MP4", "clip1.txt"),
        ("clip.mp4", "clip.mp4.txt"),
        ("clip.mp4", "clip.caption"),
        ("clip.mp4", "clip.TXT"),
        (unicodedata.normalize("NFD", "café.mp4"), unicodedata.normalize("NFC", "café.txt")),
        ("clip.v2.mp4", "clip.v2.txt"),
        ("clip.unknown", "clip.txt"),
    ],
)
def test_captions_are_found_under_the_names_that_people_give_them(lay_out, listed, clip, text):
    assert listed(lay_out({clip: CLIP, text: "a\ndog"})) == ({clip: "a dog"}, [])


def test_a_caption_in_another_case_is_not_taken_from_its_own_clip(lay_out, listed):
    data = lay_out({"A.mp4": CLIP, "a.mp4": CLIP, "A.txt": "a dog"})
    if len(list(data.iterdir())) < 3:
        pytest.skip("the disk ignores case")
    found, (warned,) = listed(data)
    assert found == {"A.mp4": "a dog", "a.mp4": ""}
    assert warned == "warning: clips without a caption: a.mp4"


def test_a_table_finds_files_in_another_case_and_unicode_form(lay_out, listed):
    name = unicodedata.normalize("NFD", "café.mp4")
    table = f"file_name,text\n{unicodedata.normalize('NFC', name).upper()},a dog\n"
    assert list(listed(lay_out({name: CLIP, "metadata.csv": table}))[0].values()) == ["a dog"]


@pytest.mark.parametrize(
    ("files", "warning"),
    [
        ({f"{i}.mp4": CLIP for i in range(5)},
         "clips without a caption: 0.mp4, 1.mp4, 2.mp4 and 2 more"),
        ({"b.txt": "x", "d/c.caption": "x"}, "texts that belong to no clip: d/c.caption, b.txt"),
        ({"walk/b.mp4": CLIP, "walk/b.txt": "x", "walk.txt": "a note", "walk/b.jpg": PICTURE},
         "texts that belong to no clip: walk.txt"),
        ({"p/1.png": PICTURE, "p/1.txt": "x", "p.txt": "x", "b/c": "x", "b.txt": "x"},
         "texts that belong to no clip: b.txt, p.txt"),
        ({"a.jpg": PICTURE}, "files passed over, since another has their caption: a.jpg"),
        ({"b.xyz": CLIP, "c.parquet": "x"},
         "files passed over, of no known kind and without a caption: b.xyz, c.parquet"),
        ({"a.json": "{}"}, "files passed over, since another has their caption: a.json"),
        ({"list.csv": "x"}, r"tables that aren't read \(--data TABLE reads one\): list.csv"),
        ({"videos.txt": "a.mp4"}, "lists without prompts.txt beside them: videos.txt"),
        ({"old/log.jsonl": "", "old/samples/1.mp4": CLIP}, "folders of trainings passed over: old"),
    ],
    ids=[
        *("no caption", "no clip", "not frames", "nor these", "poster", "unknown"),
        *("sidecar", "table", "list", "training"),
    ],
)  # fmt: skip
def test_what_is_not_learned_is_named(lay_out, listed, files, warning):
    data = lay_out({"a.mp4": CLIP, "a.txt": "a dog"} | files)
    found, warned = listed(data, "--short", "repeat")
    assert found["a.mp4"] == "a dog"
    assert any(re.fullmatch(f"warning: {warning}", line) for line in warned), warned
    assert not any("jpg" in name or "samples" in name for name in found)


def test_what_a_table_leaves_out_is_named(lay_out, listed):
    table = "file_name,text,fps\na.mp4,a dog,8\na.mp4,a dog,8\n../data/a.mp4,a cat,8\n"
    files = {"a.mp4": CLIP, "x/b.mp4": CLIP, ".cache/c.mp4": CLIP, "metadata.csv": table}
    found, warned = listed(lay_out(files))
    assert found == {"a.mp4": "a dog", "../data/a.mp4": "a cat"}
    assert [line.removeprefix("warning: ") for line in warned] == [
        "columns of metadata.csv without a meaning here: fps",
        "clips that metadata.csv doesn't list: x/b.mp4",
        "clips listed twice, and learned once: a.mp4",
    ]


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"metadata.csv": "file_name,text\nb.mp4,x\nhttps://a.b/c.mp4,y\n"},
         r"metadata.csv lists files .* there: b.mp4 \(line 2\), https://a.b/c.mp4 \(line 3\)"),
        ({"metadata.csv": "file_name,text\na.mp4,x\n", "metadata.jsonl": ""},
         "metadata.jsonl and metadata.csv: move one of them away"),
        ({"prompts.txt": "x", "prompt.txt": "x", "videos.txt": "a.mp4"},
         "prompts.txt and prompt.txt: move one of them away"),
        ({"prompts.txt": "x\ny", "videos.txt": "\na.mp4"}, "line 1 of .*videos.txt is empty"),
    ],
)  # fmt: skip
def test_what_can_mean_two_things_is_refused(lay_out, capsys, files, error):
    assert lora(lay_out({"a.mp4": CLIP} | files), "--dry-run") == 2
    (line,) = errors(capsys.readouterr().err)
    assert re.search(error, line), line


def test_parts_of_a_clip_are_learned_each(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.full((40, 32, 48, 3), 90, np.uint8)
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data/a.mp4", frames, 8)
    table = "file_name,text,start,end\na.mp4,x,,\na.mp4,x,1,3.5\na.mp4,x,0:04,\na.mp4,x,9,10\n"
    (tmp_path / "data/metadata.csv").write_text(table)
    assert lora("data", "--dry-run") == 0
    whole, part, rest, beyond = capsys.readouterr().out.splitlines()
    assert whole == "data/a.mp4: 9 frames of 48x32 of its 40 of 48x32: x"
    assert part == "data/a.mp4 from 1 to 3.5 s: 9 frames of 48x32 of its 20 of 48x32: x"
    assert rest == "data/a.mp4 from 4 s: left out, 8 frames at 8 a second: x"
    assert beyond == "data/a.mp4 from 9 to 10 s: left out, 0 frames at 8 a second: x"


LONG = "a red circle moves right " * 8
LOST = [
    r"warning: the caption of .*a\.mp4 is cut at 32 tokens; this is lost: .*moves right",
    r"warning: the caption of .*b\.mp4 has characters that the model doesn't know: 🎈",
    r"warning: the prompt '🎈 flies' has characters that the model doesn't know: 🎈",
]


def test_what_the_model_does_not_get_of_a_caption_is_named_by_clip(
    lay_out, tmp_path, capsys, monkeypatch
):
    files = {"a.txt": LONG, "b.txt": "a 🎈 flies", "c.txt": "a dog"}
    data = lay_out({f"{name[0]}.mp4": CLIP for name in files} | files)
    (tmp_path / "prior.txt").write_text("🎈 flies")
    options = ["--rank", 4, "--iters", 1, "--warmup", 0, "--prior-prompts", tmp_path / "prior.txt"]

    def lost(*arguments) -> list[str]:
        assert lora(data, *options, *arguments) == 0
        return warnings(capsys.readouterr().err)

    def is_told(warned: list[str]) -> bool:
        pairs = zip(LOST, warned, strict=True)
        return all(re.fullmatch(expected, line) for expected, line in pairs)

    assert is_told(lost("--dry-run"))
    assert is_told(lost("--adapter-path", tmp_path / "first"))
    monkeypatch.setattr(CogVideoXPipeline, "encode_prompt", None)  # all are in the cache
    assert is_told(lost("--adapter-path", tmp_path / "second"))
