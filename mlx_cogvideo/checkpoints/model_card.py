"""The README.md of a converted model folder, in the form that the hub reads."""

from typing import Any

from .variants import VARIANTS

LICENSES = {"2b": ["license: apache-2.0"]}
"""Lines of the card's header; all other models have a licence of their own."""

OTHER_LICENSE = [
    "license: other",
    "license_name: cogvideox-license",
    "license_link: https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE",
]


def model_card(report: dict[str, Any], repo: str = "mlx_model") -> str:
    """The card.

    Args:
        report: of a conversion.
        repo: what the command in the card calls the model: a folder, or a hub repository.
    """
    variant = next((v for v in VARIANTS if v.alias == report["variant"]), None)
    source, how = report["source"], report["quantization"]
    bits = f"{how['bits']}-bit" if how else "unquantized"
    name = variant.name if variant else source["name"]
    takes_image = report["takes_image"]
    image = "--image start.jpg " if takes_image else ""
    task = "image-to-video" if takes_image else "text-to-video"
    header = ["---", "library_name: mlx", f"pipeline_tag: {task}", "tags: [mlx, cogvideox]"]
    if variant:
        header += LICENSES.get(variant.alias, OTHER_LICENSE)
        header.append(f"base_model: {variant.repo}")
    lines = [
        *header,
        "---",
        "",
        f"# {name}, {bits}, for MLX",
        "",
        f"Made from {_told(source)} with mlx_cogvideo {report['mlx_cogvideo']}.",
        "",
        "```",
        f'python generate.py --model {repo} {image}--prompt "..."',
        "```",
        "",
        "| part | GB | bits a weight | quantized layers |",
        "|---|---|---|---|",
    ]
    for part, told in report["components"].items():
        kinds = ", ".join(f"{k['kind']} {k['bits']}" for k in told["kinds"]) or "none"
        size = f"{told['bytes_after'] / 1e9:.2f}"
        lines.append(f"| {part} | {size} | {told['bits_per_weight']:.2f} | {kinds} |")
    for told in report.get("lora", ()):
        lines += ["", f"The LoRA adapter `{told['source']}` is fused in, at {told['scale']:g}."]
    if "revision" in source:
        command = f"hf cache rm model/{source['name']}"
        lines += ["", f"The download that this was made from isn't needed any more: `{command}`."]
    return "\n".join(lines) + "\n"


def _told(source: dict[str, Any]) -> str:
    revision = source.get("revision")
    return f"`{source['name']}`" + (f" at revision `{revision}`" if revision else "")
