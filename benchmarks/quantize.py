"""Measures how long and in how much memory networks are loaded with `-q BITS`.

    python benchmarks/quantize.py 5b --bits 4

Writes random weights in bfloat16 with the official names and shapes, and a converted copy to
compare with (5B: 21 GB, and 7 in 4 bits). Each case loads a network in a process of its own.
Memory is what the weights take, the peak that MLX allocated, and the largest resident set of the
process without that of its imports. The digest is of all parameters: converted and quantized while
loading, they should be the same.
"""

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
from hashlib import blake2b
from itertools import product
from pathlib import Path

import mlx.core as mx
import numpy as np
from cases import run_apart
from mlx.utils import tree_flatten
from run import prepare

from mlx_cogvideo import CogVideoXPipeline

NETWORKS = ("transformer", "text_encoder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("variant", help="2b, 5b, 5b-i2v, 1.5-5b or 1.5-5b-i2v")
    add("--bits", type=int, default=4, help="bits of the weights (default: 4)")
    add("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="networks to load")
    add("--folder", type=Path, help="folder to keep the checkpoints in (default: a temporary one)")
    add("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(load(*args.case)))
        return
    with tempfile.TemporaryDirectory() as name:
        compare(args, args.folder or Path(name))


def compare(args: argparse.Namespace, folder: Path) -> None:
    converted = prepare(args, folder)
    print(
        f"{args.variant}, {args.bits} bits, bfloat16, {mx.default_device()}, MLX "
        f"{mx.__version__}, {platform.platform()}"
    )
    print(f"{'':24}{'seconds':>9}{'weights GiB':>13}{'peak GiB':>10}{'resident GiB':>14}  digest")
    cases = {"converted": (converted, ""), f"-q {args.bits}": (folder / args.variant, args.bits)}
    for network, (case, (model, bits)) in product(args.networks, cases.items()):
        title = f"{network}, {case}"
        command = [sys.executable, __file__, args.variant, "--case", network, str(model), str(bits)]
        done = run_apart(f"{title:24}", command, capture_output=True)
        if done is not None:
            found = json.loads(done.stdout.splitlines()[-1])
            weights, peak, resident = (size / 2**30 for size in found["bytes"])
            print(
                f"{title:24}{found['seconds']:9.1f}{weights:13.2f}{peak:10.2f}{resident:14.2f}  "
                f"{found['digest']}",
                flush=True,
            )


def load(name: str, model: str, bits: str) -> dict:
    """Loads a network and returns what that took.

    Args:
        bits: to quantize to; empty for a model that is converted.
    """
    before, start = largest_resident(), time.perf_counter()
    pipe = CogVideoXPipeline.from_pretrained(
        model, "bfloat16", quantize=int(bits) if bits else None
    )
    network = getattr(pipe, name)
    return {
        "seconds": time.perf_counter() - start,
        "bytes": [mx.get_active_memory(), mx.get_peak_memory(), largest_resident() - before],
        "digest": digest(network),
    }


def largest_resident() -> int:
    """Bytes of this process's largest resident set so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def digest(network) -> str:
    """A digest of the names, dtypes, shapes and bytes of all parameters."""
    found = blake2b(digest_size=8)
    for name, array in sorted(tree_flatten(network.parameters()), key=lambda each: each[0]):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.array(array.view(mx.uint8)))
    return found.hexdigest()


if __name__ == "__main__":
    main()
