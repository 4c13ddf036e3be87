"""``mlx-cogvideo convert``: makes a small model folder from an official checkpoint."""

import argparse
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from ..called import shell_word
from ..checkpoints import BUNDLED, hub_id
from ..checkpoints.components import DTYPES
from ..checkpoints.download import download_need, pending_bytes
from ..checkpoints.networks import NETWORKS
from ..checkpoints.sat import is_sat
from ..checkpoints.variants import ALIASES
from ..conversion import (
    ConversionPlan,
    check_free,
    convert,
    describe_folder,
    lock_destination,
)
from ..device import Need, check_room, free_space, size
from ..errors import InvalidInputError, NotDownloadedError, OutputError, alternatives
from ..nn.quantization import MODES, RECIPES, Quantization, layer_kind
from .announce import download_lines, report_download, show_lines
from .awake import awake
from .common import (
    BASE,
    Bars,
    WithScale,
    add_awake_option,
    be_quiet,
    run,
    warn_of_idle,
    with_help,
)
from .conversion_job import download_and_plan, plan_before_download
from .json_events import OPTION, JsonEvents, add_events_option
from .options import named, path
from .parser import Parser
from .publishing import find_repository, upload

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(convert_command, arguments)


def convert_command(arguments: Sequence[str], events: JsonEvents) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    events.start("convert", args.json_events)
    if args.quiet:
        be_quiet()
    if args.info is not None:
        warn_of_idle(parser, args, "--info", "--quiet", OPTION)
        report = describe_folder(args.info)
        events.tell("record", _table(report), path=args.info, record=report)
        return
    quantization = requested_quantization(args)
    _check_needs(args, quantization)
    check_free(args.mlx_path)
    lock = nullcontext() if args.dry_run else lock_destination(args.mlx_path)
    with lock, awake(args.caffeinate and not args.dry_run):
        _convert(args, quantization, events)


def _check_needs(args: argparse.Namespace, quantization: Quantization | None) -> None:
    """Raises InvalidInputError where an option has no effect, because it needs another one."""
    changes = quantization is not None or args.dequantize or args.dtype is not None
    is_official = not is_sat(Path(args.model))
    for option, given, applies, needs in (
        ("--quant-predicate", args.quant_predicate, quantization is not None, "-q"),
        ("--components", args.components, changes, "-q, --dequantize or --dtype"),
        ("--text-encoder", args.text_encoder, not is_official, "a checkpoint of the SAT code"),
        ("--revision", args.revision, is_official and hub_id(args.model), "a model of the hub"),
        ("--base", args.base, is_official, "a model folder: for the SAT code it's --text-encoder"),
    ):
        if given is not None and not applies:
            raise InvalidInputError(f"{option} needs {needs}")


def _convert(
    args: argparse.Namespace, quantization: Quantization | None, events: JsonEvents
) -> None:
    args.upload_repo = find_repository(args)
    if args.dry_run:
        plan, count = plan_before_download(args, quantization)
        _announce(plan, count, args.mlx_path, events)
        try:
            check_room(_needs(args, plan, count))
        except OutputError as error:
            logger.warning("%s", error)
        return
    is_announced = _announce_download(args, quantization, events)
    plan = download_and_plan(args, quantization)
    if not is_announced:
        _announce(plan, 0, args.mlx_path, events)
    report = _write(plan, args, events)
    if not is_sat(plan.folder) and (repo := hub_id(args.model)):
        logger.info(
            "the download isn't needed any more: hf cache rm model/%s frees its disk space", repo
        )
    if args.upload_repo:
        again = f"hf upload {args.upload_repo} {shell_word(args.mlx_path)} uploads it again"
        upload(args.mlx_path, args.upload_repo, again, events)
    events.tell("output", str(args.mlx_path), output=args.mlx_path, record=report)


def _announce_download(
    args: argparse.Namespace, quantization: Quantization | None, events: JsonEvents
) -> bool:
    """Says what is about to be downloaded, and what will be made of it.

    Returns:
        Whether the plan was announced: an official model's is known before its download.

    Raises:
        OutputError: a disk has no room for the download and the result.
    """
    if is_sat(Path(args.model)):
        return False
    count, plan = pending_bytes(args.model, args.revision, args.base), None
    if not count:
        return False
    with suppress(NotDownloadedError):  # a plan needs the configurations
        plan, _ = plan_before_download(args, quantization)
    check_room(_needs(args, plan, count))
    if plan is not None:
        _announce(plan, count, args.mlx_path, events)
    else:
        show_lines(download_lines(count))
    report_download(count, events)
    return plan is not None


def _needs(args: argparse.Namespace, plan: ConversionPlan | None, count: int) -> list[Need]:
    """The room that a download of so many bytes needs, and that of the result if it is known."""
    parent = args.mlx_path.absolute().parent
    result = [] if plan is None else [(parent, plan.bytes_after)]
    return [
        *download_need(count),
        *(Need(*each, "the result", "choose another --mlx-path") for each in result),
    ]


def _write(plan: ConversionPlan, args: argparse.Namespace, events: JsonEvents) -> dict[str, Any]:
    """Writes the model folder with a progress bar, and logs its report."""
    bars = Bars(events, quiet=args.quiet, unit="B", unit_scale=True, ncols=80)
    events.progress.time.work = {"bytes": sum(part.bytes_after for part in plan.components)}
    try:
        report = convert(plan, args.mlx_path, bars, args.upload_repo)
    finally:
        bars.close()
    for line in _table(report).splitlines():
        logger.info("%s", line)
    return report


def requested_quantization(args: argparse.Namespace) -> Quantization | None:
    """The quantization that -q, --q-bits, --q-group-size and --q-mode request together.

    Raises:
        InvalidInputError: they contradict each other, or MLX has no such mode.
    """
    if args.quantize is not None and args.q_bits not in (None, args.quantize):
        raise InvalidInputError(f"-q {args.quantize} and --q-bits {args.q_bits} differ: give one")
    bits = args.q_bits if args.quantize is None else args.quantize
    if bits is None and args.q_mode is None and args.q_group_size is None:
        return None
    if args.dequantize:
        raise InvalidInputError("--dequantize and quantization exclude each other: give one")
    return _quantization(args.q_mode or "affine", bits, args.q_group_size)


def _quantization(mode: str, bits: int | None, group_size: int | None) -> Quantization:
    """Fills in the mode's own bits and group size; raises InvalidInputError if it lacks these."""
    all_bits, all_sizes = MODES[mode]
    bits = bits or (4 if 4 in all_bits else all_bits[0])
    group_size = group_size or all_sizes[0]
    if bits not in all_bits:
        raise InvalidInputError(f"{mode} has {alternatives(all_bits)} bits; got {bits}")
    if group_size not in all_sizes:
        sizes = alternatives(sorted(all_sizes))
        raise InvalidInputError(f"{mode} has groups of {sizes}; got {group_size}")
    return Quantization(bits, group_size, mode)


def _announce(
    plan: ConversionPlan, to_download: int, destination: Path, events: JsonEvents
) -> None:
    """Says what will be downloaded and written, and the free disk space."""
    names = ("name", "bytes_before", "bytes_after")
    networks = [{name: getattr(part, name) for name in names} for part in plan.components]
    whole = {"bytes": plan.bytes_after, "output": destination, "download": to_download}
    events.emit("plan", model=str(plan.model), networks=networks, **whole)
    variant = f" ({plan.variant.name})" if plan.variant else ""
    lines = [("source", f"{plan.model}{variant}"), *download_lines(to_download)]
    lines.append(("into", str(destination)))
    lines += [("lora", f"{adapter.source} at {scale:g}") for adapter, scale in plan.adapters]
    show_lines(lines)
    for part in plan.components:
        before, after = size(part.bytes_before), size(part.bytes_after)
        bits = f"{part.bits_per_weight:.2f} bits a weight"
        logger.info("%-14s %9s -> %9s, %s", part.name, before, after, bits)
    parent = destination.absolute().parent
    free = free_space(parent)
    logger.info("%-14s %9s, %s free", "in all", size(plan.bytes_after), size(free))
    unfit = Counter(layer_kind(layer) for part in plan.components for layer in part.unfit)
    if unfit:
        logger.warning(
            "%d layers stay unquantized, because their width doesn't divide into groups: %s "
            "(conversion.json names them)",
            unfit.total(),
            ", ".join(f"{count} {kind}" for kind, count in unfit.items()),
        )


def _table(report: dict[str, Any]) -> str:
    """The table of a report, as lines of text."""
    lines = [f"{'part':14}{'size':>9}{'bits':>7}  quantized layers"]
    for name, component in report["components"].items():
        kinds = [
            f"{kind['layers']} {kind['kind']} at {kind['bits']} bits ({kind['mode']}, groups of "
            f"{kind['group_size']}" + (f", {kind['snr_db']} dB)" if kind.get("snr_db") else ")")
            for kind in component["kinds"]
        ]
        bytes_after, bits = size(component["bytes_after"]), component["bits_per_weight"]
        start = f"{name:14}{bytes_after:>9}{bits:7.2f}  "
        lines += [start + (kinds[0] if kinds else "none"), *(" " * 32 + k for k in kinds[1:])]
    return "\n".join(lines)


HELP = {
    "--hf-path": "convert this model: a folder, a hub id, an alias "
    f"({', '.join([*BUNDLED, *ALIASES])}), or a .pt file or folder of the original SAT code "
    "(default: 5b)",
    "--base": f"{BASE[0].lower()}{BASE[1:-1]} (default: none)",
    "--text-encoder": "take T5 and its tokenizer from this model if the source is a SAT checkpoint "
    "(default: 2b)",
    "--revision": "download this commit, branch or tag of a hub repository (default: main)",
    "--lora": "fuse an adapter (LoRA, DoRA or LoKr) into the transformer, multiplied by SCALE "
    "(default: 1); ADAPTER is a file, a folder, a hub id or a file in a hub repository; may be "
    "given several times",
    "--info": "print what a model folder holds, and exit",
    "-q": "quantize the weights to BITS bits; -q alone means 4 (default: don't quantize)",
    "--q-bits": "quantize the weights; the same as -q BITS",
    "--q-group-size": "let N weights share a scale (default: 64 for affine, 32 for mxfp4 and "
    "mxfp8, 16 for nvfp4)",
    "--q-mode": "quantize in this mode of MLX (default: affine)",
    "--quant-predicate": "choose the bits of each layer: standard keeps AdaLN and T5's wo in 8 "
    "bits, uniform makes no exceptions, mixed keeps more layers in 8 bits (default: standard)",
    "-d": "convert a quantized model back to 16 bits, in the official layout",
    "--dtype": "store all weights that aren't quantized in this type (default: the source's)",
    "--components": "quantize, dequantize or cast only these networks and copy the others "
    "(default: all)",
    "--mlx-path": "write the model to FOLDER, which must not exist (default: mlx_model)",
    "--upload-repo": "upload the result to a repository of the hub, such as me/my-model",
    "--dry-run": "print what would be written, and exit",
    "--quiet": "print only warnings and errors",
}

EXAMPLES = """\
examples:
  %(prog)s -q 4
      download CogVideoX-5B and write it in 4 bits to mlx_model
  %(prog)s --model 2b -q 8 --mlx-path cogvideox-2b-8bit
      write CogVideoX-2B in 8 bits to another folder
  %(prog)s --model 5b --lora adapters 0.8 --mlx-path cogvideox-5b-mine
      fuse a LoRA adapter with a weight of 0.8 into CogVideoX-5B, in 16 bits
"""


def make_parser() -> Parser:
    description = "Make a small model folder from an official CogVideoX checkpoint."
    parser = Parser("convert", lone="--model", description=description, epilog=EXAMPLES)
    add = with_help(parser, HELP)
    add("--hf-path", "--model", dest="model", type=named, default="5b")
    add("--base", type=named, metavar="MODEL")
    add("--text-encoder", type=named, metavar="MODEL")
    add("--revision", type=named)
    add("--lora", nargs="+", action=WithScale, metavar=("ADAPTER", "SCALE"))
    add("--info", type=path, metavar="FOLDER")
    add("-q", "--quantize", type=int, nargs="?", const=4, metavar="BITS")
    add("--q-bits", type=int, metavar="BITS")
    add("--q-group-size", type=int, metavar="N")
    add("--q-mode", choices=MODES)
    add("--quant-predicate", choices=RECIPES)
    add("-d", "--dequantize", action="store_true")
    add("--dtype", choices=DTYPES)
    add("--components", nargs="+", choices=NETWORKS)
    add("--mlx-path", type=path, default=Path("mlx_model"), metavar="FOLDER")
    add("--upload-repo", type=named, metavar="REPO")
    add("--dry-run", action="store_true")
    add_awake_option(parser.add_argument)
    add("--quiet", action="store_true")
    add_events_option(parser.add_argument)
    return parser
