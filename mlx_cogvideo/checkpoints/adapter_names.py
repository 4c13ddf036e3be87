"""The names that tools give to the tensors of adapters.

| tool | a tensor of the queries of the first block |
|---|---|
| diffusers, finetrainers | ``transformer.transformer_blocks.0.attn1.to_q.lora_A.weight`` |
| PEFT | ``base_model.model.transformer_blocks.0.attn1.to_q.lora_A.default.weight`` |
| diffusers, formerly | ``transformer.transformer_blocks.0.attn1.to_q.lora.down.weight`` |
| kohya, VideoX-Fun | ``lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight``, ``.alpha`` |
| LyCORIS | ``lycoris_transformer_blocks_0_attn1_to_q.lokr_w1``, ``.alpha`` |
| SAT | ``model.diffusion_model.transformer.layers.0.attention.query_key_value.matrix_A.0`` |

A (or down) is the first of the two products, B (or up) the second. The magnitudes of DoRA end in
``.lora_magnitude_vector`` in diffusers and PEFT, in ``.dora_scale`` in kohya's files and LyCORIS.
LoKr has two matrices, ``.lokr_w1`` and ``.lokr_w2``, or two factors of one, such as ``.lokr_w2_a``
and ``.lokr_w2_b``.
"""

import re
from collections.abc import Iterable

PREFIX = "transformer."
"""What diffusers puts before the names of layers."""

_PREFIX = re.compile(r"(?:base_model\.model\.|module\.)?(?:transformer\.|diffusion_model\.)?")
_FLAT_PREFIX = re.compile(r"(?:lora_(?:unet|transformer)|lycoris)_{1,2}")
_PARTS = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<half>[AB])(?:\.default)?\.weight"
    r"|\.lora[._](?P<direction>down|up)\.weight"
    r"|(?:\.lora)?\.(?P<alpha>alpha)"
    r"|\.(?P<magnitude>lora_magnitude_vector(?:\.default)?(?:\.weight)?|dora_scale)"
    r"|\.lokr_(?P<lokr>w[12](?:_[ab])?)(?:\.default)?)"
)
_OTHER_KINDS = {
    r"\.hada_": "LoHa",
    r"\.oft_": "OFT",
    r"\.boft_": "BOFT",
    r"\.ia3_": "IA3",
    r"\.(lokr_t2|lora_mid)\b": "LoRA or LoKr for convolutions",
    r"\.diff(_b)?$": "whole differences of weights",
}
"""Kinds of adapters that can't be used, by a part of their tensors' names."""
_SAT = re.compile(
    r"(?:model\.diffusion_model\.)?transformer\.layers\.(\d+)\.attention\."
    r"(query_key_value|dense)\.matrix_([AB])\.([012])"
)


class AdapterNames:
    """Finds the layer of a network that an adapter's tensor belongs to."""

    def __init__(self, layers: Iterable[str]):
        """`layers` are the paths of the network's linear layers."""
        # A flat name has no dots: its path can't be split out of it, only looked up.
        self._by_flat_name = {layer.replace(".", "_"): layer for layer in layers}

    def part(self, name: str) -> tuple[str, str] | None:
        """The layer that a tensor belongs to, and its part there.

        A part is ``"A"`` or ``"B"``, ``"alpha"``, ``"magnitude"``, or a matrix of LoKr such as
        ``"w1"`` or ``"w1_a"``. A layer that the network lacks has the name that the tool gave it.
        Returns None for a name of no known tool.
        """
        if (match := _PARTS.fullmatch(name)) is None:
            return None
        if match["magnitude"]:
            part = "magnitude"
        elif match["direction"]:
            part = {"down": "A", "up": "B"}[match["direction"]]
        else:
            part = match["alpha"] or match["half"] or match["lokr"]
        return self._layer(match["layer"]), part

    def _layer(self, name: str) -> str:
        if flat := _FLAT_PREFIX.match(name):
            rest = name[flat.end() :]
            return self._by_flat_name.get(rest, rest)
        return name[_PREFIX.match(name).end() :]


def other_kind(names: Iterable[str]) -> str | None:
    """The kind of an adapter that can't be used, if the names of its tensors tell it."""
    for name in names:
        for pattern, kind in _OTHER_KINDS.items():
            if re.search(pattern, name):
                return kind
    return None


def sat_part(name: str) -> tuple[str, str] | None:
    """The layer and part of a SAT checkpoint's tensor; None for a tensor of the network itself."""
    if (match := _SAT.fullmatch(name)) is None:
        return None
    block, linear, half, number = match.groups()
    layer = "to_out.0" if linear == "dense" else ("to_q", "to_k", "to_v")[int(number)]
    return f"transformer_blocks.{block}.attn1.{layer}", half
