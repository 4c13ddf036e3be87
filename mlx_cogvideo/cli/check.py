"""``mlx-cogvideo check``: checks this machine's numbers and measures its speed."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # so that float32 is exact on CUDA and an M5, too

from ..checkpoints import DEMO_PATH
from ..checkpoints.components import DTYPES
from ..checkpoints.resolve import resolve_base
from ..device import size
from ..distributed import Distributed
from ..errors import CogVideoXError, OutputError, mlx_errors
from ..files import locked
from ..machine.kernels import check_kernels
from ..machine.link import report_together
from ..machine.measured import keep_measured
from ..machine.speed import MAC_SIZES, Ceilings, measure_ceilings, report
from ..machine.stages import check_stages
from ..machine.system import describe
from ..nn.backend import on_gpu
from ..video.paths import publish, write_temporary
from .common import BASE, FAILED, duration, run, say, with_help
from .json_events import JsonEvents, add_events_option
from .options import named, path
from .parser import Parser

NO_GPU = "the convolutions and the attention of official widths: there is no GPU here"


def main(arguments: Sequence[str] | None = None) -> int:
    return run(check, arguments)


def check(arguments: Sequence[str], events: JsonEvents) -> int | None:
    args = make_parser().parse_args(arguments)
    distributed = Distributed.connect()
    events.start("check", args.json_events, is_main=distributed.is_main)
    if not distributed.is_main:
        if not args.stages_only:
            _measure(distributed)
        return None
    if args.report is None:
        return _check(args, events, distributed)
    with locked(args.report, "choose another --report"):
        if args.report.exists():
            raise OutputError(f"{args.report} exists: remove it, or choose another name")
        return _check(args, events, distributed)


def _measure(distributed: Distributed) -> dict[str, Any]:
    """Measures this machine, and what it and others can do together."""
    ceilings = [measure_ceilings(dtype) for dtype in DTYPES.values()]
    keep_measured(ceilings)
    together = report_together(distributed, ceilings) if distributed.size > 1 else None
    return {**report(ceilings), "together": together}


def _check(args: argparse.Namespace, events: JsonEvents, distributed: Distributed) -> int | None:
    results: dict[str, Any] = {"right": False, "stages": {}, "kernels": []}
    results["not_compared"] = [] if on_gpu() else [NO_GPU]
    if not args.stages_only:
        results |= describe()
    try:
        with mlx_errors(out_of_memory="close other programs"):
            wrong = _compare(results, args, events)
            if not args.stages_only:
                results |= _measure(distributed)
    except (CogVideoXError, KeyboardInterrupt) as error:
        # A report is needed most from a machine that can't finish the check.
        if args.report is not None:
            _write(args.report, results | {"right": False, "error": str(error) or "interrupted"})
        raise
    if events.on:
        events.emit("record", path=args.report, record=results)
    elif args.json:
        print(json.dumps(results))
    else:
        _print(results, wrong)
    if args.report is not None:
        _write(args.report, results)
    if wrong:
        say(f"error: these stages give wrong numbers here: {', '.join(wrong)}")
    return FAILED if wrong else None


def _compare(results: dict[str, Any], args: argparse.Namespace, events: JsonEvents) -> list[str]:
    """Adds each comparison to `results` as it is made; returns the names of the wrong ones."""
    wrong = []
    base = resolve_base(args.base, args.model) if args.base is not None else None
    for name in args.dtype or ("float32",):
        results["stages"][name] = []
        for result in check_stages(args.model, DTYPES[name], base):
            results["stages"][name].append({**asdict(result), "right": result.right})
            limit = f", at most {result.tolerance:.0e}" if result.tolerance else ""
            measured = f"{result.error:.1e}{limit}"
            _print_stage(args, events, name, result.stage, result.right, measured)
            if not result.right:
                wrong.append(result.stage)
    for kernel in check_kernels(DTYPES):
        results["kernels"].append({**asdict(kernel), "right": kernel.right})
        measured = f"{kernel.snr_db} dB, at least {kernel.limit_db:g}"
        _print_stage(args, events, kernel.dtype, kernel.stage, kernel.right, measured)
        if not kernel.right:
            wrong.append(f"{kernel.stage} in {kernel.dtype} ({kernel.snr_db} dB)")
    results["right"] = not wrong
    return wrong


def _write(file: Path, results: dict[str, Any]) -> None:
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    publish(write_temporary(file, text.encode()), file, overwrite=False)
    say(f"{file} holds all of this: please attach it to an issue")


def _print_stage(
    args: argparse.Namespace,
    events: JsonEvents,
    dtype: str,
    stage: str,
    right: bool,
    measured: str,
) -> None:
    if not args.json:
        text = f"{dtype:9} {stage:34} {'right' if right else 'WRONG':6} {measured}"
        fields = {"dtype": dtype, "stage": stage, "right": right, "measured": measured}
        events.tell("comparison", text, **fields)


def _print(results: dict[str, Any], wrong: list[str]) -> None:
    count = sum(map(len, results["stages"].values())) + len(results["kernels"])
    print()
    print(f"{len(wrong)} of {count} are wrong" if wrong else f"all {count} comparisons are right")
    for name in results["not_compared"]:
        print(f"not compared: {name}")
    if "device" in results:
        _print_machine(results)
        _print_ceilings(results["ceilings"])
        _print_outlook(results["outlook"], results["disk_free"])
        print("\n" + macs_table(results["macs"]))
        if results["together"] is not None:
            _print_together(results["together"])


def _print_together(together: dict[str, Any]) -> None:
    count, rate = len(together["machines"]), together["link"] / 1e9
    print(f"\n{count} processes, over {rate:.2g} GB/s; an estimate of a step:")
    for row in together["steps"]:
        print(f"{row['variant']:12} {_seconds(row['alone'])} on this machine alone")
        for way in row["together"]:
            print(f"{'':12} {_seconds(way['seconds'])} with {way['options']}")


def _print_machine(results: dict[str, Any]) -> None:
    print()
    for name in ("device", "system", "mlx", "wheel", "mlx_cogvideo", "python"):
        if results[name]:
            print(f"{name:13}{results[name]}")
    print(f"{'memory':13}{size(results['memory'])}, {size(results['available'])} available now")
    if results["neural_accelerators"] is not None:
        print(f"{'accelerators':13}{'used' if results['neural_accelerators'] else 'not used'}")
    print(f"{'dtype':13}{results['dtype']}")
    for note in results["notes"]:
        print(f"{'note':13}{note}")


def _print_ceilings(rows: list[dict[str, Any]]) -> None:
    print("\n           products   attention        copies")
    for ceilings in (Ceilings(**row) for row in rows):
        rates = f"{_tera(ceilings.matmul)} {_tera(ceilings.attention)}"
        print(f"{ceilings.dtype:9} {rates} {ceilings.bandwidth / 1e9:8.0f} GB/s")


def _print_outlook(rows: list[dict[str, Any]], free: int) -> None:
    print("\nOn this machine, at the model's own size and with guidance; an estimate:")
    titles = (f"{title:>10}" for title in ("50 steps", "16 bits", "4 bits", "download"))
    print(f"{'':12} {'a step':>9} {' '.join(titles)}  take")
    for row in rows:
        step = _seconds(row["step"])
        needs = (size(row[name]) for name in ("memory", "memory_packed"))
        both = " ".join(f"{need:>10}" for need in needs)
        download = size(row["download"]) if row["download"] else "none"
        times = f"{step:>9} {duration(row['video']):>10}"
        print(f"{row['variant']:12} {times} {both} {download:>10}  {row['advice']}")
    too_large = [row["variant"] for row in rows if row["download"] > free]
    print(
        f"The disk of the downloads has {size(free)} free"
        + (f": no room for {', '.join(too_large)}" if too_large else "")
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 99.5 else duration(seconds)


def macs_table(choices: list[dict[str, Any]]) -> str:
    """The choices on Macs of all sizes, as lines of text.

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
    mode = {"none": "w", "exact": "e", "tiled": "t"}[choice["tiling"]]
    passes = "s" if choice["split_guidance"] else ""
    return f"{choice['memory'] / 2**30:.1f} {mode}{passes}" if choice["fits"] else "-"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:6.2f} TFLOP/s" if rate < 1e14 else f"{rate / 1e12:6.0f} TFLOP/s"


DESCRIPTION = """\
Compare the stages of the bundled demo with PyTorch's values and, on a GPU, the
kernels of official models with float32 on the CPU. Estimate the time and memory
that the official models need on this machine.
"""
EXAMPLES = """\
examples:
  %(prog)s
      compare in float32 and print what this machine can do
  %(prog)s --dtype float32 bfloat16 float16 --stages-only
      compare in all dtypes and measure nothing
  %(prog)s --report report.json
      write the results to a file that can be attached to an issue
"""


HELP = {
    "--dtype": "compare the stages in these dtypes (default: float32)",
    "--stages-only": "only compare; don't measure speed or estimate what models need",
    "--model": "compare a copy of the demo in FOLDER (default: the bundled demo)",
    "--base": f"{BASE[0].lower()}{BASE[1:-1]} (default: none)",
    "--json": "print the results as one line of JSON",
    "--report": "write the results to a new JSON file, which can be attached to an issue",
}


def make_parser() -> Parser:
    parser = Parser("check", lone="--model", description=DESCRIPTION, epilog=EXAMPLES)
    add = with_help(parser, HELP)
    add("--dtype", choices=DTYPES, nargs="+")
    add("--stages-only", action="store_true")
    add("--model", type=path, default=DEMO_PATH, metavar="FOLDER")
    add("--base", type=named, metavar="MODEL")
    results = parser.add_mutually_exclusive_group()
    with_help(results, HELP)("--json", action="store_true")
    add_events_option(results.add_argument)
    add("--report", type=path, metavar="FILE")
    return parser
