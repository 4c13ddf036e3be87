"""Text to video, the whole story: prompt -> embeddings -> latents -> frames.

Stages run one after another, and each frees its network before the next begins: at any moment
memory holds the text encoder, or the transformer, or the VAE.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .checkpoints import check_component, load_component, read_config, resolve_model
from .errors import GenerationError, InvalidInputError
from .guidance import guidance_schedule
from .nn.autoencoder import AutoencoderConfig, AutoencoderKLCogVideoX, largest_decode_tensor
from .nn.t5 import T5Config, T5EncoderModel
from .nn.transformer import CogVideoXTransformer3DModel, TransformerConfig
from .request import Geometry
from .schedulers import Scheduler, make_scheduler
from .tokenizer import T5Tokenizer
from .variants import match_variant

logger = logging.getLogger(__name__)

NETWORKS = {
    "transformer": (CogVideoXTransformer3DModel, TransformerConfig),
    "vae": (AutoencoderKLCogVideoX, AutoencoderConfig),
    "text_encoder": (T5EncoderModel, T5Config),
}

MAX_ELEMENTS = 2**31
"""Arrays of this size and over come out wrong on Metal (ml-explore/mlx#3248)."""

StepCallback = Callable[[int, int, mx.array], bool | None]
Progress = Callable[[str, int, int], None]


class CogVideoXPipeline:
    """A CogVideoX model folder, ready to make videos.

    ``transformer``, ``vae`` and ``text_encoder`` load when first asked for, are freed after their
    stage of a run, and load again when asked for again.

    Attributes:
        folder: the model folder.
        variant: the official variant that the transformer's configuration matches, or None.
        dtype: of the weights and activations.
        tokenizer: text to token ids.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype | None = None):
        self.folder = Path(folder)
        self.configs = {
            name: config_class.from_dict(read_config(self.folder / name / "config.json"))
            for name, (_, config_class) in NETWORKS.items()
        }
        self._networks: dict[str, nn.Module] = {}
        self.variant = match_variant(self.configs["transformer"])
        self.tokenizer = T5Tokenizer.from_pretrained(self.folder / "tokenizer")
        self.scheduler_config = read_config(self.folder / "scheduler" / "scheduler_config.json")
        stored = {
            name: check_component(network(self.configs[name]), self.folder / name)
            for name, (network, _) in NETWORKS.items()
        }
        self.dtype = dtype or _default_dtype(stored["transformer"])

    @classmethod
    def from_pretrained(
        cls, model: str | Path, dtype: mx.Dtype | None = None
    ) -> "CogVideoXPipeline":
        """Opens a model: its configurations and file headers; weights are read when needed.

        Args:
            model: a folder in the official layout, an alias (``demo``, ``2b``, ``5b``, ...) or a
                hub id.
            dtype: None follows the checkpoint, or is float32 on the CPU, where 16-bit is slow.

        Raises:
            ModelNotFoundError: there is no such model.
            CheckpointError: files or tensors are missing, damaged, unexpected or mis-shaped.
        """
        return cls(resolve_model(model), dtype)

    @property
    def transformer(self) -> CogVideoXTransformer3DModel:
        return self._network("transformer")

    @property
    def vae(self) -> AutoencoderKLCogVideoX:
        return self._network("vae")

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self._network("text_encoder")

    def _network(self, name: str) -> nn.Module:
        if name not in self._networks:
            network = NETWORKS[name][0](self.configs[name])
            self._networks[name] = load_component(network, self.folder / name, self.dtype)
        return self._networks[name]

    def free(self, name: str) -> None:
        """Lets go of a network's memory; it loads again when it is next asked for."""
        self._networks.pop(name, None)
        mx.clear_cache()

    def geometry(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Geometry:
        """The size of a run, the model's own where nothing is asked for.

        Raises:
            InvalidInputError: a size that the model can't make.
        """
        return Geometry.choose(
            self.variant,
            self.configs["transformer"],
            self.configs["vae"],
            num_frames=num_frames,
            height=height,
            width=width,
        )

    @property
    def fps(self) -> int:
        """Frames per second the model was trained at."""
        return self.variant.fps if self.variant else 8

    def __call__(
        self,
        prompt: str | None = None,
        negative_prompt: str = "",
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        dynamic_cfg: bool | str | None = None,
        scheduler: str | Scheduler | None = None,
        seed: int | None = None,
        prompt_embeds: mx.array | None = None,
        negative_prompt_embeds: mx.array | None = None,
        latents: mx.array | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        on_progress: Progress | None = None,
    ) -> np.ndarray | mx.array:
        """Makes one video of a prompt.

        Args:
            prompt: what to show. The models were trained on long English descriptions.
            negative_prompt: what to steer away from.
            num_frames: 8N+1; None is the model's own, as for `height` and `width` in pixels.
            num_inference_steps: denoising steps, 1 to 1000.
            guidance_scale: weight of the prompt; 1 or less skips the unconditional pass.
            dynamic_cfg: guidance over the steps: False constant, True or ``"wave"`` as the
                official tools have it, ``"cosine"`` rising; None is the variant's recommendation.
            scheduler: ``"ddim"``, ``"dpm"`` or an object; None is the variant's recommendation.
            seed: of the initial noise and of the DPM sampler's; None draws one.
            prompt_embeds: ``[1, text_length, text_embed_dim]`` in place of `prompt`.
            negative_prompt_embeds: the same in place of `negative_prompt`.
            latents: initial noise ``[1, frames, height, width, channels]`` in latents, 1.5's extra
                leading frame included.
            output_type: ``"np"`` for uint8 ``[F, H, W, 3]``, ``"float"`` for float32 in [0, 1],
                ``"latent"`` for the final latents in float32, shaped like `latents`.
            callback_on_step_end: called with the step's index, timestep and latents; returning
                False ends the denoising there.
            on_progress: called with a stage's name, the steps done and their number.

        Raises:
            InvalidInputError: an argument the model can't follow; before any weight is read.
            GenerationError: the model produced NaN or one constant colour.
        """
        if output_type not in ("np", "float", "latent"):
            raise InvalidInputError(f"output_type must be np, float or latent; got {output_type!r}")
        if prompt is None and prompt_embeds is None:
            raise InvalidInputError("give a prompt or prompt_embeds")
        if self.configs["transformer"].in_channels != self.configs["vae"].latent_channels:
            raise InvalidInputError("this is an image-to-video model: it can't start from text")
        geometry = self.geometry(num_frames, height, width)
        if latents is not None and tuple(latents.shape) != geometry.latent_shape:
            raise InvalidInputError(
                f"latents must have shape {geometry.latent_shape}; got {tuple(latents.shape)}"
            )
        if output_type != "latent":
            self._check_decodable(geometry)
        guided = guidance_scale > 1
        guidance = guidance_schedule(self._recommended("dynamic_cfg", dynamic_cfg), guidance_scale)
        seed = secrets.randbelow(2**32) if seed is None else seed
        initial_key, noise_key = mx.random.split(mx.random.key(seed))
        scheduler = make_scheduler(
            self._recommended("scheduler", scheduler), self.scheduler_config, noise_key
        )
        scheduler.set_timesteps(num_inference_steps)
        report = on_progress or (lambda stage, done, total: None)

        report("encode", 0, 1)
        embeds = [prompt_embeds if prompt_embeds is not None else self.encode_prompt(prompt)]
        if guided and negative_prompt_embeds is not None:
            embeds.insert(0, negative_prompt_embeds)
        elif guided:
            embeds.insert(0, self.encode_prompt(negative_prompt))
        embeds = mx.concatenate(embeds).astype(self.dtype)
        mx.eval(embeds)
        self.free("text_encoder")
        report("encode", 1, 1)

        if latents is None:
            latents = mx.random.normal(geometry.latent_shape, key=initial_key)
        latents = self._denoise(
            latents.astype(mx.float32), embeds, scheduler, guidance, callback_on_step_end, report
        )
        self.free("transformer")
        if output_type == "latent":
            return latents

        frames = self._decode(latents[:, geometry.leading_latents :], report)
        self.free("vae")
        return frames if output_type == "float" else (frames * 255).round().astype(np.uint8)

    def encode_prompt(self, prompt: str) -> mx.array:
        """Text to ``[1, text_length, text_embed_dim]``; warns of words that don't fit."""
        length = self.configs["transformer"].max_text_seq_length
        if lost := self.tokenizer.truncated_text(prompt, length):
            logger.warning("the prompt is cut at %d tokens; this is lost: %s", length, lost)
        return self.text_encoder(self.tokenizer([prompt], max_length=length))

    def _denoise(
        self,
        latents: mx.array,
        embeds: mx.array,
        scheduler: Scheduler,
        guidance: Callable[[int, int, int], float],
        callback: StepCallback | None,
        report: Progress,
    ) -> mx.array:
        """Noise to latents; `embeds` holds the text, or the unconditional and the text."""
        transformer, timesteps = self.transformer, [int(t) for t in scheduler.timesteps]
        x0 = None
        report("denoise", 0, len(timesteps))
        for i, t in enumerate(timesteps):
            batch = mx.repeat(latents.astype(self.dtype), len(embeds), axis=0)
            velocity = transformer(batch, embeds, mx.full(len(embeds), t)).astype(mx.float32)
            if len(embeds) == 2:
                unconditional, conditional = mx.split(velocity, 2)
                velocity = unconditional + guidance(i, t, len(timesteps)) * (
                    conditional - unconditional
                )
            latents, x0 = scheduler.step(velocity, t, latents, previous_x0=x0)
            healthy = mx.isfinite(latents).all()
            mx.eval(latents, x0, healthy)
            if not healthy.item():
                raise GenerationError(
                    f"step {i + 1} gave NaN or infinity in {str(self.dtype).split('.')[-1]}: "
                    "try another dtype (5B models need bfloat16 or float32)"
                )
            report("denoise", i + 1, len(timesteps))
            if callback is not None and callback(i, t, latents) is False:
                break
        return latents

    def _decode(self, latents: mx.array, report: Progress) -> np.ndarray:
        """``[1, f, h, w, c]`` to float32 ``[F, H, W, 3]`` in [0, 1], chunk by chunk."""
        latents = latents / self.configs["vae"].scaling_factor
        chunks, done = [], 0
        report("decode", 0, latents.shape[1])
        for pixels in self.vae.decode_chunks(latents.astype(self.dtype), evaluate=True):
            pixels = mx.clip(pixels[0].astype(mx.float32) / 2 + 0.5, 0, 1)
            chunks.append(np.array(pixels))
            done += -(-len(pixels) // self.configs["vae"].temporal_compression_ratio)
            report("decode", done, latents.shape[1])
        frames = np.concatenate(chunks)
        if not np.isfinite(frames).all():
            raise GenerationError("decoding gave NaN or infinity: try --dtype float32")
        if np.ptp(frames, axis=(0, 1, 2)).max() < 1 / 255:
            raise GenerationError("the video is one constant colour: the model's weights are bad")
        return frames

    def _check_decodable(self, geometry: Geometry) -> None:
        _, frames, *rest = geometry.latent_shape
        shape = (1, frames - geometry.leading_latents, *rest)
        if largest_decode_tensor(self.configs["vae"], shape) >= MAX_ELEMENTS:
            raise InvalidInputError(
                f"decoding {geometry.width}x{geometry.height} in one piece needs arrays of over "
                "2**31 elements, which MLX computes wrongly: ask for a smaller size, or for "
                'output_type="latent"'
            )

    def _recommended(self, field: str, asked):
        """What was asked for, else what suits the variant, else what the folder says."""
        if asked is not None:
            return asked
        if self.variant is not None:
            return getattr(self.variant, field)
        return {"dynamic_cfg": False, "scheduler": None}[field]


def _default_dtype(stored: dict) -> mx.Dtype:
    if mx.default_device().type == mx.DeviceType.cpu:
        return mx.float32
    half = {"F16": mx.float16, "BF16": mx.bfloat16}
    # The large matrices decide: some checkpoints keep a few small tensors in float32.
    largest = max(stored.values(), key=lambda tensor: tensor.size)
    return half.get(largest.dtype, mx.float32)
