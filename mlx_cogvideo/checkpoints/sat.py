"""Reads checkpoints of the original SAT code under the official names.

A transformer is one ``mp_rank_00_model_states.pt``, a VAE ``3d-vae.pt``. Files of fine-tuned models
may also hold the VAE (``first_stage_model.``), the text encoder (``conditioner.``), and a second,
averaged transformer, which is ignored. The names follow
``tools/convert_weight_sat2hf.py`` in zai-org/CogVideo.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError
from .components import listed, untie
from .tensor_files import TensorInfo
from .torch_file import TorchFile, TorchTensor, tensors_in

TRANSFORMER_FILE = "mp_rank_00_model_states.pt"
VAE_FILES = ("3d-vae.pt", "vae.pt")

_TRANSFORMER_PREFIX = "model.diffusion_model."
_VAE_PREFIX = "first_stage_model."
_TEXT_PREFIX = "conditioner.embedders.0.transformer."

_RENAMED = (
    (r"transformer\.layers\.(\d+)\.attention\.dense\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"mixins\.adaln_layer\.query_layernorm_list\.(\d+)\.", r"transformer_blocks.\1.attn1.norm_q."),
    (r"mixins\.adaln_layer\.key_layernorm_list\.(\d+)\.", r"transformer_blocks.\1.attn1.norm_k."),
    (r"transformer\.layers\.(\d+)\.input_layernorm\.", r"transformer_blocks.\1.norm1.norm."),
    (
        r"transformer\.layers\.(\d+)\.post_attention_layernorm\.",
        r"transformer_blocks.\1.norm2.norm.",
    ),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_h_to_4h\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"transformer\.layers\.(\d+)\.mlp\.dense_4h_to_h\.", r"transformer_blocks.\1.ff.net.2."),
    (r"transformer\.final_layernorm\.", "norm_final."),
    (r"(time|ofs)_embed\.0\.", r"\1_embedding.linear_1."),
    (r"(time|ofs)_embed\.2\.", r"\1_embedding.linear_2."),
    (r"mixins\.patch_embed\.", "patch_embed."),
    (r"mixins\.final_layer\.norm_final\.", "norm_out.norm."),
    (r"mixins\.final_layer\.linear\.", "proj_out."),
    (r"mixins\.final_layer\.adaLN_modulation\.1\.", "norm_out.linear."),
)
_FUSED_ATTENTION = re.compile(
    r"transformer\.layers\.(\d+)\.attention\.query_key_value\.(weight|bias)"
)
_FUSED_ADALN = re.compile(r"mixins\.adaln_layer\.adaLN_modulations\.(\d+)\.1\.(weight|bias)")
_POSITIONS = "mixins.pos_embed.pos_embedding"
_DROPPED = re.compile(
    r"mixins\.pos_embed\.|pos_embed\.freqs|.*(embed_tokens|position_embedding|word_embeddings)\."
)

_VAE_RENAMED = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)


@dataclass(frozen=True)
class SatTensor:
    """A tensor as the official checkpoint has it, made from a stored one."""

    info: TensorInfo
    read: Callable[[], mx.array]


def is_sat(path: Path) -> bool:
    """Whether a file or folder is a checkpoint of the SAT code."""
    return path.suffix == ".pt" or (path.is_dir() and sat_file(path) is not None)


def sat_file(folder: Path) -> Path | None:
    """The only transformer below a folder; an averaged copy doesn't count.

    Raises:
        CheckpointError: there are several.
    """
    return _find(folder, (TRANSFORMER_FILE,))


@dataclass(frozen=True)
class SatCheckpoint:
    """The contents of a SAT checkpoint.

    Attributes:
        networks: the tensors of each network, by the name of its folder.
        rotary: whether the transformer rotates queries and keys, as all but 2B do.
    """

    networks: dict[str, dict[str, SatTensor]]
    rotary: bool


def open_sat(path: Path) -> SatCheckpoint:
    """Lists the tensors of a SAT checkpoint; reads none of them.

    Args:
        path: a transformer's file, or a folder with it and the VAE's file somewhere below.

    Raises:
        CheckpointError: a file is missing or damaged, or has tensors of unknown names.
    """
    if not path.exists():
        raise CheckpointError(f"{path} doesn't exist")
    file = path if path.is_file() else sat_file(path)
    if file is None:
        raise CheckpointError(f"{path} has no {TRANSFORMER_FILE}")
    tensors = _tensors(file)
    transformer = _under(tensors, _TRANSFORMER_PREFIX) or tensors
    found = {"transformer": _transformer(file, transformer)}
    vae_file = _find_vae(path)
    if vae := _tensors(vae_file) if vae_file else _under(tensors, _VAE_PREFIX):
        found["vae"] = _vae(vae)
    if text := _under(tensors, _TEXT_PREFIX):
        untie(text)
        found["text_encoder"] = {name: _plain(t) for name, t in text.items()}
    # The tables of angles are stored. Without them the width decides: 2B's is 1920.
    rotary = any("freqs_" in name for name in transformer)
    rotary = rotary or found["transformer"]["norm_final.weight"].info.shape[0] == 3072
    return SatCheckpoint(found, rotary)


def _find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The only file of these names below a folder; averaged copies don't count.

    Raises:
        CheckpointError: there are several.
    """
    files = [file for name in names for file in sorted(folder.rglob(name))]
    files = [file for file in files if not file.parent.name.endswith("-ema")]
    if len(files) > 1:
        raise CheckpointError(f"{folder} holds several checkpoints: name one of {listed(files)}")
    return files[0] if files else None


def _find_vae(path: Path) -> Path | None:
    """The VAE's file below a folder, or near a transformer's file: up to three folders above."""
    if path.is_dir():
        return _find(path, VAE_FILES)
    above = list(path.absolute().parents)[:3]
    near = [folder / sub / name for folder in above for sub in ("", "vae") for name in VAE_FILES]
    return next((file for file in near if file.is_file()), None)


def _tensors(file: Path) -> dict[str, TorchTensor]:
    tensors = tensors_in(TorchFile(file).contents)
    if not tensors:
        raise CheckpointError(f"{file} holds no state dict")
    return tensors


def _under(tensors: Mapping[str, TorchTensor], prefix: str) -> dict[str, TorchTensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _plain(tensor: TorchTensor) -> SatTensor:
    return SatTensor(TensorInfo(tensor.dtype, tensor.shape), tensor.read)


def _joined(tensor: TorchTensor, pieces: int, chosen: tuple[int, ...]) -> SatTensor:
    """The `chosen` ones of equal pieces of a tensor's first axis, joined."""
    size = tensor.shape[0] // pieces

    def read() -> mx.array:
        whole = tensor.read()
        return mx.concatenate([whole[i * size : (i + 1) * size] for i in chosen])

    return SatTensor(TensorInfo(tensor.dtype, (size * len(chosen), *tensor.shape[1:])), read)


def _transformer(file: Path, tensors: Mapping[str, TorchTensor]) -> dict[str, SatTensor]:
    """The tensors of a transformer by their official names.

    Raises:
        CheckpointError: a name is unknown.
    """
    found: dict[str, SatTensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        if match := _FUSED_ATTENTION.fullmatch(name):
            found |= _split_attention(tensor, *match.groups())
        elif match := _FUSED_ADALN.fullmatch(name):
            found |= _split_adaln(tensor, *match.groups())
        elif name == _POSITIONS and _has_learned_positions(tensors):
            found["patch_embed.pos_embedding"] = _plain(tensor)
        elif not _DROPPED.match(name):
            if (official := _renamed(name)) is None:
                unknown.append(name)
            else:
                found[official] = _plain(tensor)
    if unknown or not found:
        holds = listed(unknown) or "nothing"
        raise CheckpointError(f"{file} is no CogVideoX transformer: it holds {holds}")
    return found


def _split_attention(tensor: TorchTensor, block: str, part: str) -> dict[str, SatTensor]:
    """The projections to queries, keys and values, which are stored as one."""
    return {
        f"transformer_blocks.{block}.attn1.{projection}.{part}": _joined(tensor, 3, (i,))
        for i, projection in enumerate(("to_q", "to_k", "to_v"))
    }


def _split_adaln(tensor: TorchTensor, block: str, part: str) -> dict[str, SatTensor]:
    """The modulations of a block's two norms, which are stored as one.

    There are six vectors for the video rows, then six for the text rows: in each six, shift, scale
    and gate of the attention, then of the feed-forward.
    """
    chosen = {"norm1": (0, 1, 2, 6, 7, 8), "norm2": (3, 4, 5, 9, 10, 11)}
    return {
        f"transformer_blocks.{block}.{norm}.linear.{part}": _joined(tensor, 12, pieces)
        for norm, pieces in chosen.items()
    }


def _has_learned_positions(tensors: Mapping[str, TorchTensor]) -> bool:
    """Whether it is 5B-I2V: only that reads 32 channels in patches of one frame."""
    patch = tensors["mixins.patch_embed.proj.weight"].shape
    return len(patch) == 4 and patch[1] == 32


def _vae(tensors: Mapping[str, TorchTensor]) -> dict[str, SatTensor]:
    tensors = {name: t for name, t in tensors.items() if "loss" not in name}
    levels = len({n.split(".")[2] for n in tensors if n.startswith("decoder.up.")})
    found = {}
    for name, tensor in tensors.items():
        official = name
        for pattern, replacement in _VAE_RENAMED:
            official = re.sub(pattern, replacement, official)
        if match := re.match(r"decoder\.up_blocks\.(\d+)\.", official):
            # SAT counts the decoder's levels from the pixels, diffusers from the latents.
            level = levels - 1 - int(match[1])
            official = f"decoder.up_blocks.{level}." + official[match.end() :]
        found[official] = _plain(tensor)
    return found


def _renamed(name: str) -> str | None:
    for pattern, replacement in _RENAMED:
        official, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return official
    return None
