"""``check``: are this machine's numbers right, and what can it do?"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 is to be float32 on CUDA and an M5, too

from ..checkpoints import DEMO_PATH
from ..checkpoints.components import DTYPES
from ..device import size
from ..errors import OutputError, mlx_errors
from ..files import locked
from ..machine.kernels import Kernel, check_kernels
from ..machine.speed import MAC_SIZES, Ceilings, measure_ceilings, report
from ..machine.stages import Result, check_stages
from ..nn.backend import on_gpu
from ..video.paths import publish, write_temporary
from .common import FAILED, Parser, duration, run, say

NO_GPU = "the convolutions and the attention of official widths: there is no GPU here"


def main(arguments: Sequence[str] | None = None) -> int:
    return run(check, arguments)


def check(arguments: Sequence[str] | None) -> int | None:
    args = make_parser().parse_args(arguments)
    if args.report is None:
        return _check(args)
    with locked(args.report, "choose another --report"):
        if args.report.exists():
            raise OutputError(f"{args.report} exists: remove it, or choose another name")
        return _check(args)


def _check(args: argparse.Namespace) -> int | None:
    with mlx_errors():
        results = {name: _checked(name, args) for name in args.dtype or ("float32",)}
        kernels = [_shown(kernel, args) for kernel in check_kernels(DTYPES)]
        wrong = _wrong(results, kernels)
        told = {
            "right": not wrong,
            "stages": _as_json(results),
            "kernels": [{**asdict(kernel), "right": kernel.right} for kernel in kernels],
            "not_compared": [] if on_gpu() else [NO_GPU],
        }
        if not args.stages_only:
            told |= report([measure_ceilings(dtype) for dtype in DTYPES.values()])
    if args.json:
        print(json.dumps(told))
    else:
        _print(told)
    if args.report is not None:
        _write(args.report, told)
    if wrong:
        say(f"error: these stages give wrong numbers here: {', '.join(wrong)}")
    return FAILED if wrong else None


def _wrong(results: dict[str, list[Result]], kernels: list[Kernel]) -> list[str]:
    """The names of what is wrong."""
    stages = [r.stage for of_dtype in results.values() for r in of_dtype if not r.right]
    return stages + [f"{k.stage} in {k.dtype} ({k.snr_db} dB)" for k in kernels if not k.right]


def _write(file: Path, told: dict[str, Any]) -> None:
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    publish(write_temporary(file, text.encode()), file, overwrite=False)
    say(f"{file} holds all of this: please attach it to an issue")


def _checked(name: str, args: argparse.Namespace) -> list[Result]:
    results = []
    for result in check_stages(args.model, DTYPES[name]):
        results.append(result)
        if not args.json:
            limit = f"of {result.tolerance:.0e}" if result.tolerance else ""
            _print_stage(name, result.stage, result.right, f"{result.error:.1e} {limit}")
    return results


def _shown(kernel: Kernel, args: argparse.Namespace) -> Kernel:
    if not args.json:
        told = f"{kernel.snr_db} dB of {kernel.limit_db:g}"
        _print_stage(kernel.dtype, kernel.stage, kernel.right, told)
    return kernel


def _print_stage(dtype: str, stage: str, right: bool, told: str) -> None:
    print(f"{dtype:9} {stage:34} {'right' if right else 'WRONG':6} {told}", flush=True)


def _as_json(results: dict[str, list[Result]]) -> dict[str, list[dict]]:
    return {
        name: [{**asdict(result), "right": result.right} for result in of_dtype]
        for name, of_dtype in results.items()
    }


def _print(told: dict[str, Any]) -> None:
    for what in told["not_compared"]:
        print(f"not compared: {what}")
    if "device" not in told:
        return
    print()
    for name in ("device", "system", "mlx", "wheel", "mlx_cogvideo", "python"):
        if told[name]:
            print(f"{name:13}{told[name]}")
    print(f"{'memory':13}{size(told['memory'])}, {size(told['available'])} available now")
    if told["neural_accelerators"] is not None:
        print(f"{'accelerators':13}{'used' if told['neural_accelerators'] else 'not used'}")
    print(f"{'dtype':13}{told['dtype']}")
    for note in told["notes"]:
        print(f"{'note':13}{note}")
    print("\n           products   attention        copies")
    for ceilings in (Ceilings(**c) for c in told["ceilings"]):
        rates = f"{_tera(ceilings.matmul)} {_tera(ceilings.attention)}"
        print(f"{ceilings.dtype:9} {rates} {ceilings.bandwidth / 1e9:8.0f} GB/s")
    print("\nOn this machine, at the model's own size and with guidance; an estimate:")
    print(f"{'':12} {'a step':>9} {'50 steps':>10} {'16 bits':>10} {'4 bits':>10}  take")
    for row in told["outlook"]:
        step = f"{row['step']:.1f} s" if row["step"] < 99.5 else duration(row["step"])
        needs = (size(row[name]) for name in ("memory", "memory_packed"))
        both = " ".join(f"{need:>10}" for need in needs)
        print(f"{row['variant']:12} {step:>9} {duration(row['video']):>10} {both}  {row['advice']}")
    print("\n" + macs_table(told["macs"]))


def macs_table(choices: list[dict[str, Any]]) -> str:
    """What is chosen on Macs of all sizes, as lines of text.

    Args:
        choices: `machine.speed.Choice` as dictionaries, with ``fits``.
    """
    lines = [
        "Memory in GiB on Macs of so many GB (e: the VAE in strips, t: in tiles, w: whole frames;",
        "s: the passes of guidance one after the other; -: more than the GPU may have there):",
        f"{'':20}" + "".join(f"{f'{gigabytes} GB':>9}" for gigabytes in MAC_SIZES),
    ]
    for (variant, bits), row in groupby(choices, key=lambda c: (c["variant"], c["bits"])):
        cells = "".join(f"{_cell(choice):>9}" for choice in row)
        lines.append(f"{variant:12}{bits:8}{cells}")
    return "\n".join(lines)


def _cell(choice: dict[str, Any]) -> str:
    mode = {"none": "w", "seamless": "e", "tiled": "t"}[choice["tiling"]]
    mode += "s" * choice["split_guidance"]
    return f"{choice['memory'] / 2**30:.1f} {mode}" if choice["fits"] else "-"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:6.2f} TFLOP/s" if rate < 1e14 else f"{rate / 1e12:6.0f} TFLOP/s"


def make_parser() -> Parser:
    parser = Parser(
        prog="mlx_cogvideo.check",
        description="Compare the bundled demo's stages with what PyTorch gives, and on a GPU the "
        "kernels of official models with float32 on the CPU; estimate what the official models "
        "will take on this machine.",
    )
    add = parser.add_argument
    add("--dtype", choices=DTYPES, nargs="+", help="of the comparison (default: float32)")
    add("--stages-only", action="store_true", help="only compare")
    add("--model", type=Path, default=DEMO_PATH, help="a copy of the demo to compare")
    add("--json", action="store_true", help="print one line of JSON")
    add(
        "--report", type=Path, metavar="FILE", help="write all of it to FILE, to attach to an issue"
    )
    return parser
