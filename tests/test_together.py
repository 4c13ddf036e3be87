"""Videos that several processes make together, over MLX's ring on this machine."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import PROMPT, SCRIPT, run
from processes import ended, launched, start

from mlx_cogvideo.video import read_record, read_video

SIZE = ["--frames", 9, "--height", 32, "--width", 48]
SMALL = ["--prompt", PROMPT, *SIZE, "--seed", 3, "--quiet", "--output", "video.mp4"]
LONG = [*SMALL, "--steps", 60, "--save-every", 100]

COMPARES = """
from contextlib import ExitStack
from functools import cache
import mlx.core as mx
import numpy as np
from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.diffusion.denoising import velocities
from mlx_cogvideo.diffusion.division import divide
from mlx_cogvideo.diffusion.split import WHOLE, Split, StepSize
from mlx_cogvideo.distributed import Distributed, Processes

stack, together = ExitStack(), Distributed.connect()
picture = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
RUNS = [
    dict(scheduler="ddim"),
    dict(scheduler="dpm", dynamic_cfg="wave"),
    dict(guidance_range=(2, 4)),
    dict(cache="first-block", cache_threshold=0.3, guidance_range=(0, 5)),
    dict(cache="teacache", cache_threshold=0.3),
    dict(cache="latents", computed_steps=3, scheduler="dpm", dynamic_cfg="wave"),
    dict(cache="guidance", computed_steps=3),
    dict(image=picture),
    dict(quantize=4),
]


@cache
def opened(model, quantize):
    pipe = CogVideoXPipeline.from_pretrained(model, quantize=quantize)
    for name in ("transformer", "text_encoder", "vae"):
        stack.enter_context(pipe.keeping(name))
    return pipe


def state(split, shares, quantize=None, **settings):
    pipe = opened("demo-i2v" if "image" in settings else "demo", quantize)
    pipe.processes = Processes(together.size, split, shares) if split else Processes()
    pipe.make_split = lambda division: Split(division, together) if split else WHOLE
    settings = dict(num_inference_steps=6, sequential_guidance=True) | settings
    request = pipe.request("a red circle", num_frames=9, height=48, width=48, seed=3, **settings)
    (embeds,) = pipe.encode([request])
    *_, last = pipe.denoise(request, embeds, conditioning=pipe.condition(request))
    return last


def difference(one, other):
    return (mx.abs(one - other).max() / mx.abs(one).max()).item()


def check(split, shares, limit, **settings):
    one, several = state(None, None, **settings), state(split, shares, **settings)
    found = difference(one.latents, several.latents)
    assert found <= limit, (split, shares, settings, found)
    assert one.skipped == several.skipped
    assert not settings.get("cache") or one.skipped, "no step was skipped"


for run in RUNS if together.size == 2 else RUNS[1:2]:
    check("guidance", None, 0, **run)
uneven = tuple(float(1 + 2 * rank) for rank in range(together.size))
if together.size == 2:
    for run in (RUNS[3], RUNS[5]):
        check("tokens", uneven, 1e-5, **run)
check("tokens", uneven, 1e-5, num_inference_steps=20)

pipe = opened("demo", None)
latents = mx.random.normal((2, 3, 8, 10, 16), key=mx.random.key(0))
width = pipe.configs["transformer"].text_embed_dim
text = mx.random.normal((2, 7, width), key=mx.random.key(1))
inputs = pipe.transformer, latents, text
step = [mx.array([500, 500])]
one = velocities(*inputs, *step)
for shares in (None, uneven):
    split = Split(divide(Processes(together.size, "tokens", shares), True), together)
    assert StepSize.of(*inputs).tokens % together.size, "they can be divided evenly"
    assert difference(one, velocities(*inputs, *step, split=split)) <= 2e-6
print("all equal")
"""


@pytest.mark.parametrize("count", [2, 3])
def test_processes_compute_what_one_does(tmp_path, count):
    """Guidance to the bit; tokens to rounding, also where they don't divide evenly.

    Measured with tokens: velocities 7e-7 of the largest, latents after 20 steps 1e-6.
    """
    script = tmp_path / "compares.py"
    script.write_text(COMPARES)
    assert launched([], script, count).count("all equal") == count


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> np.ndarray:
    """The frames of `LONG`, made by one process."""
    return by_one(tmp_path_factory.mktemp("whole"), *LONG)


def by_one(folder: Path, *arguments) -> np.ndarray:
    output = folder / "one.mp4"
    assert run(*arguments, "--sequential-guidance", "--output", output) == 0
    return frames(output)


def frames(file: Path) -> np.ndarray:
    return read_video(file)[0]


def wait_for_steps(folder: Path, number: int, processes: list[subprocess.Popen]) -> None:
    """Waits until so many steps are drawn as a preview."""
    preview, since = folder / "video.mp4.preview.gif", time.monotonic()
    while not preview.exists():
        assert time.monotonic() - since < 60
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def test_a_command_makes_the_same_video_in_two_processes(tmp_path):
    """With a clip to start from, and tiles that are dealt."""
    run("--prompt", PROMPT, *SIZE, "--steps", 2, "--seed", 1, "--output", tmp_path / "clip.mp4")
    arguments = [*SMALL, "--steps", 4, "--video", tmp_path / "clip.mp4", "--tile-size", 16, 16]
    printed = launched(arguments, SCRIPT, cwd=tmp_path)
    assert printed.split() == ["video.mp4"], "only the main process prints"
    assert (frames(tmp_path / "video.mp4") == by_one(tmp_path, *arguments)).all()
    record = read_record(tmp_path / "video.mp4")
    assert record["processes"] == 2 and record["settings"]["sequential_guidance"]


def test_videos_of_a_batch_are_made_by_all_or_by_one_each(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green triangle\n")
    arguments = ["--prompt-file", prompts, *SIZE, "--steps", 3, "--seed", 3, "--quiet"]
    all_of_them = {}
    for name, more in (("together", []), ("each", ["--one-each", "--sequential-guidance"])):
        output = tmp_path / (name + "-{index}.mp4")
        printed = launched([*arguments, "--output", output, *more], SCRIPT)
        files = [tmp_path / f"{name}-{i}.mp4" for i in (1, 2, 3)]
        assert sorted(printed.split()) == [str(file) for file in files]
        all_of_them[name] = [frames(file) for file in files]
    for first, second in zip(*all_of_them.values(), strict=True):
        assert (first == second).all()


@pytest.mark.parametrize(
    ("count", "victim", "signal_number", "again"),
    [
        (2, 1, signal.SIGKILL, 1),
        (2, 0, signal.SIGKILL, 2),
        (3, 2, signal.SIGTERM, 2),
    ],
)
def test_a_run_goes_on_in_any_number_of_processes(
    tmp_path, whole, count, victim, signal_number, again
):
    """A killed process ends the others, and one that is asked to stop stops all, with a saved run.

    Three processes and more divide guidance, so that all make the same frames.
    """
    more = ["--preview-every", 5, *(["--split", "guidance"] if count == 3 else [])]
    processes = start([*LONG, *more], SCRIPT, count, tmp_path)
    wait_for_steps(tmp_path, 5, processes)
    processes[victim].send_signal(signal_number)
    results = ended(processes)
    codes = [code for code, _, _ in results]
    saved = tmp_path / "video.mp4.resume"
    if signal_number == signal.SIGTERM:
        assert codes == [130, 0, 0]
        assert "steps are kept; continue with" in results[0][2]
    else:
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
        (line,) = [text for text in results[1 - victim][2].splitlines() if "error: " in text]
        assert f"(process {victim} on " in line and "steps are kept; continue with" in line
        if victim == 0:
            saved = tmp_path / "video.mp4.rescued-1.resume"
    resumed = ["--resume", saved, "--output", "video.mp4", "--quiet"]
    if again == 1:
        assert run(*resumed[:3], tmp_path / "video.mp4", "--quiet") == 0
    else:
        assert [code for code, *_ in ended(start(resumed, SCRIPT, again, tmp_path))] == [0] * again
    assert (frames(tmp_path / "video.mp4") == whole).all()
    assert read_record(tmp_path / "video.mp4")["resumed_at"][-1] >= 5


def test_a_run_of_one_process_goes_on_in_two(tmp_path, whole):
    arguments = [*LONG, "--sequential-guidance", "--preview-every", 5]
    (process,) = start(arguments, SCRIPT, 1, tmp_path)
    wait_for_steps(tmp_path, 5, [process])
    process.send_signal(signal.SIGTERM)
    assert ended([process])[0][0] == 130
    resumed = start([*arguments, "--resume"], SCRIPT, 2, tmp_path)
    assert [code for code, *_ in ended(resumed)] == [0, 0]
    assert (frames(tmp_path / "video.mp4") == whole).all()


@pytest.mark.parametrize("seconds", [1, 6])
def test_a_stopped_process_is_waited_for_but_not_for_ever(tmp_path, whole, seconds):
    """Silence may last 3 seconds here."""
    script = tmp_path / "impatient.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from mlx_cogvideo.runs import channel\nchannel.SILENCE = 3\n"
        "from mlx_cogvideo.cli.main import run_command\nsys.exit(run_command('generate'))\n"
    )
    processes = start([*LONG, "--preview-every", 5], script, 2, tmp_path)
    wait_for_steps(tmp_path, 5, processes)
    processes[1].send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    gone = processes[0].poll()
    processes[1].send_signal(signal.SIGCONT)
    codes = [code for code, _, _ in ended(processes)]
    if seconds == 1:
        assert gone is None and codes == [0, 0]
    else:
        assert gone == 1 and codes[0] == 1
        assert run(*LONG, "--resume", "--output", tmp_path / "video.mp4") == 0
    assert (frames(tmp_path / "video.mp4") == whole).all()


def test_processes_with_another_model_or_command_are_refused(tmp_path):
    script = tmp_path / "other.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "if os.environ['MLX_RANK'] == '1':\n"
        "    sys.argv[sys.argv.index('--seed') + 1] = '4'\n"
        "from mlx_cogvideo.cli.main import run_command\nsys.exit(run_command('generate'))\n"
    )
    (code, _, error), (other, *_) = ended(start([*SMALL, "--steps", 2], script, 2, tmp_path))
    assert (code, other) == (2, 0)
    assert (
        "process 1 on " in error and "it was started with --seed 4 instead of 3: give all" in error
    )
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from mlx_cogvideo.runs import helper\n"
        "made = helper.described_model\n"
        "helper.described_model = lambda pipe: {**made(pipe), 'transformer': 'another'}\n"
        "from mlx_cogvideo.cli.main import run_command\nsys.exit(run_command('generate'))\n"
    )
    (code, _, error), _ = ended(start([*SMALL, "--steps", 2], script, 2, tmp_path))
    assert code == 2 and "it has another transformer: give all processes the same" in error


def test_a_plan_measures_the_link(tmp_path):
    arguments = [word for word in SMALL if word != "--quiet"]
    (_, _, plan), (_, _, other) = ended(start([*arguments, "--dry-run"], SCRIPT, 2, tmp_path))
    assert "divided  each computes one pass of guidance" in plan and " GB/s" in plan and not other


def test_json_events_are_those_of_the_main_process(tmp_path):
    arguments = [*SMALL, "--steps", 2, "--json-events"]
    (_, events, _), (_, none, _) = ended(start(arguments, SCRIPT, 2, tmp_path))
    names = [json.loads(line)["event"] for line in events.splitlines()]
    assert (names[0], names[-1], none) == ("start", "end", "")


def test_one_each_is_for_all_processes_or_none(tmp_path):
    script = tmp_path / "other.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "sys.argv += ['--one-each'] * (os.environ['MLX_RANK'] == '1')\n"
        "from mlx_cogvideo.cli.main import run_command\nsys.exit(run_command('generate'))\n"
    )
    for code, _, error in ended(start([*SMALL, "--steps", 2], script, 2, tmp_path)):
        assert code == 2 and "--one-each is for all processes or none" in error


def test_processes_that_never_connect_end(tmp_path):
    """MLX itself would wait for ever, and let no thread of Python run."""
    script = tmp_path / "impatient.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from mlx_cogvideo import distributed\ndistributed.CONNECT_SECONDS = 1\n"
        "from mlx_cogvideo.cli.main import run_command\nsys.exit(run_command('generate'))\n"
    )
    first, second = start(SMALL, script, 2, tmp_path)
    second.kill()
    _, error = first.communicate(timeout=30)
    assert first.returncode != 0 and "haven't connected within 1 s" in error
    second.communicate()
