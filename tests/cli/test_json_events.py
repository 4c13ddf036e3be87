"""``--json-events``: what the commands report is what docs/events.md describes, field by field."""

import json
import math
import os
import re
import shlex
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import PROMPT, SMALL, ctrl_c_in_step, during_steps, generate, run
from huggingface_hub.errors import LocalEntryNotFoundError
from trainings import lora

from mlx_cogvideo.cli import check, convert, json_events, time_left
from mlx_cogvideo.cli.json_events import JsonEvents
from mlx_cogvideo.cli.time_left import TimeLeft
from mlx_cogvideo.machine.stages import Result
from mlx_cogvideo.pipeline.pipeline import CogVideoXPipeline
from mlx_cogvideo.training.loss import TransformerLoss
from mlx_cogvideo.version import __version__
from mlx_cogvideo.video import read_record, write_video

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
TYPES = {
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": None,
}
BATCH = f"{PROMPT}\na red circle@@start.png\na blue square grows\n"


def documented() -> dict[str, dict[str, dict[str, str]]]:
    """The types of the page: by event and command, each field's."""
    events = defaultdict(lambda: defaultdict(dict))
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title = re.match(r"`(\w+)`", section)
        for name, kind, where in re.findall(
            r"^\| `([\w.\[\]]+)` \| ([\w ]+) \| ([\w, ]+) \|", section, re.MULTILINE
        ):
            everywhere = ["generate", "lora", "convert", "check", None]
            for command in everywhere if where == "all" else where.split(", "):
                events[title[1]][command][name] = kind
    return events


DOCUMENTED = documented()


def fields(value: dict, prefix: str = "") -> list[tuple[str, object]]:
    """The fields of an event and of the objects in its arrays, as the page names them."""
    found = []
    for name, each in value.items():
        found.append((prefix + name, each))
        for item in each if isinstance(each, list) else ():
            found += fields(item, f"{prefix}{name}[].") if isinstance(item, dict) else []
    return found


def is_of(value: object, kinds: str) -> bool:
    is_bool = isinstance(value, bool)
    allowed = [TYPES[kind] for kind in kinds.split(" or ")]
    return (value is None and None in allowed) or any(
        kind is not None and isinstance(value, kind) and is_bool == (kind is bool)
        for kind in allowed
    )


def read(text: str) -> list[dict]:
    """The events in what a command printed; every one is as it is documented."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert text.isascii() and text.endswith("\n")
    events = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    command = events[0]["command"]
    for event in events:
        types = DOCUMENTED[event["event"]][command]
        given = fields({name: each for name, each in event.items() if name != "event"})
        expected = {name for name in types if "[]" not in name}
        assert {name for name, _ in given if "[]" not in name} == expected, event
        for name, value in given:
            assert is_of(value, types[name]), (event["event"], name, value)
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds.count("start") == 1
    assert kinds[-1] == "end" and kinds.count("end") == 1
    return events


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of the reports, which goes on when a test moves its ``now``."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    for module in (time_left, json_events):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_batch_is_reported_with_its_previews_outputs_and_failure(folder, capsys):
    (folder / "prompts.txt").write_text(BATCH)
    arguments = ["--prompt-file", "prompts.txt", *SMALL, "--seed", 7, "--preview-every", 2]
    assert run(*arguments, "--output", "{index}.mp4", "--json-events", "--quiet") == 1
    captured = capsys.readouterr()
    events = read(captured.out)
    start = {"version": 1, "command": "generate", "mlx_cogvideo": __version__, "pid": os.getpid()}
    assert events[0] == {"event": "start", **start}
    (plan,) = of(events, "plan")
    about = [(video["video"], video["label"], video["output"]) for video in plan["videos"]]
    assert about == [(1, "line 1", "1.mp4"), (2, "line 3", "3.mp4")]
    first = plan["videos"][0]
    assert (first["prompt"], first["seed"], first["frames"]) == (PROMPT, 7, 9)
    assert (first["width"], first["height"], first["steps"]) == (48, 32, 2)
    assert list(plan["memory"]) == ["encode", "denoise", "decode"]
    (failed,) = of(events, "failed")
    assert (failed["video"], failed["label"], failed["output"]) == (None, "line 2", None)
    assert captured.err == f"error: line 2: {failed['error']}\n"
    assert failed["kind"] == "InvalidInputError" and "image" in failed["error"]
    for kind in ("preview", "output"):
        found = [(each["video"], each["label"], each["output"]) for each in of(events, kind)]
        assert found == about
    assert [each["path"] for each in of(events, "preview")] == [
        "1.mp4.preview.gif",
        "3.mp4.preview.gif",
    ]
    for made in of(events, "output"):
        assert made["record"] == read_record(made["output"])
    ends = [
        (each["video"], each["stage"], each["step"], each["unit"])
        for each in of(events, "progress")
        if each["step"] == each["total"]
    ]
    assert ends == [
        (None, "encode", 2, "texts"),
        *((1, "denoise", 2, "steps"), (1, "decode", 9, "frames")),
        *((2, "denoise", 2, "steps"), (2, "decode", 9, "frames")),
    ]
    end = events[-1]
    assert (end["status"], end["exit_code"], end["error"]) == ("failed", 1, None)


def test_what_fails_in_a_batch_while_it_is_made_is_reported(folder, capsys, monkeypatch):
    denoise = CogVideoXPipeline.denoise

    def fail_once(self, settings, *arguments, **options):
        if settings.seed == 1:
            raise RuntimeError("[metal::malloc] Attempting to allocate 9 bytes")
        yield from denoise(self, settings, *arguments, **options)

    monkeypatch.setattr(CogVideoXPipeline, "denoise", fail_once)
    assert generate("{seed}.mp4", "--seed", 1, 2, "--json-events") == 1
    events = read(capsys.readouterr().out)
    (failed,) = of(events, "failed")
    assert (failed["video"], failed["output"], failed["kind"]) == (1, "1.mp4", "DeviceError")
    assert failed["error"].startswith("memory ran out")
    assert [made["output"] for made in of(events, "output")] == ["2.mp4"]


def test_an_interrupted_run_ends_with_the_command_that_continues(folder, capsys):
    with ctrl_c_in_step(2):
        assert generate("video.mp4", "--steps", 4, "--json-events") == 130
    captured = capsys.readouterr()
    events = read(captured.out)
    end = events[-1]
    assert (end["status"], end["exit_code"]) == ("interrupted", 130)
    assert end["error"].startswith("2 of 4 steps are kept")
    assert captured.err.splitlines()[-1] == f"interrupted: {end['error']}"
    words = shlex.split(end["resume"])
    assert words[-2:] == ["--resume", of(events, "plan")[0]["videos"][0]["resume_file"]]
    assert run(*words[-2:], "--json-events") == 0
    events = read(capsys.readouterr().out)
    assert of(events, "plan")[0]["videos"][0]["resumed"] == "2 of 4 steps"
    assert of(events, "progress")[0]["step"] == 2
    assert (events[-1]["status"], events[-1]["resume"]) == ("done", None)


def test_the_last_event_is_written_where_stderr_has_no_reader(folder, capfd, monkeypatch):
    write = os.write

    def without_reader(stream: int, text: bytes) -> int:
        if stream == 2:
            raise BrokenPipeError
        return write(stream, text)

    monkeypatch.setattr(os, "write", without_reader)
    with ctrl_c_in_step(1):
        assert generate("video.mp4", "--json-events") == 130
    nowhere = os.stat(os.devnull)
    muted = [stream for stream in (1, 2) if os.path.samestat(os.fstat(stream), nowhere)]
    assert muted == [2]
    assert read(capfd.readouterr().out)[-1]["status"] == "interrupted"


@pytest.mark.parametrize(
    ("output", "arguments", "videos", "windows"),
    [
        ("{seed}.safetensors", ["--seed", 1, 2], [1, 1, 2, 2], [1, 1, 1, 1]),
        ("a.mp4", ["--extend", 1, "--overlap", 1], [1, 1, 1, 1], [1, 1, 2, 2]),
    ],
)
def test_the_time_left_is_that_of_all_videos_and_windows(
    folder, capsys, clock, output, arguments, videos, windows
):
    def take_two_seconds(step: int) -> None:
        clock.now += 2

    with during_steps(take_two_seconds):
        assert generate(output, *arguments, "--json-events") == 0
    steps = [
        each
        for each in of(read(capsys.readouterr().out), "progress")
        if each["stage"] == "denoise" and each["step"]
    ]
    assert [each["video"] for each in steps] == videos
    assert [each["window"] for each in steps] == windows
    assert [each["step"] for each in steps] == [1, 2, 1, 2]
    # Four steps; the pace is known after the second. Decoding takes no time here.
    assert [each["seconds_left"] for each in steps] == [None, 4, 2, 0]


def test_decoding_is_estimated_once_it_has_been_measured(clock):
    time = TimeLeft()
    time.work = {"steps": 4, "frames": 20}
    seen = []
    for stage, done, total, duration in (
        *(("denoise", done, 4, 3) for done in range(5)),
        *(("decode", done, 20, 1) for done in (0, 4, 8, 12, 20)),
    ):
        clock.now += duration
        time.note(stage, done, total)
        seen.append(time.seconds())
    assert seen == [None, None, 6, 3, None, None, None, 3, 2, 0]


def test_progress_is_reported_a_few_times_a_second(capsys, clock):
    events = JsonEvents(["--json-events"])
    for step in range(101):
        clock.now = step / 50
        events.progress("denoise", step, 100)
    steps = [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()[1:]]
    assert steps[0] == 0 and steps[-1] == 100
    # A quarter of a second is twelve and a half of these steps.
    assert steps == [*range(0, 100, 13), 100]


@pytest.mark.parametrize(
    ("arguments", "code", "kind", "error"),
    [
        (["--steps", "x"], 2, "InvalidInputError", "invalid int value: 'x' (--help lists"),
        (["--json"], 2, "InvalidInputError", "--json-events: not allowed with argument --json"),
        (["--frames", 10], 2, "InvalidInputError", "frames must be 8N+1"),
        (["--output", "no/a.mp4"], 1, "OutputError", "/no doesn't exist: make it first"),
    ],
)
def test_a_refused_command_says_so_in_its_last_event(folder, capsys, arguments, code, kind, error):
    assert generate("video.mp4", *arguments, "--json-events") == code
    captured = capsys.readouterr()
    end = read(captured.out)[-1]
    assert (end["exit_code"], end["status"], end["kind"]) == (code, "failed", kind)
    assert error in end["error"]
    # People get the address of an entry on the page of troubleshooting, too.
    assert captured.err.splitlines()[-1].startswith(f"error: {end['error']}")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError("[metal::malloc] bad_alloc"), "DeviceError", "memory ran out"),
        (OSError(28, "No space left on device", "a"), "OSError", "a: No space left on device"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "nothing was written"),
    ],
)
def test_an_error_from_outside_ends_in_an_event(folder, capsys, monkeypatch, error, kind, text):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mlx_cogvideo.cli.generate.make_plan", fail)
    generate("video.mp4", "--json-events")
    end = read(capsys.readouterr().out)[-1]
    assert end["kind"] == kind and end["error"].startswith(text)


TWICE = "twice, so that it isn't known what was written last"


@pytest.mark.parametrize("note", ["go on with --resume", None])
def test_a_second_interrupt_does_not_say_that_nothing_was_written(
    folder, capsys, monkeypatch, note
):
    def interrupted_twice(*_, **__):
        try:
            first = KeyboardInterrupt()
            if note:
                first.add_note(note)
            raise first
        finally:
            raise KeyboardInterrupt

    monkeypatch.setattr("mlx_cogvideo.cli.generate.make_plan", interrupted_twice)
    assert generate("video.mp4") == 130
    assert capsys.readouterr().err == f"interrupted: {note or TWICE}\n"


def test_even_a_fault_of_this_program_ends_in_an_event(folder, capsys, monkeypatch):
    monkeypatch.setattr("mlx_cogvideo.cli.generate.make_plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate("video.mp4", "--json-events")
    end = read(capsys.readouterr().out)[-1]
    assert (end["exit_code"], end["kind"]) == (1, "ZeroDivisionError")


def test_a_dry_run_reports_the_plan_and_its_warnings(folder, capsys):
    assert generate("video.mp4", "--dry-run", "--save-every", 9, "--json-events") == 0
    captured = capsys.readouterr()
    events = read(captured.out)
    assert [event["event"] for event in events] == ["start", "plan", "warning", "end"]
    assert f"warning: {events[2]['message']}" in captured.err.splitlines()
    assert "--save-every 9 has no effect" in events[2]["message"]


def test_a_configuration_file_can_ask_for_events_and_a_record_is_one(folder, capsys):
    (folder / "a.toml").write_text("json_events = true\ndry_run = true")
    assert generate("video.mp4", "--config", "a.toml") == 0
    assert len(of(read(capsys.readouterr().out), "plan")) == 1
    write_video("video.mp4", np.zeros((1, 16, 16, 3), np.uint8), 8, record={"mlx_cogvideo": "0"})
    assert run("--show", "video.mp4", "--json-events") == 0
    captured = capsys.readouterr()
    (shown,) = of(read(captured.out), "record")
    assert (shown["path"], shown["record"]) == ("video.mp4", {"mlx_cogvideo": "0"})
    assert captured.err == ""


def test_help_is_printed_as_always(capsys):
    assert run("--json-events", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_number_that_is_not_finite_is_null_and_text_is_ascii(capsys):
    events = JsonEvents(["--json-events"])
    events.emit("x", loss=math.nan, rows=[{"y": -math.inf}], name="\x9b猫😀", path=Path("a"))
    line = capsys.readouterr().out.splitlines()[-1]
    expected = {"event": "x", "loss": None, "rows": [{"y": None}], "name": "\x9b猫😀", "path": "a"}
    assert line.isascii() and json.loads(line) == expected


def test_of_several_processes_only_the_main_one_has_events(capsys):
    events = JsonEvents(["--json-events"])
    events.start("lora", requested=True, is_main=False)
    events.emit("plan", steps=1)
    events.end(1, OSError("its disk is full"))
    assert capsys.readouterr().out == ""


def test_a_training_is_reported_step_by_step(clips, folder, capsys):
    more = ["--iters", 4, "--save-every", 2, "--val-every", 4]
    more += ["--sample-every", 4, "--sample-steps", 1, "--sample-prompt", "a kite"]
    assert lora(clips, "adapter", *more, "--json-events") == 0
    captured = capsys.readouterr()
    events = read(captured.out)
    (plan,) = of(events, "plan")
    assert (plan["clips"], plan["rank"], plan["steps"], plan["output"]) == (3, 4, 4, "adapter")
    log = [json.loads(line) for line in (folder / "adapter/log.jsonl").read_text().splitlines()]
    progress = of(events, "progress")
    last = [each for each in progress if each["stage"] == "train"][-1]
    assert (last["step"], last["total"], last["seconds_left"]) == (4, 4, 0)
    assert (last["loss"], last["learning_rate"]) == (log[3]["loss"], log[3]["learning_rate"])
    assert progress[-1] == last and {each["loss"] for each in progress[:-1]} >= {None}
    begun = [(each["stage"], each["total"]) for each in progress if not each["step"]]
    assert begun == [("captions", 5), ("clips", 3), ("train", 4)]
    saved = [(each["step"], each["path"]) for each in of(events, "checkpoint")]
    assert saved == [(2, "adapter/checkpoints/0000002"), (4, "adapter/checkpoints/0000004")]
    told = [
        (each["loss"], each["training_loss"], each["best"]) for each in of(events, "validation")
    ]
    assert told == [(log[3]["validation"], None, False)]
    (sample,) = of(events, "sample")
    assert (sample["path"], sample["prompt"]) == ("adapter/samples/0000004-0.mp4", "a kite")
    assert [each["output"] for each in of(events, "output")] == ["adapter"]
    assert "it/s" not in captured.err


def test_a_validation_of_held_out_clips_is_reported(clips, folder, capsys):
    split = ["--val-split", 0.001, "--json-events"]
    assert lora(clips, "adapter", *split, "--iters", 2, "--val-every", 1) == 0
    events = read(capsys.readouterr().out)
    (plan,) = of(events, "plan")
    assert (plan["clips"], plan["held_out"]) == (2, 1)
    log = [json.loads(line) for line in (folder / "adapter/log.jsonl").read_text().splitlines()]
    told = [(each["loss"], each["training_loss"]) for each in of(events, "validation")]
    assert told == [(row["validation"], row["training_validation"]) for row in log]
    best = json.loads((folder / "adapter/checkpoints/0000002/training.json").read_text())["best"]
    assert [each["step"] for each in of(events, "validation") if each["best"]][-1] == best["step"]
    assert lora(clips, "other", *split, "--dry-run") == 0
    listed = of(read(capsys.readouterr().out), "clip")
    assert [clip["held_out"] for clip in listed] == [False, False, True]


def test_an_interrupted_training_names_the_command_that_continues(
    clips, folder, capsys, monkeypatch
):
    loss, updates = TransformerLoss.loss_and_gradients, []

    def interrupted(self, batch):
        updates.append(batch)
        if len(updates) == 2:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(TransformerLoss, "loss_and_gradients", interrupted)
    assert lora(clips, "adapter", "--iters", 4, "--json-events") == 130
    captured = capsys.readouterr()
    events = read(captured.out)
    assert [each["step"] for each in of(events, "checkpoint")] == [1]
    end = events[-1]
    assert (end["status"], end["exit_code"]) == ("interrupted", 130)
    assert f"interrupted: {end['error']}" in captured.err.splitlines()
    words = shlex.split(end["resume"])
    assert words[-1] == "--resume" and words[words.index("--data") + 1] == str(clips)


def test_the_clips_of_a_dry_run_are_events(clips, folder, capsys):
    assert lora(clips, "adapter", "--dry-run", "--json-events") == 0
    found = of(read(capsys.readouterr().out), "clip")
    assert [(each["path"], each["usable"]) for each in found] == [
        (str(clips / f"{name}.mp4"), True) for name in "abc"
    ]
    assert found[0]["use"].startswith("9 frames of 48x32")


def test_a_conversion_is_reported_in_bytes(folder, capsys):
    assert convert.main(["--model", "demo", "-q", "4", "--json-events"]) == 0
    events = read(capsys.readouterr().out)
    (plan,) = of(events, "plan")
    ends = [each for each in of(events, "progress") if each["step"] == each["total"]]
    sizes = [(each["name"], each["bytes_after"]) for each in plan["networks"]]
    assert [(each["stage"], each["total"]) for each in ends] == sizes
    assert ends[0]["seconds_left"] > 0 == ends[-1]["seconds_left"]
    (made,) = of(events, "output")
    report = json.loads((folder / "mlx_model" / "conversion.json").read_text())
    assert made["output"] == "mlx_model" and made["record"] == report
    assert convert.main(["--info", "mlx_model", "--json-events"]) == 0
    (shown,) = of(read(capsys.readouterr().out), "record")
    assert shown["record"]["components"].keys() == report["components"].keys()


def test_a_check_reports_each_comparison(folder, capsys, monkeypatch):
    results = [Result("tokenizer", 0.0, 0), Result("decoder", 1.0, 1e-3)]
    monkeypatch.setattr("mlx_cogvideo.cli.check.check_stages", lambda *_: results)
    assert check.main(["--stages-only", "--json-events"]) == 1
    captured = capsys.readouterr()
    events = read(captured.out)
    compared = [(each["stage"], each["right"]) for each in of(events, "comparison")]
    assert compared == [("tokenizer", True), ("decoder", False)]
    (record,) = of(events, "record")
    assert record["record"]["stages"]["float32"][1]["error"] == 1
    assert events[-1]["exit_code"] == 1 and "wrong numbers here: decoder" in captured.err


def test_the_example_of_the_page_is_as_the_page_says():
    (transcript,) = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert {event["event"] for event in read(transcript)} >= {"plan", "progress", "output"}


@pytest.mark.parametrize("command", ["generate", "convert", "lora"])
def test_a_download_is_announced(folder, clips, monkeypatch, capsys, command):
    def answer(repo, *, local_files_only=False, dry_run=False, **_):
        if dry_run and not local_files_only:
            return [SimpleNamespace(will_download=True, file_size=12_345)]
        raise LocalEntryNotFoundError("the end of this test")

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    options = ["--model", "5b", "--json-events"]
    commands = {
        "generate": lambda: generate("video.mp4", *options),
        "convert": lambda: convert.main(options),
        "lora": lambda: lora(clips, "adapter", *options),
    }
    assert commands[command]() == 1
    events = read(capsys.readouterr().out)
    (download,) = of(events, "download")
    assert download["bytes"] == 12_345 and download["free"] > 0
    if command != "generate":  # its plan has all settings, and follows
        kinds = [event["event"] for event in events if event["event"] != "warning"]
        assert kinds[:3] == ["start", "plan", "download"]
