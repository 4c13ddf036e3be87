"""Describes the contents of a model folder."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import read_config
from ..checkpoints.compatibility import check_model
from ..checkpoints.component_sources import folder_source
from ..checkpoints.networks import NETWORKS
from ..checkpoints.variants import match_variant
from ..nn.quantization import layer_kind
from .plan import ComponentPlan, plan_component, transformer_config
from .write import REPORT


def describe_folder(folder: Path) -> dict[str, Any]:
    """The contents of a model folder, in the form of a conversion's report.

    Raises:
        CheckpointError: the folder has no CogVideoX model, or a damaged one.
    """
    check_model(folder)
    report: dict[str, Any] = {"source": None}
    if (folder / REPORT).is_file():
        report |= read_config(folder / REPORT)
    plans = [plan_component(name, folder_source(folder, name)) for name in NETWORKS]
    variant = match_variant(transformer_config(plans))
    reported = _object(report.get("components"))
    components = {plan.name: _describe(plan, _object(reported.get(plan.name))) for plan in plans}
    return {**report, "variant": variant.alias if variant else None, "components": components}


def _describe(plan: ComponentPlan, reported: Mapping[str, Any]) -> dict[str, Any]:
    """A component as its files are, with what only the report of its conversion knows."""
    known = reported.get("kinds")
    kinds_before = [_object(kind) for kind in (known if isinstance(known, list) else ())]
    layers = Counter((layer_kind(t.layer), t.stored) for t in plan.tensors if t.stored)
    kinds = []
    for (name, how), count in layers.items():
        kind = {"kind": name, **how.arguments(), "layers": count}
        same = (before for before in kinds_before if before.items() >= kind.items())
        kinds.append(next(same, kind))
    return {
        **reported,
        "kinds": kinds,
        "bytes_after": plan.bytes_after,
        "bits_per_weight": round(plan.bits_per_weight, 2),
    }


def _object(value: Any) -> dict[str, Any]:
    """A JSON object, which is empty where the report holds something else."""
    return value if isinstance(value, dict) else {}
