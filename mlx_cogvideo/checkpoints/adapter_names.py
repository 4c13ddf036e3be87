"""How the tensors of LoRA adapters are called, by those who write them.

| who | a tensor of the queries of the first block |
|---|---|
| diffusers, finetrainers | ``transformer.transformer_blocks.0.attn1.to_q.lora_A.weight`` |
| PEFT | ``base_model.model.transformer_blocks.0.attn1.to_q.lora_A.default.weight`` |
| diffusers, once | ``transformer.transformer_blocks.0.attn1.to_q.lora.down.weight`` |
| kohya, VideoX-Fun | ``lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight``, ``.alpha`` |
| SAT | ``model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0`` |

A stands for down, the first of the two products, and B for up.
"""

import re
from collections.abc import Iterable

_PREFIX = re.compile(r"(?:base_model\.model\.|module\.)?(?:transformer\.|diffusion_model\.)?")
_FLAT_PREFIX = re.compile(r"lora_(?:unet|transformer)_{1,2}")
_PARTS = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<half>[AB])(?:\.default)?\.weight"
    r"|\.lora[._](?P<way>down|up)\.weight"
    r"|(?:\.lora)?\.(?P<alpha>alpha))"
)
_SAT = re.compile(
    r"(?:model\.diffusion_model\.)?transformer\.layers\.(\d+)\.attention\."
    r"(query_key_value|dense)\.matrix_([AB])\.([012])"
)


class AdapterNames:
    """Finds what a tensor is to a network's layers."""

    def __init__(self, layers: Iterable[str]):
        """`layers` are the paths of the network's linear layers."""
        # Without dots a path can only be found by looking it up.
        self._by_flat_name = {layer.replace(".", "_"): layer for layer in layers}

    def part(self, name: str) -> tuple[str, str] | None:
        """The layer that a tensor belongs to, as its writer calls it if it isn't known, and what
        it is there: ``"A"``, ``"B"`` or ``"alpha"``. None for a name that nobody writes."""
        match = _PARTS.fullmatch(name)
        if match is None:
            return None
        what = match["alpha"] or match["half"] or {"down": "A", "up": "B"}[match["way"]]
        return self._layer(match["layer"]), what

    def _layer(self, told: str) -> str:
        flat = _FLAT_PREFIX.match(told)
        if flat is not None:
            rest = told[flat.end() :]
            return self._by_flat_name.get(rest, rest)
        return told[_PREFIX.match(told).end() :]


def sat_part(name: str) -> tuple[str, str] | None:
    """The same for a tensor of a SAT checkpoint; None for one of the network itself."""
    match = _SAT.fullmatch(name)
    if match is None:
        return None
    block, linear, half, number = match.groups()
    layer = "to_out.0" if linear == "dense" else ("to_q", "to_k", "to_v")[int(number)]
    return f"transformer_blocks.{block}.attn1.{layer}", half
