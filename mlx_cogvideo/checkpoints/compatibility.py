"""Whether the parts of a model fit each other, from configurations alone.

Each part may be right by itself: a model for control takes more channels, a finetune may come with
another VAE. What doesn't fit would fail in the middle of a run, or silently give a wrong video.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, alternatives
from ..nn.config import AutoencoderConfig, SchedulerConfig, T5Config, TransformerConfig
from .json_files import read_config
from .layout import check_layout
from .networks import NETWORKS, network_config
from .recommended import read_recommended
from .resolve import Base, component_folder
from .tokenizer import T5Tokenizer

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"

CLASSES = {
    INDEX: ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"),
    "transformer": ("CogVideoXTransformer3DModel",),
    "vae": ("AutoencoderKLCogVideoX",),
    SCHEDULER: ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
}
"""What ``_class_name`` may be in each configuration, if it is there."""


def check_model(folder: Path, base: Base | None = None) -> None:
    """Checks all of a model folder except the weights.

    Raises:
        CheckpointError: as `read_configurations` and `open_tokenizer`.
    """
    open_tokenizer(folder, read_configurations(folder, base)["text_encoder"], base)


def read_configurations(folder: Path, base: Base | None = None) -> dict[str, dict[str, Any]]:
    """Reads and checks all configurations of a model folder; no weight and no tokenizer.

    Args:
        base: the model of the components that the folder lacks.

    Returns:
        The ``config.json`` of each network by the network's name, ``"scheduler"``'s, and as
        ``"recommended"`` the settings that the folder recommends, or without an index the base.

    Raises:
        CheckpointError: a file is missing or isn't a JSON object, the model is of another kind, a
            field is impossible, or the parts don't fit each other.
    """
    if (folder / INDEX).is_file():  # first: it says best what another kind of model is
        _check_class(folder, INDEX, read_config(folder / INDEX))
    check_layout(folder, base)
    contents = {}
    for name in NETWORKS:
        contents[name] = read_config(component_folder(folder, name, base) / "config.json")
        _check_class(folder, name, contents[name])
    scheduler = read_config(component_folder(folder, "scheduler", base) / Path(SCHEDULER).name)
    _check_class(folder, SCHEDULER, scheduler)
    try:
        check_networks(contents)
        SchedulerConfig.from_dict(scheduler)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{folder}: {SCHEDULER}: {error}") from None
    indexes = [each / INDEX for each in (folder, base.folder if base else folder)]
    index = next((path for path in indexes if path.is_file()), None)
    recommended = {} if index is None else read_recommended(index)
    return {**contents, "scheduler": scheduler, "recommended": recommended}


def check_networks(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configurations of the three networks, checked one by one and together.

    Args:
        contents: the ``config.json`` of each network.

    Raises:
        CheckpointError: a field is impossible, or the networks don't fit each other.
    """
    configs = {name: network_config(name, contents[name]) for name in NETWORKS}
    _check_channels(configs["transformer"], configs["vae"])
    _check_text(configs["transformer"], configs["text_encoder"])
    return configs


def open_tokenizer(
    folder: Path, text_encoder: Mapping[str, Any], base: Base | None = None
) -> T5Tokenizer:
    """Opens the tokenizer of a model folder.

    Args:
        text_encoder: the ``config.json`` of the model's text encoder.
        base: as for `read_configurations`.

    Raises:
        CheckpointError: it is missing or damaged, or has more ids than the text encoder.
    """
    tokenizer = T5Tokenizer.from_pretrained(component_folder(folder, "tokenizer", base))
    vocab_size = network_config("text_encoder", text_encoder).vocab_size
    if tokenizer.size > vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.size} pieces, and text_encoder/config.json a "
            f"vocab_size of {vocab_size}: they are of different models"
        )
    return tokenizer


def _check_class(folder: Path, name: str, config: Mapping[str, Any]) -> None:
    found, allowed = config.get("_class_name"), CLASSES.get(name)
    if found is not None and allowed is not None and found not in allowed:
        where = name if "." in name else f"{name}/config.json"
        known = alternatives(allowed)
        raise CheckpointError(
            f"{folder} holds a {str(found)[:60]} ({where}): only {known} can be used"
        )


def _check_channels(transformer: TransformerConfig, vae: AutoencoderConfig) -> None:
    """Checks the channels of latents; an image doubles those that the transformer takes."""
    latent = vae.latent_channels
    if transformer.out_channels != latent:
        raise CheckpointError(
            f"transformer/config.json has out_channels {transformer.out_channels}, and "
            f"vae/config.json latent_channels {latent}: they must be the same"
        )
    if transformer.in_channels not in (latent, 2 * latent):
        raise CheckpointError(
            f"transformer/config.json has in_channels {transformer.in_channels}, and "
            f"vae/config.json latent_channels {latent}: only {latent} (text) or {2 * latent} "
            "(image to video) can be used, not CogVideoX-Fun or models for control"
        )


def _check_text(transformer: TransformerConfig, text_encoder: T5Config) -> None:
    if transformer.text_embed_dim != text_encoder.d_model:
        raise CheckpointError(
            f"transformer/config.json has text_embed_dim {transformer.text_embed_dim}, and "
            f"text_encoder/config.json d_model {text_encoder.d_model}: they must be the same"
        )
