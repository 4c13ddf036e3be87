"""The PyTorch side of the comparisons: tiny models from a seed, saved as official folders.

The package under test always opens the folder on disk with its own loader.
"""

import json
import shutil
from pathlib import Path

import diffusers
import mlx.core as mx
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_dpm_cogvideox
from support import OFFICIAL_SCHEDULER_CONFIG

from mlx_cogvideo.checkpoints import DEMO_PATH
from mlx_cogvideo.diffusion.schedulers import CogVideoXDPMScheduler

TOLERANCE = 2e-5
"""Error allowed for networks, relative to the largest value. Measured errors are 1e-6 to 3e-6."""

TEXT_LENGTH = 10

STEPS = 10
PROMPT = "a red circle moves right on a white background"
NEGATIVE = "a blue square"

_TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "num_layers": 3,
    "time_embed_dim": 32,
    "text_embed_dim": 24,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 17,
    "max_text_seq_length": TEXT_LENGTH,
}
_ROPE = {"use_rotary_positional_embeddings": True}
_V1_5 = {**_ROPE, "patch_size_t": 2, "patch_bias": False, "sample_width": 30, "sample_height": 30}
VARIANTS = {
    "2b": {},
    "5b": _ROPE,
    "5b-i2v": {**_ROPE, "use_learned_positional_embeddings": True, "in_channels": 32},
    "1.5-5b": _V1_5,
    "1.5-5b-i2v": {**_V1_5, "in_channels": 32, "ofs_embed_dim": 32},
}


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives a module weights with which every part matters; default inits zero some of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(centre + 0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.float().eval()


def make_transformer(variant: str, **changes) -> diffusers.CogVideoXTransformer3DModel:
    config = {**_TRANSFORMER, **VARIANTS[variant], **changes}
    return randomize(diffusers.CogVideoXTransformer3DModel(**config))


def make_vae(**changes) -> diffusers.AutoencoderKLCogVideoX:
    config = {
        "block_out_channels": (8, 16, 16, 24),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_height": 64,
        "sample_width": 96,
        "scaling_factor": 0.7,
    }
    return randomize(diffusers.AutoencoderKLCogVideoX(**{**config, **changes}))


def make_t5(vocab_size: int = 400, d_model: int = 24) -> transformers.T5EncoderModel:
    """Makes a T5 with transformers' own init: its unscaled attention saturates under larger
    weights."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=16,
        d_ff=64,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return transformers.T5EncoderModel(config).float().eval()


def save_model(folder: Path, variant: str, **changes) -> Path:
    """Writes a whole tiny model folder in the official layout, with the demo's tokenizer."""
    make_transformer(variant, **changes).save_pretrained(folder / "transformer")
    vae_changes = {"invert_scale_latents": True} if variant.startswith("1.5") else {}
    make_vae(**vae_changes).save_pretrained(folder / "vae")
    make_t5(load_config(DEMO_PATH / "text_encoder")["vocab_size"]).save_pretrained(
        folder / "text_encoder"
    )
    (folder / "tokenizer").mkdir()
    shutil.copy(DEMO_PATH / "tokenizer" / "spiece.model", folder / "tokenizer")
    (folder / "scheduler").mkdir()
    config = {"_class_name": "CogVideoXDDIMScheduler", **OFFICIAL_SCHEDULER_CONFIG}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def load_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def rotary_embedding(
    transformer: diffusers.CogVideoXTransformer3DModel, frames: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns the RoPE tables that diffusers' pipeline passes for latents of this size."""
    if not transformer.config.use_rotary_positional_embeddings:
        return None
    pipeline = object.__new__(diffusers.CogVideoXPipeline)
    pipeline.__dict__.update(transformer=transformer, vae_scale_factor_spatial=8)
    return diffusers.CogVideoXPipeline._prepare_rotary_positional_embeddings(
        pipeline, height * 8, width * 8, frames, "cpu"
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ours(tensor: torch.Tensor) -> mx.array:
    return mx.array(tensor.numpy())


def frames_first(tensor: torch.Tensor) -> torch.Tensor:
    """Converts diffusers' transformer layout ``[B, F, C, H, W]`` to channels last."""
    return tensor.permute(0, 1, 3, 4, 2).contiguous()


def channels_first(tensor: torch.Tensor) -> torch.Tensor:
    """Converts diffusers' VAE layout ``[B, C, F, H, W]`` to channels last."""
    return tensor.permute(0, 2, 3, 4, 1).contiguous()


def as_diffusers_reads(pixels: np.ndarray) -> torch.Tensor:
    """Converts uint8 ``[..., H, W, 3]`` to ``[..., 3, H, W]`` in [0, 1]."""
    return torch.tensor(pixels).movedim(-1, -3).float() / 255


class Noise:
    """Noise for each step of a DPM run, the same on both sides."""

    def __init__(self, shape: tuple[int, ...]):
        self.draws = [random(*shape, seed=100 + step) for step in range(STEPS)]
        self.step = 0

    def for_diffusers(self, monkeypatch, scheduler) -> None:
        # diffusers draws twice in a second-order step and uses the second.
        monkeypatch.setattr(
            scheduling_dpm_cogvideox, "randn_tensor", lambda *_, **__: self.draws[self.step]
        )
        step = scheduler.step

        def counting(*args, **kwargs):
            result = step(*args, **kwargs)
            self.step += 1
            return result

        monkeypatch.setattr(scheduler, "step", counting)

    def for_ours(self) -> CogVideoXDPMScheduler:
        draws = iter(self.draws)

        class Injected(CogVideoXDPMScheduler):
            def step(self, *args, **kwargs):
                return super().step(*args, **kwargs, noise=ours(frames_first(next(draws))))

        return Injected.from_config(OFFICIAL_SCHEDULER_CONFIG)


def torch_loss(reference, variant, latents, noise, image, text, timestep) -> torch.Tensor:
    """The loss as the official trainers write it."""
    scheduler = diffusers.CogVideoXDDIMScheduler.from_config(OFFICIAL_SCHEDULER_CONFIG)
    noisy = scheduler.add_noise(latents, noise, timestep)
    inputs = torch.cat([noisy, image], dim=2) if variant.endswith("i2v") else noisy
    ofs = torch.full((1,), 2.0) if reference.config.ofs_embed_dim else None
    rotation = rotary_embedding(reference, latents.shape[1], 8, 12)
    velocity = reference(inputs, text, timestep, ofs=ofs, image_rotary_emb=rotation).sample
    x0 = scheduler.get_velocity(velocity, noisy, timestep)
    weights = 1 / (1 - scheduler.alphas_cumprod[timestep])
    return (weights.view(-1, 1, 1, 1, 1) * (x0 - latents) ** 2).mean()
