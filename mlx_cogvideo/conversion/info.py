"""Describes the contents of a model folder."""

from collections import Counter
from pathlib import Path
from typing import Any

from ..checkpoints import read_config
from ..checkpoints.compatibility import read_configurations
from ..checkpoints.component_sources import folder_source
from ..checkpoints.networks import NETWORKS
from ..checkpoints.variants import match_variant
from ..nn.quantization import layer_kind
from .plan import plan_component, transformer_config
from .write import REPORT


def describe_folder(folder: Path) -> dict[str, Any]:
    """The contents of a model folder, in the form of a conversion's report.

    Raises:
        CheckpointError: the folder has no CogVideoX model, or a damaged one.
    """
    read_configurations(folder)
    report: dict[str, Any] = {"source": None, "components": {}}
    if (folder / REPORT).is_file():
        report |= read_config(folder / REPORT)
    plans = [plan_component(name, folder_source(folder, name)) for name in NETWORKS]
    variant = match_variant(transformer_config(plans))
    report["variant"] = variant.alias if variant else None
    for plan in plans:
        layers = Counter(
            (layer_kind(tensor.layer), tensor.stored) for tensor in plan.tensors if tensor.stored
        )
        kinds = [
            {"kind": kind, **how.arguments(), "layers": count}
            for (kind, how), count in layers.items()
        ]
        component = report["components"].setdefault(plan.name, {"kinds": kinds})
        component["bytes_after"] = plan.bytes_after
        component["bits_per_weight"] = round(plan.bits_per_weight, 2)
    return report
