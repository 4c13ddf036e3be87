"""Times a whole run at full size, stage by stage, and measures its memory beside what was foretold.

    python benchmarks/run.py 5b --bits 4
    python benchmarks/run.py 5b --bits 4 --memory-limit 6 --steps 2

Random weights of the official names and shapes, all three networks, packed by the converter; then
`generate.py` as a user would call it, at the model's own size. Memory is what MLX allocated at
most, weights included. The folder is as large as the real model (5B: 21 GB, and 7 in 4 bits).
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
from mlx_cogvideo.runs.record import request_again

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("variant", help="2b, 5b, 1.5-5b (or an image-to-video one, with --image among the rest)")
    add("--bits", type=int, help="default: 16")
    add("--steps", type=int, default=50)
    add("--folder", type=Path, help="where the checkpoints are, or will be and stay")
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
        request = request_again(pipe, record["settings"])
        foretold = estimate_memory(pipe, request)
        size = request.geometry
        told = [
            args.variant,
            f"{args.bits or 16} bits",
            f"{size.num_frames} frames of {size.width}x{size.height}",
            f"{args.steps} steps",
            *[" ".join(rest)] * bool(rest),
            f"{mx.default_device()}, MLX {mx.__version__}, {platform.platform()}",
        ]
        print(", ".join(told))
        print(f"{'':12}{'seconds':>10}{'peak GiB':>10}{'foretold':>10}")
        for stage, seconds in record["timings"].items():
            peak, expected = record["peak_memory"][stage] / 2**30, foretold[stage] / 2**30
            print(f"{stage:12}{seconds:10.1f}{peak:10.2f}{expected:10.2f}")
        print(f"{'whole':12}{sum(record['timings'].values()):10.1f}")


def prepare(args: argparse.Namespace, folder: Path) -> Path:
    """The model's folder, made if it isn't there."""
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
