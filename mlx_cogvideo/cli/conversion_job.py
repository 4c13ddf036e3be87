"""What a conversion is asked for: its plan, before and after the download."""

import argparse
from pathlib import Path

from ..checkpoints import hub_id, resolve_configuration, resolve_model, resolve_text_encoder
from ..checkpoints.compatibility import check_model
from ..checkpoints.components import DTYPES
from ..checkpoints.networks import NETWORKS
from ..checkpoints.official import NotDownloaded, find_parts, not_downloaded
from ..checkpoints.resolve import Base, resolve_base
from ..checkpoints.sat import is_sat, open_sat
from ..checkpoints.variants import Variant
from ..conversion import ConversionPlan, plan_conversion
from ..nn.quantization import Quantization


def plan_before_download(
    args: argparse.Namespace, quantization: Quantization | None
) -> tuple[ConversionPlan, int]:
    """The plan without downloading anything, and the bytes that are to download."""
    if is_sat(Path(args.model)):
        folder, base = Path(args.model), None
        text_encoder, missing = _text_encoder_before_download(args)
    else:
        folder, base, missing = find_parts(args.model, args.revision, args.base)
        text_encoder = None
    stand_in = missing.variant if missing else None
    plan = _make_plan(
        args, quantization, folder, base, text_encoder, stand_in=stand_in, download=False
    )
    return plan, sum(missing.bytes.values()) if missing else 0


def download_and_plan(
    args: argparse.Namespace, quantization: Quantization | None
) -> ConversionPlan:
    """The plan of a model, which is downloaded if it must be."""
    if is_sat(Path(args.model)):
        return _make_plan(args, quantization, Path(args.model), text_encoder=_text_encoder(args))
    if hub_id(args.model) and not args.base:
        # Before the weights: a model that can't be used isn't worth their download.
        check_model(resolve_configuration(args.model, args.revision))
    folder = resolve_model(args.model, args.revision)
    base = resolve_base(args.base, folder) if args.base else None
    return _make_plan(args, quantization, folder, base)


def _make_plan(
    args: argparse.Namespace,
    quantization: Quantization | None,
    folder: Path,
    base: Base | None = None,
    text_encoder: Path | None = None,
    *,
    stand_in: Variant | None = None,
    download: bool = True,
) -> ConversionPlan:
    return plan_conversion(
        args.model,
        folder,
        quantization=quantization,
        recipe=args.quant_predicate or "standard",
        dtype=DTYPES.get(args.dtype),
        dequantize=args.dequantize,
        components=args.components or tuple(NETWORKS),
        text_encoder=text_encoder,
        lora=args.lora or (),
        base=base,
        stand_in=stand_in,
        download=download,
    )


def _text_encoder(args: argparse.Namespace) -> Path:
    """The model with the tokenizer of a SAT checkpoint, and its text encoder if that is missing."""
    return resolve_text_encoder(args.text_encoder or "2b", weights=_lacks_text_encoder(args))


def _text_encoder_before_download(args: argparse.Namespace) -> tuple[Path, NotDownloaded | None]:
    """The folder of `_text_encoder`, and what is missing of it; nothing is downloaded."""
    name = args.text_encoder or "2b"
    parts = ("tokenizer", "text_encoder") if _lacks_text_encoder(args) else ("tokenizer",)
    missing = not_downloaded(name, needed=parts)
    folder = missing.folder if missing else resolve_model(name, download=False)
    return folder, missing


def _lacks_text_encoder(args: argparse.Namespace) -> bool:
    return "text_encoder" not in open_sat(Path(args.model)).networks
