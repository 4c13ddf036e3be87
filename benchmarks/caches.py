"""Compares videos whose steps aren't all computed with the exact ones, on a bundled model.

    python benchmarks/caches.py demo --prompts 8
    python benchmarks/caches.py demo-i2v --sampler dpm --schedule wave --recipes latents:22

Each recipe makes the videos of the same held-out prompts from the same noise as the exact run, and
their frames, before they are rounded, are compared with the exact ones. A recipe is one of

    latents:22         extrapolated steps: their number, or a list as in latents:0,1,3
    guidance:24        the unconditional pass alone left out in the other steps
    teacache:0.2       with the threshold; first-block likewise
    repeat:3           what the blocks added, repeated in two of three steps after eight
    steps:ddim:25      fewer steps of a sampler: only deterministic ones can be compared
    dtype:bfloat16     the exact steps in another type

Work is the share of the blocks of the exact run that are computed. Passes is the share of passes in
which more than the first block is: first-block always computes that one, a fifth of the blocks here
and a fortieth in the official models. PSNR is in dB: its mean over the videos, the 10th percentile
and the lowest; SSIM is a mean. Attributes are those that are right, of four a video. The bundled
models are 10 to 20 dB easier than the official ones: the numbers compare methods, and promise
nothing of other models.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "demo"))

from attributes import read_attributes
from captions import ATTRIBUTES, Combination
from evaluate import held_out_prompts
from evaluate_tasks import clips_of

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.diffusion import denoising
from mlx_cogvideo.diffusion.step_cache import StepCache
from mlx_cogvideo.nn.transformer import CogVideoXBlock
from mlx_cogvideo.video.likeness import ssim

RECIPES = [
    "guidance:24",
    "repeat:2",
    "latents:22",
    "repeat:3",
    "latents:17",
    "teacache:0.1",
    "teacache:0.2",
    "first-block:0.1",
    "first-block:0.2",
    "latents:13",
    "latents:10",
]
WARM_UP = 8
"""Steps in the beginning that ``repeat`` computes."""


class Videos:
    """The videos of some prompts.

    Attributes:
        wanted: what they are to show.
    """

    def __init__(self, args: argparse.Namespace):
        self._model, self._steps = args.model, args.steps
        self._settings = {"scheduler": args.sampler, "dynamic_cfg": args.schedule}
        prompts = held_out_prompts(args.prompts, np.random.default_rng(args.seed))
        self.wanted = [wanted for wanted, _ in prompts]
        self._prompts = [prompt for _, prompt in prompts]
        self._clips = clips_of(self.wanted, seed=5)
        self._pipes: dict[str | None, CogVideoXPipeline] = {}
        self._stack = ExitStack()

    def make(self, number: int, recipe: str | None) -> tuple[np.ndarray, np.ndarray]:
        """The frames ``[F, H, W, 3]`` in [0, 1] of a video, and the blocks that were computed.

        These are all blocks, and those behind the first one.
        """
        dtype, settings, repeated = parse(recipe, self._steps)
        pipe = self._pipe(dtype)
        settings = {"num_inference_steps": self._steps, **self._settings, **settings}
        if pipe.takes_image:
            settings["image"] = self._clips[number][0]
        first = pipe.transformer.transformer_blocks[0]
        with counted_blocks() as blocks, repeating(repeated):
            made = pipe(self._prompts[number], seed=number, output_type="np", **settings)
        behind = sum(block is not first for block in blocks)
        return np.asarray(made.frames[0], np.float64), np.array([len(blocks), behind])

    def _pipe(self, dtype: str | None) -> CogVideoXPipeline:
        if dtype not in self._pipes:
            pipe = self._pipes[dtype] = CogVideoXPipeline.from_pretrained(self._model, dtype=dtype)
            for name in ("transformer", "text_encoder", "vae"):
                self._stack.enter_context(pipe.keeping(name))
        return self._pipes[dtype]


def parse(recipe: str | None, steps: int) -> tuple[str | None, dict[str, Any], list[bool] | None]:
    """The dtype of a recipe, its settings, and the steps to compute where it repeats residuals."""
    name, _, value = (recipe or "").partition(":")
    match name:
        case "":
            return None, {}, None
        case "latents" | "guidance":
            numbers = [int(number) for number in value.split(",")]
            return None, {"cache": name, "computed_steps": numbers}, None
        case "teacache" | "first-block":
            return None, {"cache": name, "cache_threshold": float(value)}, None
        case "repeat":
            computed = [i < WARM_UP or (i - WARM_UP) % int(value) == 0 for i in range(steps)]
            return None, {"cache": "teacache"}, [*computed[:-1], True]
        case "steps":
            sampler, _, count = value.partition(":")
            return None, {"scheduler": sampler, "num_inference_steps": int(count)}, None
        case "dtype":
            return value, {}, None
    raise SystemExit(f"no recipe {recipe!r}")


@contextmanager
def counted_blocks() -> Iterator[list[CogVideoXBlock]]:
    """A list that grows by a block with each of its passes."""
    blocks, attend = [], CogVideoXBlock.attend

    def counting(self, x, *args):
        blocks.extend([self] * len(x))
        return attend(self, x, *args)

    CogVideoXBlock.attend = counting
    try:
        yield blocks
    finally:
        CogVideoXBlock.attend = attend


@contextmanager
def repeating(steps: list[bool] | None) -> Iterator[None]:
    """Has a cache of blocks compute these steps."""
    make_cache = denoising.make_cache
    if steps is not None:
        denoising.make_cache = lambda *_: StepCache(steps, 0, len(steps) - 1)
    try:
        yield
    finally:
        denoising.make_cache = make_cache


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """The peak signal-to-noise ratio of frames in [0, 1], in dB."""
    return -10 * np.log10(max(np.square(one - other).mean(), 1e-12))


def mean_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """The mean structural similarity of frames ``[F, H, W, 3]`` in [0, 1]."""
    return float(np.mean([ssim(*pair) for pair in zip(one, other, strict=True)]))


def right(frames: np.ndarray, wanted: Combination) -> int:
    """How many of a video's attributes are as wanted."""
    found = read_attributes(np.round(frames * 255).astype(np.uint8))
    return sum(map(np.equal, found, wanted))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("model", choices=("demo", "demo-i2v"), help="the model")
    add("--sampler", default="ddim", choices=("ddim", "dpm", "dpm++"), help="(default: ddim)")
    add("--schedule", default="constant", help="guidance over the steps (default: constant)")
    add("--steps", type=int, default=50, help="steps of the exact run (default: 50)")
    add("--prompts", type=int, default=8, help="held-out prompts (default: 8)")
    add("--seed", type=int, default=0, help="of the prompts (default: 0)")
    add("--recipes", nargs="+", default=RECIPES, metavar="RECIPE", help="(default: %(default)s)")
    args = parser.parse_args()
    print(
        f"{args.model}, {args.steps} steps of {args.sampler}, {args.schedule} guidance, "
        f"{args.prompts} held-out prompts, {mx.default_device()}, MLX {mx.__version__}, "
        f"{platform.platform()}"
    )
    compare(Videos(args), args.recipes)


def compare(videos: Videos, recipes: list[str]) -> None:
    """Makes all videos, and prints the table; Ctrl-C ends it with those that are made."""
    rows: dict[str, list[tuple[float, ...]]] = {recipe: [] for recipe in recipes}
    exact_right, count, start = 0, 0, time.monotonic()
    with suppress(KeyboardInterrupt):
        for number, wanted in enumerate(videos.wanted):
            exact, all_blocks = videos.make(number, None)
            found = {}
            for recipe in recipes:
                made, blocks = videos.make(number, recipe)
                similarity = psnr(made, exact), mean_ssim(made, exact)
                found[recipe] = (*blocks / all_blocks, *similarity, right(made, wanted))
            for recipe, row in found.items():
                rows[recipe].append(row)
            exact_right, count = exact_right + right(exact, wanted), count + 1
            done = f"{count} of {len(videos.wanted)} prompts, {time.monotonic() - start:.0f} s"
            print(done, file=sys.stderr, flush=True)
    if not count:
        return
    of = len(ATTRIBUTES) * count
    print(
        f"{f'{count} prompts':24}{'work':>6}{'passes':>8}"
        f"{'PSNR':>7}{'p10':>7}{'worst':>7}{'SSIM':>8}  right"
    )
    print(f"{'exact':24}{1:6.0%}{1:8.0%}{'':29}  {exact_right} of {of}")
    for recipe, row in rows.items():
        work, passes, dbs, ssims, attributes = map(np.array, zip(*row, strict=True))
        print(
            f"{recipe[:23]:24}{work.mean():6.0%}{passes.mean():8.0%}"
            f"{dbs.mean():7.1f}{np.percentile(dbs, 10):7.1f}{dbs.min():7.1f}{ssims.mean():8.4f}"
            f"  {attributes.sum()} of {of}"
        )


if __name__ == "__main__":
    main()
