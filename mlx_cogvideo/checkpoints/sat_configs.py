"""Derives the configurations of SAT checkpoints from the shapes of their tensors."""

from collections.abc import Mapping
from typing import Any

from .sat import SatTensor


def transformer_config(tensors: Mapping[str, SatTensor], rotary: bool) -> dict[str, Any]:
    """The ``config.json`` of a transformer; `rotary` if it rotates queries and keys."""
    shapes = {name: tensor.info.shape for name, tensor in tensors.items()}
    dim, text_dim = shapes["patch_embed.text_proj.weight"]
    patch = shapes["patch_embed.proj.weight"]
    blocks = {name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}
    head_dim = shapes["transformer_blocks.0.attn1.norm_q.weight"][0]
    config = {
        "_class_name": "CogVideoXTransformer3DModel",
        "num_layers": len(blocks),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "text_embed_dim": text_dim,
        "time_embed_dim": shapes["time_embedding.linear_1.weight"][0],
        "out_channels": 16,
    }
    # 1.5 has a linear layer over patches of 2 frames where 1.0 has a convolution.
    volume = 1 if len(patch) == 4 else 2 * 2 * 2
    config["in_channels"] = patch[1] // volume
    if len(patch) == 2:
        config |= {"patch_size_t": 2, "patch_bias": False, "sample_frames": 81}
        config |= {"sample_height": 300, "sample_width": 300}
    config["use_learned_positional_embeddings"] = "patch_embed.pos_embedding" in shapes
    config["use_rotary_positional_embeddings"] = rotary
    if "ofs_embedding.linear_1.weight" in shapes:
        config["ofs_embed_dim"] = shapes["ofs_embedding.linear_1.weight"][1]
    return config


def vae_config(tensors: Mapping[str, SatTensor], transformer: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a VAE, given that of its transformer."""
    rotary = transformer["use_rotary_positional_embeddings"]
    shapes = {name: tensor.info.shape for name, tensor in tensors.items()}
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down_blocks.")})
    first = "encoder.down_blocks.{}.resnets.0.conv1.conv.weight"
    channels = [shapes[first.format(level)][0] for level in range(levels)]
    resnets = {name.split(".")[4] for name in shapes if ".down_blocks.0.resnets." in name}
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": channels,
        "layers_per_block": len(resnets),
        "latent_channels": shapes["decoder.conv_in.conv.weight"][1],
        "scaling_factor": 0.7 if rotary else 1.15258426,
        "invert_scale_latents": "patch_size_t" in transformer,
    }


def text_encoder_config(tensors: Mapping[str, SatTensor]) -> dict[str, Any]:
    """The ``config.json`` of a T5 encoder."""
    shapes = {name: tensor.info.shape for name, tensor in tensors.items()}
    attention = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = shapes[f"{attention}relative_attention_bias.weight"]
    vocab_size, d_model = shapes["shared.weight"]
    return {
        "model_type": "t5",
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": shapes[f"{attention}q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": len({name.split(".")[2] for name in shapes if ".block." in name}),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def sat_configurations(transformer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The other JSON files of a model folder by their names, given a transformer's ``config.json``.

    SAT files don't contain them.
    """
    # Only 2B has shifted noise, and DDIM as its sampler.
    rotary = transformer["use_rotary_positional_embeddings"]
    sampler = "CogVideoXDPMScheduler" if rotary else "CogVideoXDDIMScheduler"
    image = transformer["in_channels"] != transformer["out_channels"]
    scheduler = {
        "_class_name": sampler,
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 1.0 if rotary else 3.0,
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
    index = {
        "_class_name": "CogVideoXImageToVideoPipeline" if image else "CogVideoXPipeline",
        "scheduler": ["diffusers", sampler],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    return {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}
