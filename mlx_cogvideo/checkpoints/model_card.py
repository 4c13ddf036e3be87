"""Writes the README.md of a converted model folder, in the form that the hub reads."""

from typing import Any

from ..called import shell_word
from .variants import VARIANTS, Variant

LICENSES = {"2b": {"license": "apache-2.0"}}
"""Fields of a card's header by variant; all other models have `OTHER_LICENSE`."""

OTHER_LICENSE = {
    "license": "other",
    "license_name": "cogvideox-license",
    "license_link": "https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE",
}


def license_fields(variant: Variant | None) -> dict[str, str]:
    """The fields of a card's header about the license; none for unknown models."""
    return dict(LICENSES.get(variant.alias, OTHER_LICENSE)) if variant else {}


def model_card(report: dict[str, Any], model: str) -> str:
    """The text of a model card.

    Args:
        report: the report of the conversion.
        model: the model's name in the card's command: a folder, or a hub repository.
    """
    variant = next((v for v in VARIANTS if v.alias == report["variant"]), None)
    source, quantization = report["source"], report["quantization"]
    revision = f" at revision `{source['revision']}`" if source.get("revision") else ""
    bits = f"{quantization['bits']}-bit" if quantization else "unquantized"
    image = "--image start.jpg " if report["takes_image"] else ""
    rest = f", and the rest of `{source['base']['name']}`," if "base" in source else ""
    lines = [
        *_header(variant, report["takes_image"]),
        "",
        f"# {variant.name if variant else source['name']}, {bits}, for MLX",
        "",
        f"Made from `{source['name']}`{revision}{rest} with mlx_cogvideo {report['mlx_cogvideo']}.",
        "",
        "```",
        f'mlx-cogvideo generate --model {shell_word(model)} {image}--prompt "..."',
        "```",
        "",
        "| part | GB | bits a weight | quantized layers |",
        "|---|---|---|---|",
        *(_row(name, component) for name, component in report["components"].items()),
    ]
    for adapter in report.get("lora", ()):
        fused = f"The LoRA adapter `{adapter['source']}` is fused in, at {adapter['scale']:g}."
        lines += ["", fused]
    if "revision" in source:
        command = f"hf cache rm model/{source['name']}"
        lines += ["", f"The download that this was made from isn't needed any more: `{command}`."]
    return "\n".join(lines) + "\n"


def _header(variant: Variant | None, takes_image: bool) -> list[str]:
    """The metadata that the hub reads, between two lines of dashes."""
    task = "image-to-video" if takes_image else "text-to-video"
    lines = ["---", "library_name: mlx", f"pipeline_tag: {task}", "tags: [mlx, cogvideox]"]
    lines += [f"{name}: {value}" for name, value in license_fields(variant).items()]
    if variant:
        lines.append(f"base_model: {variant.repo}")
    return [*lines, "---"]


def _row(name: str, component: dict[str, Any]) -> str:
    kinds = ", ".join(f"{k['kind']} {k['bits']}" for k in component["kinds"]) or "none"
    size = f"{component['bytes_after'] / 1e9:.2f}"
    return f"| {name} | {size} | {component['bits_per_weight']:.2f} | {kinds} |"
