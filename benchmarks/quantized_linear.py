"""Times two methods of multiplying with a quantized weight, by number of rows.

    python benchmarks/quantized_linear.py

`mx.quantized_matmul` reads the packed weight while it multiplies. The other method unpacks the
weight to 16 bits first and multiplies then. The table has the median milliseconds of each, and of
the product with the unquantized weight, for shapes of CogVideoX-5B and T5-XXL.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import mlx.core as mx

SHAPES = {
    "attention": (3072, 3072),
    "feed-forward in": (3072, 12288),
    "feed-forward out": (12288, 3072),
    "T5 feed-forward": (4096, 10240),
}
"""Numbers of inputs and outputs."""

ROWS = (1, 2, 16, 64, 128, 226, 452, 1024, 4096, 17776, 35552)


def milliseconds(repeats: int, compute: Callable[..., mx.array], *arrays: mx.array) -> float:
    mx.eval(compute(*arrays))
    mx.eval(compute(*arrays))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(compute(*arrays))
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--bits", type=int, nargs="+", default=[4, 8], help="bits to time (default: 4 8)"
    )
    parser.add_argument(
        "--group-size", type=int, default=64, help="weights that share a scale (default: 64)"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows to time")
    parser.add_argument("--repeats", type=int, default=10, help="products to time (default: 10)")
    args = parser.parse_args()

    print(f"{mx.default_device()}, MLX {mx.__version__}, {platform.platform()}, bfloat16")
    print(f"{'layer':18}{'bits':>5}{'rows':>7}{'packed':>10}{'unpacked':>10}{'16-bit':>10}")
    for (name, (inputs, outputs)), bits in product(SHAPES.items(), args.bits):
        how = {"group_size": args.group_size, "bits": bits}
        weight = mx.random.normal((outputs, inputs), mx.bfloat16, scale=0.02)
        packed = mx.quantize(weight, **how)
        mx.eval(weight, packed)
        methods = (
            (partial(mx.quantized_matmul, **how), packed),
            (partial(unpack_and_multiply, **how), packed),
            (lambda x, weight: x @ weight.T, (weight,)),
        )
        for rows in args.rows:
            x = mx.random.normal((rows, inputs), mx.bfloat16)
            mx.eval(x)
            times = [milliseconds(args.repeats, compute, x, *w) for compute, w in methods]
            print(f"{name:18}{bits:5}{rows:7}" + "".join(f"{t:10.3f}" for t in times))


def unpack_and_multiply(x: mx.array, *packed: mx.array, **how: int) -> mx.array:
    return x @ mx.dequantize(*packed, **how).T


if __name__ == "__main__":
    main()
