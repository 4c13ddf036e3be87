"""``generate.py`` with many prompts and seeds."""

import json
import os
import weakref

import mlx.core as mx
import pytest
from commands import PROMPT, SMALL, ctrl_c_in_step, during_steps, errors, run
from support import watch_networks

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.nn.t5 import T5EncoderModel
from mlx_cogvideo.pipeline import run_stages
from mlx_cogvideo.video import read_record

PROMPTS = f"""# six prompts; the fourth needs another model
{PROMPT}
a blue square grows on a gray background

a green triangle moves left on a black background
a red circle@@start.png
a yellow square shrinks on a white background
a white circle moves up on a blue background
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def batch(*arguments) -> int:
    name = "out/{index}-{seed}.mp4"
    return run("--prompt-file", "prompts.txt", "--output", name, *SMALL, *arguments)


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


TEN = [f"{index}-{seed}.mp4" for index in (1, 2, 3, 5, 6) for seed in (1, 2)]


def test_ten_videos_and_one_report_and_none_on_a_rerun(folder, capsys):
    assert batch("--seed", 1, 2) == 1
    captured = capsys.readouterr()
    assert names(folder) == TEN
    assert captured.out.splitlines() == [f"out/{name}" for name in TEN]
    (line,) = errors(captured.err)
    assert line.startswith("error: line 6: ") and "image" in line
    assert "10 made, 0 made before, 1 failed" in captured.err
    records = [read_record(folder / name)["settings"] for name in TEN]
    assert len({record["prompt"] for record in records}) == 5
    assert [record["seed"] for record in records] == [1, 2] * 5

    written = [os.stat(folder / name).st_mtime_ns for name in TEN]
    assert batch("--seed", 1, 2) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(errors(captured.err)) == 1
    assert "0 made, 10 made before, 1 failed" in captured.err
    assert [os.stat(folder / name).st_mtime_ns for name in TEN] == written


def test_json_is_one_line_for_all_videos(folder, capsys):
    assert batch("--seed", 1, "--json", "--quiet") == 1
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    results = json.loads(line)
    assert [made["output"] for made in results["made"]] == [f"out/{n}" for n in TEN if "-1" in n]
    assert [failed["item"] for failed in results["failed"]] == ["line 6"]
    assert len(captured.err.splitlines()) == 1


def test_one_text_encoder_encodes_all_texts_and_is_freed_before_denoising(folder, monkeypatch):
    in_memory, encoders, seen = watch_networks(monkeypatch), [], []
    encode = T5EncoderModel.__call__

    def noted(self, *arguments, **options):
        if not any(ref() is self for ref in encoders):
            encoders.append(weakref.ref(self))
        return encode(self, *arguments, **options)

    monkeypatch.setattr(T5EncoderModel, "__call__", noted)
    with during_steps(lambda step: seen.append(T5EncoderModel in in_memory())):
        assert batch("--seed", 1) == 1
    assert seen == [False] * 10
    assert len(encoders) == 1


def test_one_video_that_fails_does_not_stop_the_rest(folder, monkeypatch, capsys):
    decode = run_stages.decode

    def fail_once(model, settings, *arguments):
        if "green" in settings.prompt and settings.seed == 1:
            raise RuntimeError("[metal::malloc] Unable to allocate\nmore about it")
        return decode(model, settings, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(run_stages, "decode", fail_once)
        assert batch("--seed", 1, 2) == 1
    captured = capsys.readouterr()
    _, error = errors(captured.err)
    assert error.startswith("error: line 5, seed 1: ")
    assert "[metal::malloc] Unable to allocate" in error and "more about it" not in error
    assert "--resume out/3-1.mp4.resume" in error
    assert "9 made, 0 made before, 2 failed" in captured.err

    assert batch("--seed", 1, 2) == 1
    assert "--resume" in errors(capsys.readouterr().err)[1]
    assert batch("--seed", 1, 2, "--resume") == 1
    assert "1 made, 9 made before, 1 failed" in capsys.readouterr().err
    assert names(folder) == TEN


FIRST_STEP_OF_THE_THIRD_VIDEO = 2 * 2 + 1


def test_an_interrupted_batch_resumes_where_it_stopped(folder, monkeypatch, capsys):
    with ctrl_c_in_step(FIRST_STEP_OF_THE_THIRD_VIDEO):
        assert batch("--seed", 1) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("interrupted: 1 of 2 steps are kept")
    assert "2 of 5 videos" in last and "--resume" in last
    assert names(folder) == [
        "1-1.mp4",
        "2-1.mp4",
        "3-1.mp4.resume",
        "5-1.mp4.resume",
        "6-1.mp4.resume",
    ]
    # The texts are not encoded again.
    monkeypatch.setattr(CogVideoXPipeline, "encode_prompt", lambda *_: pytest.fail("encoded"))
    assert batch("--seed", 1, "--resume") == 1
    assert "3 made, 2 made before, 1 failed" in capsys.readouterr().err
    assert names(folder) == [name for name in TEN if name.endswith("-1.mp4")]
    assert read_record(folder / "3-1.mp4")["resumed_at"] == [1]


def test_a_rerun_keeps_videos_of_random_seeds(folder, capsys):
    arguments = ["--prompt-file", "prompts.txt", "--output", "out/{index}.mp4", *SMALL]
    assert run(*arguments) == 1
    assert run(*arguments) == 1
    assert "0 made, 5 made before, 1 failed" in capsys.readouterr().err


def test_a_memory_limit_does_not_make_a_finished_video_again(folder, monkeypatch, capsys):
    assert batch("--seed", 1) == 1
    monkeypatch.setattr("mlx_cogvideo.pipeline.estimates.usable_memory", lambda pipe: 0)
    assert batch("--seed", 1, "--memory-limit", 1) == 1
    assert "0 made, 5 made before, 1 failed" in capsys.readouterr().err
    single = ["--prompt", PROMPT, "--output", "out/1-1.mp4", *SMALL, "--seed", 1, "--resume"]
    assert run(*single, "--memory-limit", 1) == 0
    assert run(*single, "--memory-limit", 1, "--sequential-guidance") == 1
    assert "sequential_guidance was False and is now True" in capsys.readouterr().err


def test_a_video_made_with_other_settings_is_no_finished_one(folder, capsys):
    assert batch("--seed", 1) == 1
    capsys.readouterr()
    assert batch("--seed", 1, 2, "--guidance", 3) == 1
    failures = errors(capsys.readouterr().err)
    assert "out/1-1.mp4 exists" in failures[1]
    assert "guidance_scale was 2.0 and is now 3.0" in failures[1]
    assert len(failures) == 6
    assert batch("--seed", 1, 2, "--guidance", 3, "--overwrite") == 1
    assert names(folder) == TEN


def test_a_resumed_batch_does_not_overwrite_what_it_has_made(folder, capsys):
    assert batch("--seed", 1, "--steps", 1) == 1
    with ctrl_c_in_step(FIRST_STEP_OF_THE_THIRD_VIDEO):
        assert batch("--seed", 1, "--overwrite") == 130
    assert batch("--seed", 1, "--overwrite", "--resume") == 1
    assert "3 made, 2 made before, 1 failed" in capsys.readouterr().err
    steps = {read_record(folder / n)["settings"]["num_inference_steps"] for n in names(folder)}
    assert steps == {2}


def test_random_seeds_in_names_are_refused(folder, capsys):
    arguments = ["--prompt-file", "prompts.txt", "--output", "out/{index}-{seed}.mp4"]
    assert run(*arguments) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "{seed}" in line and "--seed" in line


def test_a_failed_video_is_not_kept_in_memory(folder, monkeypatch):
    networks = []

    def fail(model, *arguments):
        networks.append(weakref.ref(model.vae))
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(run_stages, "decode", fail)
    (folder.parent / "prompts.txt").write_text("a\nb\n")
    seen = []
    denoise = CogVideoXPipeline.denoise

    def look(pipe, *arguments, **options):
        pipe.free("vae")
        seen.append([network() for network in networks])
        return denoise(pipe, *arguments, **options)

    monkeypatch.setattr(CogVideoXPipeline, "denoise", look)
    assert batch("--seed", 1) == 1
    assert seen == [[], [None]]


def test_several_seeds_of_one_prompt_are_a_batch(folder, capsys):
    assert run("--prompt", PROMPT, *SMALL, "--seed", 3, 4) == 0
    assert capsys.readouterr().out.splitlines() == ["video-3.mp4", "video-4.mp4"]


def test_equal_names_are_refused(folder, capsys):
    assert run("--prompt", PROMPT, "--seed", 3, 4, "--output", "a.mp4") == 2
    assert "a.mp4" in errors(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no prompts"), ("# a\n", "has no prompts"), (None, "doesn't exist")],
)
def test_a_file_without_prompts_is_one_clear_line(folder, capsys, text, message):
    path = folder.parent / "prompts.txt"
    path.unlink() if text is None else path.write_text(text)
    assert batch() == 2
    (line,) = errors(capsys.readouterr().err)
    assert message in line
    assert names(folder) == []


def piped(text: bytes) -> str:
    """Returns the name of a pipe with a text in it, as a shell gives it for ``<(command)``."""
    reads, writes = os.pipe()
    os.write(writes, text)
    os.close(writes)
    return f"/dev/fd/{reads}"


def test_prompts_come_through_a_pipe_of_the_shell(folder, capsys):
    command = ["--output", "out/{index}.mp4", *SMALL, "--dry-run"]
    assert run("--prompt-file", piped(b"\xef\xbb\xbfa red circle\r\na cat\n"), *command) == 0
    assert "out/1.mp4 and 1 more" in capsys.readouterr().err
    os.mkfifo("pipe")
    for path, problem in (
        (piped(b"\xff"), "isn't UTF-8"),
        (piped(b"#\n"), "has no prompts"),
        ("pipe", "pipe"),
        ("/dev/null", "it is not a file"),
    ):
        assert run("--prompt-file", path, *command) == 2
        (line,) = errors(capsys.readouterr().err)
        assert problem in line


def test_a_pipe_without_end_is_one_clear_line(folder, monkeypatch, capsys):
    monkeypatch.setattr("mlx_cogvideo.runs.batch.LONGEST_PIPE", 9)
    assert run("--prompt-file", piped(b"a red circle"), "--dry-run") == 2
    assert "has more than 9 characters" in errors(capsys.readouterr().err)[0]


def test_one_line_says_why_no_video_can_be_made(folder, capsys):
    (folder.parent / "prompts.txt").write_text("a@@b.png\nc@@d.png\n")
    assert batch("--seed", 1) == 2
    (line,) = errors(capsys.readouterr().err)
    assert line.startswith("error: line 1: ") and "image" in line
    assert "(and 1 more like this)" in line


def test_a_wrong_setting_is_reported_once(folder, capsys):
    assert batch("--seed", 1, "--frames", 48) == 2
    (line,) = errors(capsys.readouterr().err)
    assert "8N+1" in line


def test_one_video_at_a_time_is_in_memory(folder):
    memory = []
    (folder.parent / "prompts.txt").write_text("\n".join(f"{PROMPT} {i}" for i in range(12)))
    with during_steps(lambda step: memory.append(mx.get_active_memory())):
        assert batch("--seed", 1) == 0
    # The state of one run is 60 KB here, and each run has two steps.
    assert memory[-1] - memory[1] < 200_000
