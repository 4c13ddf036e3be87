"""Measures time and memory of a whole run at full size, and compares estimates.

    python benchmarks/run.py 5b --bits 4
    python benchmarks/run.py 5b --bits 4 --memory-limit 6 --steps 2

Writes random weights with the official names and shapes for all three networks, quantizes them
with the converter, and then calls `generate.py` as a user would, at the model's own size. Further
options are passed on to it. Memory is the peak that MLX allocated, weights included, and what was
estimated. The folder is as large as the official model (5B: 21 GB, and 7 in 4 bits).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx

from mlx_cogvideo import CogVideoXPipeline
from mlx_cogvideo.pipeline.estimates import estimate_memory
from mlx_cogvideo.pipeline.resolver import resolve
from mlx_cogvideo.runs.settings import video_settings

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("variant", help="2b, 5b, 1.5-5b; or with --image, an image-to-video model")
    add("--bits", type=int, help="bits of the weights (default: 16)")
    add("--steps", type=int, default=50, help="denoising steps (default: 50)")
    add("--folder", type=Path, help="folder to keep the checkpoints in (default: a temporary one)")
    args, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        model = prepare(args, folder)
        output = folder / f"video-{args.bits}.mp4"
        command = [
            sys.executable,
            ROOT / "generate.py",
            "--model",
            model,
            "--prompt",
            "a paper boat",
        ]
        command += ["--steps", args.steps, "--seed", 1, "--output", output, "--overwrite", "--json"]
        done = subprocess.run(
            [str(word) for word in [*command, "--quiet", *rest]], stdout=subprocess.PIPE, check=True
        )
        (video,) = json.loads(done.stdout)["made"]
        record = video["record"]
        pipe = CogVideoXPipeline.from_pretrained(model)
        request = resolve(pipe, video_settings(record["settings"]))
        estimated = estimate_memory(pipe, request)
        size = request.geometry
        title = [
            args.variant,
            f"{args.bits or 16} bits",
            f"{size.num_frames} frames of {size.width}x{size.height}",
            f"{args.steps} steps",
            *[" ".join(rest)] * bool(rest),
            f"{mx.default_device()}, MLX {mx.__version__}, {platform.platform()}",
        ]
        print(", ".join(title))
        print(f"{'':12}{'seconds':>10}{'peak GiB':>10}{'estimated':>11}")
        for stage, seconds in record["timings"].items():
            peak, expected = record["peak_memory"][stage] / 2**30, estimated[stage] / 2**30
            print(f"{stage:12}{seconds:10.1f}{peak:10.2f}{expected:11.2f}")
        print(f"{'whole':12}{sum(record['timings'].values()):10.1f}")


def prepare(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model, which is made if it is missing."""
    whole = folder / args.variant
    if not whole.exists():
        script = ROOT / "tools" / "checks" / "random_checkpoint.py"
        subprocess.run([sys.executable, script, args.variant, whole], check=True)
    if args.bits is None:
        return whole
    packed = folder / f"{args.variant}-{args.bits}"
    if not packed.exists():
        convert = [sys.executable, "-m", "mlx_cogvideo.convert", "--quiet", "--hf-path", whole]
        convert += ["--mlx-path", packed, "-q", args.bits]
        subprocess.run([str(word) for word in convert], check=True, cwd=ROOT)
    return packed


if __name__ == "__main__":
    main()
