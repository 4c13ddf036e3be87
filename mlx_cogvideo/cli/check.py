"""``check``: are this machine's numbers right, and what can it do?"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 is to be float32 on CUDA, too

from ..checkpoints import DEMO_PATH
from ..errors import mlx_errors
from ..machine import Ceilings, measure_ceilings, report
from ..memory import size
from ..stages import Result, check_stages
from .common import DTYPES, FAILED, Parser, duration, run, say


def main(arguments: Sequence[str] | None = None) -> int:
    return run(check, arguments)


def check(arguments: Sequence[str] | None) -> int | None:
    args = make_parser().parse_args(arguments)
    with mlx_errors():
        results = {name: _checked(name, args) for name in args.dtype or ("float32",)}
        right = all(result.right for of_dtype in results.values() for result in of_dtype)
        told = {"right": right, "stages": _as_json(results)}
        if not args.stages_only:
            told |= report([measure_ceilings(dtype) for dtype in DTYPES.values()])
    if args.json:
        print(json.dumps(told))
    elif not args.stages_only:
        _print(told)
    if not right:
        wrong = ", ".join(r.stage for of_dtype in results.values() for r in of_dtype if not r.right)
        say(f"error: these stages give wrong numbers here: {wrong}")
    return None if right else FAILED


def _checked(name: str, args) -> list[Result]:
    results = []
    for result in check_stages(args.model, DTYPES[name]):
        results.append(result)
        if not args.json:
            verdict = "right" if result.right else "WRONG"
            limit = f"of {result.tolerance:.0e}" if result.tolerance else ""
            print(f"{name:9} {result.stage:24} {verdict:6} {result.error:.1e} {limit}", flush=True)
    return results


def _as_json(results: dict[str, list[Result]]) -> dict[str, list[dict]]:
    return {
        name: [{**asdict(result), "right": result.right} for result in of_dtype]
        for name, of_dtype in results.items()
    }


def _print(told: dict) -> None:
    print()
    for name in ("device", "system", "mlx", "mlx_cogvideo"):
        print(f"{name:13}{told[name]}")
    print(f"{'memory':13}{size(told['memory'])} can be had")
    print(f"{'dtype':13}{told['dtype']}")
    print("\n           products   attention        copies")
    for ceilings in (Ceilings(**c) for c in told["ceilings"]):
        rates = f"{_tera(ceilings.matmul)} {_tera(ceilings.attention)}"
        print(f"{ceilings.dtype:9} {rates} {ceilings.bandwidth / 1e9:8.0f} GB/s")
    print("\nAt its own size, with guidance; an estimate:")
    print(f"{'':12} {'a step':>9} {'50 steps':>10} {'16 bits':>10} {'4 bits':>10}  take")
    for row in told["outlook"]:
        step = f"{row['step']:.1f} s" if row["step"] < 99.5 else duration(row["step"])
        needs = (size(row[name]) for name in ("memory", "memory_packed"))
        both = " ".join(f"{need:>10}" for need in needs)
        print(f"{row['variant']:12} {step:>9} {duration(row['video']):>10} {both}  {row['advice']}")


def _tera(rate: float) -> str:
    return f"{rate / 1e12:6.2f} TFLOP/s" if rate < 1e14 else f"{rate / 1e12:6.0f} TFLOP/s"


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx_cogvideo.check",
        description="Compare the bundled demo's stages with what PyTorch gives, and estimate what "
        "the official models will take on this machine.",
    )
    add = parser.add_argument
    add("--dtype", choices=DTYPES, nargs="+", help="of the comparison (default: float32)")
    add("--stages-only", action="store_true", help="only compare")
    add("--model", type=Path, default=DEMO_PATH, help="a copy of the demo to compare")
    add("--json", action="store_true", help="print one line of JSON")
    return parser
