"""Text to video, the whole story: prompt -> embeddings -> latents -> frames.

Stages run one after another, and each frees its network before the next begins: at any moment
memory holds the text encoder, or the transformer, or the VAE.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .checkpoints import (
    Adapter,
    check_component,
    load_component,
    open_adapter,
    read_config,
    resolve_model,
)
from .coding import Tiling, check_decodable, check_frame, decode_frames, encode_frames
from .errors import GenerationError, InvalidInputError
from .guidance import guidance_schedule, schedule_name
from .memory import choose_tiling
from .networks import NETWORKS
from .nn.autoencoder import AutoencoderKLCogVideoX, Posterior
from .nn.lora import add_adapter
from .nn.quantization import linear_layers
from .nn.t5 import T5EncoderModel
from .nn.transformer import CogVideoXTransformer3DModel
from .request import Geometry, Request
from .schedulers import Scheduler, make_scheduler, scheduler_name
from .tokenizer import T5Tokenizer
from .variants import match_variant

logger = logging.getLogger(__name__)

TILED = "frames are cut into tiles, for want of memory: their edges may show"

StepCallback = Callable[[int, int, mx.array], bool | None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DenoisingState:
    """Where a run stands between two steps.

    With the request, all that the rest depends on: noise is drawn by seed and timestep, so there
    is no generator whose position would have to be kept.

    Attributes:
        step: steps done.
        timestep: of the last one.
        latents: ``[1, f, h, w, c]`` in float32.
        x0: the last prediction of the clean latents, which the DPM sampler looks back to.
    """

    step: int
    timestep: int
    latents: mx.array
    x0: mx.array


class CogVideoXPipeline:
    """A CogVideoX model folder, ready to make videos.

    ``transformer``, ``vae`` and ``text_encoder`` load when first asked for, are freed after their
    stage of a run, and load again when asked for again.

    Attributes:
        folder: the model folder.
        variant: the official variant that the transformer's configuration matches, or None.
        dtype: of the weights and activations.
        tokenizer: text to token ids.
        adapters: what ``load_lora`` has added, with its scales.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype | None = None):
        self.folder = Path(folder)
        self.configs = {
            name: config_class.from_dict(read_config(self.folder / name / "config.json"))
            for name, (_, config_class) in NETWORKS.items()
        }
        self._networks: dict[str, nn.Module] = {}
        self.adapters: list[tuple[Adapter, float]] = []
        self._kept: set[str] = set()
        self.variant = match_variant(self.configs["transformer"])
        self.tokenizer = T5Tokenizer.from_pretrained(self.folder / "tokenizer")
        self.scheduler_config = read_config(self.folder / "scheduler" / "scheduler_config.json")
        self._stored = {
            name: check_component(network(self.configs[name]), self.folder / name)
            for name, (network, _) in NETWORKS.items()
        }
        self.dtype = dtype or _default_dtype(self._stored["transformer"])

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: mx.Dtype | None = None,
        *,
        revision: str | None = None,
        download: bool = True,
    ) -> "CogVideoXPipeline":
        """Opens a model: its configurations and file headers; weights are read when needed.

        Args:
            model: a folder in the official layout, an alias (``demo``, ``2b``, ``5b``, ...) or a
                hub id.
            dtype: None follows the checkpoint, or is float32 on the CPU, where 16-bit is slow.
            revision: commit, branch or tag of a hub repository.
            download: False takes a hub repository only from the local cache.

        Raises:
            ModelNotFoundError: there is no such model.
            CheckpointError: files or tensors are missing, damaged, unexpected or mis-shaped.
        """
        return cls(resolve_model(model, revision, download=download), dtype)

    @property
    def transformer(self) -> CogVideoXTransformer3DModel:
        """With the adapters that were loaded."""
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
            if name == "transformer":
                for adapter, scale in self.adapters:
                    add_adapter(network, adapter.load(scale))
        return self._networks[name]

    def load_lora(self, source: str | Path, scale: float = 1.0) -> None:
        """Adds a LoRA adapter to the transformer, beside those that it has.

        Args:
            source: a safetensors file of diffusers or PEFT, a folder with one, or a hub id.
            scale: weight of the adapter, on top of its own alpha / rank.

        Raises:
            InvalidInputError: `scale` is no finite number.
            ModelNotFoundError: there is no such adapter.
            CheckpointError: it is damaged, or for another model.
        """
        if not math.isfinite(scale):
            raise InvalidInputError(f"an adapter's scale must be a finite number; got {scale}")
        network = CogVideoXTransformer3DModel(self.configs["transformer"])
        adapter = open_adapter(source, linear_layers(network))
        self.adapters.append((adapter, scale))
        if "transformer" in self._networks:
            add_adapter(self._networks["transformer"], adapter.load(scale))

    def unload_lora(self) -> None:
        """Takes all adapters off again."""
        self.adapters.clear()
        self.free("transformer")

    def weight_bytes(self, name: str) -> int:
        """Memory that a network's weights take when it is loaded."""
        integers = {"U32": 4, "U8": 1}
        return sum(
            tensor.size * integers.get(tensor.dtype, self.dtype.size)
            for tensor in self._stored[name].values()
        )

    def free(self, name: str) -> None:
        """Lets go of a network's memory, unless it is kept; it loads again when it is asked for."""
        if name not in self._kept:
            self._networks.pop(name, None)
        mx.clear_cache()

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Holds a network in memory over several stages, and frees it in the end."""
        self._kept.add(name)
        try:
            yield
        finally:
            self._kept.discard(name)
            self.free(name)

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
    def takes_image(self) -> bool:
        """Whether it is an image-to-video model."""
        return self.configs["transformer"].in_channels > self.configs["vae"].latent_channels

    @property
    def dtype_name(self) -> str:
        """``"float16"``, ``"bfloat16"`` or ``"float32"``."""
        return str(self.dtype).split(".")[-1]

    @property
    def fps(self) -> int:
        """Frames per second the model was trained at."""
        return self.variant.fps if self.variant else 8

    def request(
        self,
        prompt: str | None,
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
        tiling: str = "auto",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Request:
        """What this model would do when asked for a video: arguments as in ``__call__``.

        Raises:
            InvalidInputError: an argument the model can't follow.
        """
        if self.takes_image:
            raise InvalidInputError("this is an image-to-video model: it can't start from text")
        if not math.isfinite(guidance_scale):
            raise InvalidInputError(f"guidance_scale must be a finite number; got {guidance_scale}")
        seed = secrets.randbelow(2**32) if seed is None else seed
        if not 0 <= seed < 2**63:
            raise InvalidInputError(f"seed must be from 0 to 2**63 - 1; got {seed}")
        scheduler = self._recommended("scheduler", scheduler)
        if not isinstance(scheduler, Scheduler):
            scheduler = scheduler_name(scheduler, self.scheduler_config)
        geometry = self.geometry(num_frames, height, width)
        request = Request(
            prompt,
            negative_prompt,
            geometry,
            num_inference_steps,
            guidance_scale,
            schedule_name(self._recommended("dynamic_cfg", dynamic_cfg)),
            scheduler,
            seed,
            self._tiling(tiling, tile_size, tile_overlap, *geometry.latent_shape[2:4], decode=True),
        )
        self._scheduler(request)  # refuses a number of steps that it can't follow
        return request

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
        tiling: str = "auto",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
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
            tiling: how the VAE takes a frame: ``"none"`` whole, ``"seamless"`` in bands with the
                same result and less memory, ``"tiled"`` in tiles with another result and the
                least memory; ``"auto"`` is the first of these for which there is enough.
            tile_size: height and width of a tile in pixels; None is half the model's native size.
            tile_overlap: share of a tile's height and width that the next one covers, too.
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
        request = self.request(
            prompt,
            negative_prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            dynamic_cfg=dynamic_cfg,
            scheduler=scheduler,
            seed=seed,
            tiling=tiling,
            tile_size=tile_size,
            tile_overlap=tile_overlap,
        )
        if tiling == "auto" and request.tiling.mode == "tiled":
            logger.warning(TILED)
        geometry = request.geometry
        if latents is not None and tuple(latents.shape) != geometry.latent_shape:
            raise InvalidInputError(
                f"latents must have shape {geometry.latent_shape}; got {tuple(latents.shape)}"
            )
        if output_type != "latent":
            self.check_decodable(request)
        report = on_progress or (lambda stage, done, total: None)

        report("encode", 0, 1)
        if prompt_embeds is None:
            prompt_embeds = self.encode_prompt(prompt)
        embeds = [prompt_embeds]
        if request.guided:
            if negative_prompt_embeds is None:
                negative_prompt_embeds = self.encode_prompt(negative_prompt)
            embeds.insert(0, negative_prompt_embeds)
        embeds = self._joined(embeds)
        self.free("text_encoder")
        report("encode", 1, 1)

        report("denoise", 0, num_inference_steps)
        for state in self.denoise(request, embeds, latents=latents):
            report("denoise", state.step, num_inference_steps)
            if callback_on_step_end is not None:
                index, timestep = state.step - 1, state.timestep
                if callback_on_step_end(index, timestep, state.latents) is False:
                    break
        if output_type == "latent":
            return state.latents

        frames = self.decode(request, state.latents, output_type=output_type, on_progress=report)
        return np.concatenate(list(frames))

    def encode(self, requests: Iterable[Request]) -> Iterator[mx.array]:
        """The text stage of each of many requests; frees the text encoder after the last.

        Yields:
            ``[1, text_length, text_embed_dim]``, or with guidance ``[2, ...]``: the
            unconditional, then the prompt's.
        """
        last: dict[str, mx.array] = {}
        try:
            for request in requests:
                texts = [request.negative_prompt] * request.guided + [request.prompt]
                # The negative prompt seldom changes, and several seeds share a prompt.
                last = {
                    text: last[text] if text in last else self.encode_prompt(text) for text in texts
                }
                yield self._joined([last[text] for text in texts])
        finally:
            self.free("text_encoder")

    def encode_prompt(self, prompt: str) -> mx.array:
        """Text to ``[1, text_length, text_embed_dim]``; warns of words that don't fit."""
        length = self.configs["transformer"].max_text_seq_length
        if lost := self.tokenizer.truncated_text(prompt, length):
            logger.warning("the prompt is cut at %d tokens; this is lost: %s", length, lost)
        return self.text_encoder(self.tokenizer([prompt], max_length=length))

    def denoise(
        self,
        request: Request,
        embeds: mx.array,
        state: DenoisingState | None = None,
        *,
        latents: mx.array | None = None,
    ) -> Iterator[DenoisingState]:
        """The denoising stage; frees the transformer when it ends or is left.

        Args:
            embeds: what ``encode`` gave for the request.
            state: where to go on; None begins with noise.
            latents: the noise to begin with; None draws it from the request's seed.

        Yields:
            The state after each step, evaluated. The last one's latents are the result.

        Raises:
            GenerationError: a step gave NaN or infinity.
        """
        embeds = embeds.astype(self.dtype)
        scheduler = self._scheduler(request)
        guidance = guidance_schedule(request.dynamic_cfg, request.guidance_scale)
        timesteps = [int(t) for t in scheduler.timesteps]
        if state is not None:
            latents, x0 = state.latents, state.x0
        elif latents is None:
            key = _keys(request.seed)[0]
            latents, x0 = mx.random.normal(request.geometry.latent_shape, key=key), None
        else:
            latents, x0 = latents.astype(mx.float32), None
        try:
            for i, t in list(enumerate(timesteps))[state.step if state else 0 :]:
                batch = mx.repeat(latents.astype(self.dtype), len(embeds), axis=0)
                velocity = self.transformer(batch, embeds, mx.full(len(embeds), t))
                velocity = velocity.astype(mx.float32)
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
                        f"step {i + 1} gave NaN or infinity in {self.dtype_name}: "
                        "try another dtype (5B models need bfloat16 or float32)"
                    )
                yield DenoisingState(i + 1, t, latents, x0)
        finally:
            self.free("transformer")

    def decode(
        self,
        request: Request,
        latents: mx.array,
        *,
        output_type: str = "np",
        on_progress: Progress | None = None,
    ) -> Iterator[np.ndarray]:
        """The last stage, latents to pixels; frees the VAE when it ends or is left.

        Args:
            latents: what ``denoise`` came to.
            output_type: ``"np"`` for uint8, ``"float"`` for float32 in [0, 1].
            on_progress: as in ``__call__``.

        Yields:
            The frames in order, chunk by chunk: ``[F, H, W, 3]``.

        Raises:
            GenerationError: NaN or infinity, or after the last chunk: one constant colour.
        """
        total = request.geometry.num_frames
        report = on_progress or (lambda stage, done, total: None)
        report("decode", 0, total)
        latents = latents[:, request.geometry.leading_latents :]
        latents = (latents / self.configs["vae"].scaling_factor).astype(self.dtype)
        try:
            yield from decode_frames(
                self.vae,
                latents,
                request.tiling,
                output_type,
                lambda done: report("decode", done, total),
            )
        finally:
            self.free("vae")

    def encode_video(
        self,
        frames: Iterable[np.ndarray],
        num_frames: int,
        *,
        tiling: str = "auto",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Posterior:
        """A clip to the posterior of its latents, which aren't scaled; frees the VAE.

        Args:
            frames: uint8 ``[H, W, 3]``, taken as they are needed, so that they can come from a
                file; with tiles they are kept until the last one is there.
            num_frames: how many of them to take, usually 8N+1.
            tiling, tile_size, tile_overlap: as in ``__call__``.

        Raises:
            InvalidInputError: there are fewer frames, or their size can't be encoded.
        """
        if num_frames < 1:
            raise InvalidInputError(f"num_frames must be at least 1; got {num_frames}")
        frames = iter(frames)
        first = next(frames, None)
        if first is None:
            raise InvalidInputError(f"the clip has no frames and {num_frames} are wanted")
        ratio = self.configs["vae"].spatial_compression_ratio
        check_frame(first, ratio)
        size = (side // ratio for side in first.shape[:2])
        chosen = self._tiling(tiling, tile_size, tile_overlap, *size, decode=False)
        if tiling == "auto" and chosen.mode == "tiled":
            logger.warning(TILED)
        try:
            posterior = encode_frames(self.vae, chain([first], frames), num_frames, chosen)
            mx.eval(posterior.mean, posterior.logvar)
            return posterior
        finally:
            self.free("vae")

    def _tiling(
        self,
        mode: str,
        tile_size: tuple[int, int] | None,
        tile_overlap: tuple[float, float] | None,
        height: int,
        width: int,
        *,
        decode: bool,
    ) -> Tiling:
        """The way that frames of `height` and `width` latent pixels pass the VAE."""
        return Tiling.choose(
            self.configs["vae"],
            mode,
            tile_size,
            tile_overlap,
            automatic=lambda: choose_tiling(self, height, width, decode=decode),
        )

    def _joined(self, embeds: list[mx.array]) -> mx.array:
        """A batch of texts as the transformer takes it."""
        embeds = mx.concatenate(embeds).astype(self.dtype)
        mx.eval(embeds)
        return embeds

    def _scheduler(self, request: Request) -> Scheduler:
        key = _keys(request.seed)[1]
        scheduler = make_scheduler(request.scheduler, self.scheduler_config, key)
        scheduler.set_timesteps(request.num_inference_steps)
        return scheduler

    def check_decodable(self, request: Request) -> None:
        """Raises InvalidInputError where decoding would make an array that MLX can't hold."""
        check_decodable(self.configs["vae"], request.decoded_shape, request.tiling)

    def _recommended(self, field: str, asked):
        """What was asked for, else what suits the variant, else what the folder says."""
        if asked is not None:
            return asked
        if self.variant is not None:
            return getattr(self.variant, field)
        return {"dynamic_cfg": False, "scheduler": None}[field]


def _keys(seed: int) -> mx.array:
    """Of the initial noise, and of the scheduler's."""
    return mx.random.split(mx.random.key(seed))


def _default_dtype(stored: dict) -> mx.Dtype:
    if mx.default_device().type == mx.DeviceType.cpu:
        return mx.float32
    floating = {"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}
    # The large tensors decide: some checkpoints keep a few small ones in float32.
    largest = max(
        (tensor for tensor in stored.values() if tensor.dtype in floating), key=lambda t: t.size
    )
    return floating[largest.dtype]
