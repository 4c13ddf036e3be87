"""Measures how a quantized transformer is loaded: from a converted folder, and with `-q BITS`.

    python benchmarks/quantize.py 5b --bits 4

Writes random weights with the official names and shapes in bfloat16 (5B: 11 GB), and converts them
(4 bits: 3.6 GB). Each case then loads the transformer in a process of its own. Memory is the peak
that MLX allocated, and the largest resident set of the process beyond what it had after its
imports. The weights are what stays. The digest is of all numbers of the loaded network: both cases
should have the same.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

from cases import run_apart
from step import packed

CASES = ("converted", "quantized")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("variant", help="2b, 5b, 5b-i2v, 1.5-5b or 1.5-5b-i2v")
    add("--bits", type=int, default=4, help="bits of the weights (default: 4)")
    add("--folder", type=Path, help="folder to keep the checkpoints in (default: a temporary one)")
    add("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run_case(args)))
        return
    with tempfile.TemporaryDirectory() as name:
        args.folder = (args.folder or Path(name)) / args.variant
        compare(args)


def compare(args: argparse.Namespace) -> None:
    import mlx.core as mx

    prepare(args)
    print(
        f"{args.variant}, {args.bits} bits, {mx.default_device()}, MLX {mx.__version__}, "
        f"{platform.platform()}"
    )
    print(f"{'':16}{'seconds':>9}{'weights GiB':>13}{'peak GiB':>10}{'resident GiB':>14}  digest")
    for case, title in zip(CASES, ("converted", f"-q {args.bits}"), strict=True):
        command = [sys.executable, __file__, args.variant, "--bits", str(args.bits)]
        command += ["--folder", str(args.folder), "--case", case]
        done = run_apart(f"{title:16}", command, capture_output=True)
        if done is None:
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        gib = [found[name] / 2**30 for name in ("weights", "peak", "resident")]
        print(
            f"{title:16}{found['seconds']:9.1f}{gib[0]:13.2f}{gib[1]:10.2f}{gib[2]:14.2f}  "
            f"{found['digest']}",
            flush=True,
        )


def prepare(args: argparse.Namespace) -> None:
    """Writes the checkpoint and its converted copy where they are missing."""
    import mlx.core as mx
    from official import TRANSFORMERS
    from random_checkpoint import write_component, write_json

    from mlx_cogvideo.checkpoints import DEMO_PATH, SHARED_KEY

    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "transformer").exists():
        variant = args.variant.replace("-", "_")
        write_component(args.folder / "transformer", variant, TRANSFORMERS[variant], mx.bfloat16)
        index = {"_class_name": "CogVideoXPipeline", SHARED_KEY: str(DEMO_PATH)}
        write_json(args.folder / "model_index.json", index)
    packed(args.folder, args.bits)


def run_case(args: argparse.Namespace) -> dict[str, float | str]:
    import mlx.core as mx

    from mlx_cogvideo import CogVideoXPipeline

    before = resident()
    start = time.perf_counter()
    if args.case == "converted":
        pipe = CogVideoXPipeline.from_pretrained(packed(args.folder, args.bits), "bfloat16")
    else:
        pipe = CogVideoXPipeline.from_pretrained(args.folder, "bfloat16", quantize=args.bits)
    network = pipe.transformer
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "weights": mx.get_active_memory(),
        "peak": mx.get_peak_memory(),
        "resident": resident() - before,
        "digest": digest(network),
    }


def resident() -> int:
    """The largest number of bytes that this process has had in memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def digest(network) -> str:
    """A digest of the names, types and bytes of a network's parameters."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    found = blake2b(digest_size=8)
    for name, array in sorted(tree_flatten(network.parameters())):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.array(array.view(mx.uint8)))
    return found.hexdigest()


if __name__ == "__main__":
    main()
