"""Extrapolated steps: what they compute, and that runs with them are repeated to the bit."""

import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from adapters import make_adapter
from commands import ctrl_c_in_step, errors, generate, run
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import relative_error

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.diffusion.guidance import guidance_schedule
from mlx_cogvideo.nn.transformer import FeedForward
from mlx_cogvideo.pipeline.events import RunState
from mlx_cogvideo.pipeline.recording import make_record
from mlx_cogvideo.pipeline.resolver import initial_noise, run_scheduler
from mlx_cogvideo.pipeline.unused import without_effect
from mlx_cogvideo.runs.saved_run import SavedRun
from mlx_cogvideo.video import read_record, read_video

PROMPT = "a red circle moves right on a white background"
SIZE = {"num_frames": 9, "height": 48, "width": 48, "num_inference_steps": 8, "seed": 1}
SOME = [0, 1, 3, 6]
PICTURE = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
CLIP = np.random.default_rng(1).integers(0, 255, (9, 48, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def pipe() -> CogVideoXPipeline:
    return CogVideoXPipeline.from_pretrained("demo")


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Returns a list that grows by the number of passes with each call of the transformer."""
    calls, call = [], FeedForward.__call__

    def counted(self, x, *args, **options):
        calls.append(len(x))
        return call(self, x, *args, **options)

    monkeypatch.setattr(FeedForward, "__call__", counted)
    return calls


def latents(pipe, **more) -> mx.array:
    return pipe(PROMPT, output_type="latent", **{**SIZE, **more}).frames


def float64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32)).astype(np.float64)


class ByHand:
    """A run in float64 but for the transformer."""

    def __init__(self, pipe, request, embeds):
        self.pipe, self.request, self.embeds = pipe, request, embeds
        self.scheduler = run_scheduler(pipe, request)
        self.timesteps = [int(t) for t in self.scheduler.timesteps]
        levels = [*self.scheduler.alphas_cumprod[self.timesteps], 1.0]
        self.alpha, self.sigma = np.sqrt(levels), np.sqrt(1 - np.array(levels))
        with np.errstate(divide="ignore"):
            self.half = np.log(self.alpha) - np.log(self.sigma)

    def predict(self, i: int, x: np.ndarray, row: int) -> np.ndarray:
        sample, t = mx.array(x.astype(np.float32)), mx.array([self.timesteps[i]])
        velocity = self.pipe.transformer(sample, self.embeds[row : row + 1], t)
        return self.alpha[i] * x - self.sigma[i] * float64(velocity)

    def line(self, i: int, points: list[tuple[int, np.ndarray]]) -> np.ndarray:
        (k, before), (j, after) = points[-2:]
        share = (self.half[i] - self.half[j]) / (self.half[j] - self.half[k])
        return after + (0.7 if i > j else 1) * share * (after - before)

    def step(self, i: int, c: np.ndarray, difference: np.ndarray, x, previous):
        """x and x0 after a step."""
        request, count, half = self.request, len(self.timesteps), self.half
        weight = guidance_schedule(request.dynamic_cfg, request.guidance_scale)
        x0 = c + (1 - weight(i, self.timesteps[i], count)) * difference
        (alpha, after), (sigma, sigma_after) = self.alpha[i : i + 2], self.sigma[i : i + 2]
        if request.scheduler == "ddim":
            return after * x0 + sigma_after * (x - alpha * x0) / sigma, x0
        keys = mx.random.split(self.scheduler.key, 1000)
        noise = float64(mx.random.normal(x.shape, key=keys[self.timesteps[i]]))
        h, d = half[i + 1] - half[i], x0
        if previous is not None and i + 1 < count:
            w = h / (2 * (half[i] - half[i - 1]))
            d = (1 + w) * x0 - w * previous
        spread = 1 - np.exp(-2 * h)
        x = sigma_after / sigma * np.exp(-h) * x + after * spread * d
        return x + sigma_after * np.sqrt(spread) * noise, x0

    def latents(self, kind: str, computed: list[int]) -> np.ndarray:
        start = x, previous = float64(initial_noise(self.request)), None
        cs, differences = [], []  # by step: of the computed ones, but for the c of "guidance"
        for i in range(len(self.timesteps)):
            if i not in computed:
                cs += [(i, self.predict(i, x, 1))] if kind == "guidance" else []
                c = cs[-1][1] if kind == "guidance" else self.line(i, cs)
                x, previous = self.step(i, c, self.line(i, differences), x, previous)
                continue
            cs.append((i, self.predict(i, x, 1)))
            differences.append((i, self.predict(i, x, 0) - cs[-1][1]))
            if i > 1:
                # The skipped steps once more, now along the line to the new point.
                x, previous = start
                for j in range(differences[-2][0] + 1, i):
                    c = dict(cs)[j] if kind == "guidance" else self.line(j, cs)
                    x, previous = self.step(j, c, self.line(j, differences), x, previous)
            x, previous = self.step(i, cs[-1][1], differences[-1][1], x, previous)
            start = x, previous
        return x


@pytest.mark.parametrize("kind", ["latents", "guidance"])
@pytest.mark.parametrize("sampler", [("ddim", "constant"), ("dpm", "wave")])
def test_steps_follow_the_formulas_in_float64(pipe, kind, sampler):
    settings = dict(zip(("scheduler", "dynamic_cfg"), sampler, strict=True))
    request = pipe.request(PROMPT, cache=kind, computed_steps=SOME, **SIZE, **settings)
    with pipe.keeping("transformer"):
        (embeds,) = pipe.encode([request])
        expected = ByHand(pipe, request, embeds).latents(kind, SOME)
        *_, last = pipe.denoise(request, embeds)
    assert relative_error(last.latents, expected) < 1e-5
    assert last.skipped == (2, 4, 5, 7)


@pytest.mark.parametrize("kind", ["latents", "guidance"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpm", "dpm++"])
def test_a_list_of_all_steps_changes_no_bit(pipe, kind, scheduler):
    exact = latents(pipe, scheduler=scheduler)
    made = latents(pipe, scheduler=scheduler, cache=kind, computed_steps=8)
    assert mx.array_equal(made, exact)


def test_steps_compute_the_passes_that_they_should(pipe, passes):
    latents(pipe, cache="latents", computed_steps=SOME)
    assert sum(passes) == 5 * 2 * 4
    passes.clear()
    latents(pipe, cache="guidance", computed_steps=SOME)
    assert sum(passes) == 5 * (2 * 4 + 4)
    passes.clear()
    latents(pipe, cache="latents", computed_steps=SOME, guidance_scale=1)
    assert sum(passes) == 5 * 4


@pytest.mark.parametrize(
    ("settings", "skipped"),
    [
        # Where guidance begins its two lines have no points yet; without it one line is enough.
        ({"guidance_range": (3, 6)}, (2, 5, 7)),
        ({"guidance_range": (0, 4)}, (2, 4, 5, 7)),
        # A clip leaves out the first two steps of all; the list counts these, too.
        ({"video": CLIP, "strength": 0.75}, (2, 3, 5)),
    ],
)
def test_a_line_needs_two_points(pipe, settings, skipped):
    request = pipe.request(PROMPT, cache="latents", computed_steps=SOME, **SIZE, **settings)
    (embeds,) = pipe.encode([request])
    *_, last = pipe.denoise(request, embeds, conditioning=pipe.condition(request))
    assert last.skipped == skipped


CASES = {
    "text": {},
    "noise and a jumping weight": {"scheduler": "dpm", "dynamic_cfg": "wave"},
    "second order": {"scheduler": "dpm++"},
    "no guidance": {"guidance_scale": 1},
    "a range of guidance": {"guidance_range": (2, 6)},
    "one pass after the other": {"sequential_guidance": True},
    "a picture": {"image": PICTURE},
    "a clip": {"video": CLIP, "strength": 0.9},
    "an adapter": {},
    "4 bits": {},
}


@pytest.mark.parametrize("kind", ["latents", "guidance"])
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_to_the_bit_from_any_step(tmp_path, pipe, case, kind):
    """From files; with two more arrays than without a cache, or four, and no step to go back to."""
    settings = CASES[case] | {"cache": kind, "computed_steps": SOME}
    if "image" in settings:
        pipe = CogVideoXPipeline.from_pretrained("demo-i2v")
    elif case == "4 bits":
        pipe = CogVideoXPipeline.from_pretrained("demo", quantize=4)
    elif case == "an adapter":
        pipe = CogVideoXPipeline.from_pretrained("demo")
        pipe.load_lora(make_adapter(tmp_path / "adapter"), scale=0.5)
    request = pipe.request(PROMPT, **SIZE, **settings)
    record = make_record(pipe, request, {}, fps=8)
    with pipe.keeping("transformer"):
        (embeds,) = pipe.encode([request])
        conditioning = pipe.condition(request)
        states = [*pipe.denoise(request, embeds, conditioning=conditioning)]
        assert kind == "guidance" or states[-1].skipped
        for state in states[:-1]:
            whole = RunState(embeds, conditioning, state)
            SavedRun(record, "a.mp4", whole).save(tmp_path / "a.resume")
            saved = SavedRun.load(tmp_path / "a.resume")
            assert saved.steps_done == state.step
            *_, last = pipe.denoise(
                request,
                saved.run.embeds,
                saved.run.denoising,
                conditioning=saved.run.conditioning,
            )
            assert mx.array_equal(last.latents, states[-1].latents), state.step
            assert last.skipped == states[-1].skipped


def test_a_state_holds_four_arrays_of_latents(pipe):
    for settings, count in (({}, 4), ({"guidance_scale": 1}, 2), ({"cache": "guidance"}, 2)):
        request = pipe.request(PROMPT, **SIZE | {"cache": "latents"} | settings)
        (embeds,) = pipe.encode([request])
        *_, last = pipe.denoise(request, embeds)
        values = [value for line in last.lines.values() for value in line.values]
        assert [value.shape for value in values] == [last.latents.shape] * count
        assert {value.dtype for value in values} == {mx.float32}


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "video.mp4"


def frames(path) -> np.ndarray:
    return read_video(path)[0]


def test_a_video_of_windows_is_repeated_and_resumed_in_its_second_one(output):
    windows = ["--frames", 9, "--extend", 1, "--overlap", 1, "--steps", 6, "--save-every", 1]
    command = [*windows, "--cache", "latents", "--computed-steps", 3]
    assert generate(output, *command) == 0
    record = read_record(output)
    assert record["settings"]["computed_steps"][:2] == [0, 1]
    for window in record["cache"]:
        assert window["computed_steps"] == record["settings"]["computed_steps"]
        assert sorted(window["computed_steps"] + window["skipped_steps"]) == [*range(6)]
    assert len(record["cache"]) == 2
    with ctrl_c_in_step(6 + 4):
        assert generate("again.mp4", *command) == 130
    assert run("--resume", "again.mp4") == 0
    assert (frames(output) == frames("again.mp4")).all()
    assert read_record("again.mp4")["cache"] == record["cache"]
    assert run("--replay", output, "--output", "replayed.mp4") == 0
    assert (frames(output) == frames("replayed.mp4")).all()


def test_videos_of_a_batch_are_those_that_are_made_alone(output):
    cache = ["--steps", 6, "--cache", "latents", "--computed-steps", 3, "--scheduler", "dpm"]
    assert generate("{seed}.mp4", *cache, "--seed", 1, 2) == 0
    assert generate(output, *cache, "--seed", 2) == 0
    assert (frames("2.mp4") == frames(output)).all()


def test_a_replay_with_other_steps_takes_the_list_for_these(output, capsys):
    assert generate(output, "--steps", 6, "--cache", "latents", "--computed-steps", 0, 1, 5) == 0
    for more, expected in ((["--steps", 6], 3), (["--steps", 50], 22), ([], 3)):
        capsys.readouterr()
        assert run("--replay", output, "--output", "new.mp4", *more, "--dry-run") == 0
        assert f"({expected} computed in full" in capsys.readouterr().err
    assert run("--replay", output, "--output", "new.mp4", "--cache", "none", "--dry-run") == 0


def test_a_saved_run_without_lines_is_one_without_extrapolation(tmp_path, pipe):
    request = pipe.request(PROMPT, **SIZE)
    (embeds,) = pipe.encode([request])
    *_, last = pipe.denoise(replace(request, num_inference_steps=2), embeds)
    path = tmp_path / "old.resume"
    record = make_record(pipe, request, {}, fps=8)
    SavedRun(record, "a.mp4", RunState(embeds, denoising=last)).save(path)
    with safe_open(path, framework="numpy") as stored:
        metadata = stored.metadata()
    about = json.loads(metadata["run"])
    del about["lines"]
    save_file(load_file(path), path, metadata | {"run": json.dumps(about)})
    assert SavedRun.load(path).run.denoising.lines == {}


def test_a_plan_says_what_is_computed(output, capsys):
    cache = ["--steps", 50, "--cache"]
    assert generate(output, *cache, "latents", "--dry-run") == 0
    assert "50 steps of ddim (22 computed in full, 44% of the work)" in capsys.readouterr().err
    assert generate(output, *cache, "guidance", "--dry-run") == 0
    assert "50 steps of ddim (24 computed in full, 74% of the work)" in capsys.readouterr().err
    assert generate(output, *cache, "latents", "--computed-steps", 17, "--extend", 1, "--overlap",
                    1, "--dry-run") == 0  # fmt: skip
    assert "(17 computed in full, 34% of the work)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--computed-steps", 2], "computed_steps needs a cache: latents or guidance"),
        (["--cache", "latents", "--computed-steps", 3], "computed_steps must be 2 to 2 of 2 steps"),
        (["--cache", "latents", "--computed-steps", 0, 3], "rising numbers from 0 to 1"),
        (["--cache", "latents", "--cache-threshold", 0.1], "needs a cache: teacache or first-"),
    ],
)
def test_a_wrong_list_is_one_line(output, capsys, options, message):
    assert generate(output, *options) == 2
    (error,) = errors(capsys.readouterr().err)
    assert message in error


def test_without_guidance_nothing_is_left_out_of_it(pipe):
    given = {"cache": "guidance", "guidance_scale": 1}
    request = pipe.request(PROMPT, **SIZE, **given)
    assert "cache has no effect: guidance_scale is at most 1" in without_effect(
        pipe, given.keys(), request
    )
    assert request.passes_of_all_windows == 8
