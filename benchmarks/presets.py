"""Times whole runs at full size with all steps, with caches of blocks, and with presets.

    python benchmarks/presets.py 5b
    python benchmarks/presets.py 1.5-5b --frames 41 --share /tmp/models/5b

Writes random weights with the official names and shapes for all three networks, and makes a video
of the same prompt and noise in each case, in one process. Whole is the time from the prompt to the
frames, with reading the weights; denoise is a part of it. Of the steps, the median times of those
that are computed and of those that are skipped are given. What is skipped with TeaCache depends on
the weights: with random ones it isn't what it would be with the official ones.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import mlx.core as mx

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.pipeline.resolved import ResolvedSettings

ROOT = Path(__file__).parents[1]
CASES = ["exact", "teacache", "first-block", "guidance", "balanced", "fast"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("variant", help="2b, 5b, 1.5-5b or demo")
    add("--steps", type=int, default=50, help="(default: 50)")
    add("--frames", type=int, help="(default: the model's own number)")
    add("--cases", nargs="+", default=CASES, choices=CASES, help="(default: all)")
    add("--folder", type=Path, help="folder to keep the weights in (default: a temporary one)")
    add("--share", type=Path, help="such a folder of another model, to link T5 and the VAE of")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = "demo" if args.variant == "demo" else prepare(args, args.folder or Path(name))
        compare(CogVideoXPipeline.from_pretrained(model), args)


def prepare(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model, which is made if it is missing."""
    model = folder / args.variant
    if not model.exists():
        script = ROOT / "tools" / "checks" / "random_checkpoint.py"
        share = [] if args.share is None else ["--share", args.share]
        subprocess.run([sys.executable, script, args.variant, model, *share], check=True)
    return model


def settings_of(case: str, args: argparse.Namespace) -> dict[str, str]:
    """The settings of a case."""
    return {"preset": case} if case in ("exact", "balanced", "fast") else {"cache": case}


def compare(pipe: CogVideoXPipeline, args: argparse.Namespace) -> None:
    common = {"seed": 1, "num_inference_steps": args.steps, "num_frames": args.frames}
    warm_up = pipe.request("a paper boat", **common | {"num_inference_steps": 2})
    measure(pipe, warm_up)
    size, first = warm_up.geometry, None
    print(
        f"{args.variant}, {pipe.dtype_name}, {size.num_frames} frames of {size.width}x"
        f"{size.height}, {args.steps} steps, {mx.default_device()}, MLX {mx.__version__}, "
        f"{mx.device_info().get('device_name', '')}, {platform.platform()}"
    )
    print(
        f"{'':12}{'computed':>10}{'whole':>9}{'denoise':>10}{'times faster':>14}"
        f"{'a step':>10}{'skipped':>10}"
    )
    for case in args.cases:
        request = pipe.request("a paper boat", **common, **settings_of(case, args))
        whole, steps, skipped = measure(pipe, request)
        computed = [each for i, each in enumerate(steps) if i not in skipped]
        others = [each for i, each in enumerate(steps) if i in skipped]
        denoise = sum(steps)
        first = first or whole
        print(
            f"{case:12}{len(computed):4} of {args.steps:<3}{whole:8.1f} s{denoise:8.1f} s"
            f"{first / whole:14.2f}{1e3 * median(computed):7.0f} ms"
            + (f"{1e3 * median(others):7.1f} ms" if others else ""),
            flush=True,
        )


def measure(
    pipe: CogVideoXPipeline, request: ResolvedSettings
) -> tuple[float, list[float], tuple[int, ...]]:
    """The seconds of a run and of each of its steps, and the steps that were skipped.

    The first step reads the weights.
    """
    start, before, steps, skipped = time.perf_counter(), None, [], ()
    for event in pipe.events(request):
        now = time.perf_counter()
        if event.stage == "denoise":
            if event.done:
                steps.append(now - before)
                skipped = event.run.denoising.skipped
            before = now
    return time.perf_counter() - start, steps, skipped


if __name__ == "__main__":
    main()
