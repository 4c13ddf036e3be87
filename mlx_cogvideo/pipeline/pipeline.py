"""From a prompt to a video: prompt -> embeddings -> latents -> frames.

A picture or a video to start from becomes latents in between. Stages run one after another, and
each frees its network before the next begins: at any moment memory holds the text encoder, or the
transformer, or the VAE.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.guidance import check_uncond, schedule_name
from ..diffusion.schedulers import Scheduler, scheduler_name
from ..diffusion.step_cache import resolve_cache_threshold
from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from ..nn.eval_schedule import EvalSchedule
from .denoising import DenoisingState, denoising_steps, make_run_scheduler
from .estimates import check_memory_limit, choose_tiling, split_cfg
from .geometry import Geometry
from .request import Request
from .sources import (
    Conditioning,
    Picture,
    Source,
    image_latent_scale,
    picture_size,
    place_image,
    with_leading,
)
from .vae_stage import Tiling, check_decodable, check_frame, decode_frames, encode_frames
from .windows import Joiner, choose_overlap, window_request

logger = logging.getLogger(__name__)

TILED = "frames are cut into tiles, for want of memory: their edges may show"

StepCallback = Callable[[int, int, mx.array], bool | None]
Progress = Callable[[str, int, int], None]


class CogVideoXPipeline(ModelFolder):
    """A CogVideoX model folder, ready to make videos.

    The networks are freed after their stage of a run.
    """

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

    def request(
        self,
        prompt: str | None,
        negative_prompt: str = "",
        *,
        image: Picture | None = None,
        video: Picture | None = None,
        strength: float | None = None,
        image_fit: str | None = None,
        image_latent_scale: str | None = None,
        source_tiling: str | None = None,
        extend: int = 0,
        overlap: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        dynamic_cfg: bool | str | None = None,
        guidance_range: tuple[int, int] | None = None,
        uncond: str = "empty",
        cache: str | None = None,
        cache_threshold: float | None = None,
        sequential_guidance: bool | None = None,
        scheduler: str | Scheduler | None = None,
        seed: int | None = None,
        tiling: str = "auto",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Request:
        """What this model would do when asked for a video. No weight is read.

        Args:
            prompt: what to show. The models were trained on long English descriptions.
            negative_prompt: what to steer away from.
            image: for image-to-video models, the picture that the video begins with: a file, or in
                the size of the video a PIL image or uint8 ``[height, width, 3]``.
            video: a clip to make another one of: a file, a folder of frames, or uint8
                ``[num_frames, height, width, 3]``.
            strength: of the noise on `video`: near 0 little of it changes, with 1 nothing stays;
                None is 0.8.
            image_fit: how a file comes to the size of the video: ``"crop"`` (None, too) covers it,
                ``"pad"`` sets it on black, ``"stretch"`` distorts it.
            image_latent_scale: of version 1.5's picture, ``"official"`` (None, too),
                ``"diffusers"`` or ``"finetune"``: see ``sources.image_latent_scale``.
            source_tiling: how the VAE takes `image` or `video`, or the frames that a window goes on
                from, ``"seamless"`` or ``"tiled"``; None is tiled where `tiling` is.
            extend: windows of `num_frames` that go on after the first one.
            overlap: frames that each of them begins with and that are blended; None is 9, or the
                last one for an image-to-video model.
            num_frames: 8N+1; None is the model's own, as for `height` and `width` in pixels. A
                model of many shapes takes that of the image, its shorter side as it was trained.
            num_inference_steps: denoising steps, 1 to 1000.
            guidance_scale: weight of the prompt; 1 or less skips the unconditional pass.
            dynamic_cfg: guidance over the steps: False constant, True or ``"wave"`` as the
                official tools have it, ``"cosine"`` rising to the end; None is the variant's
                recommendation.
            guidance_range: first step with guidance, from 0, and the one after the last; the
                others skip the unconditional pass.
            uncond: what is unconditional: ``"empty"``, the embeddings of the negative prompt, or
                ``"zero"``, embeddings of zeros as the original tools have them.
            cache: skip the blocks in some steps, ``"teacache"`` or ``"first-block"``; None computes
                all. See ``caching``.
            cache_threshold: how much may change before a step is computed; None is usual.
            sequential_guidance: compute the two passes of guidance one after the other, not as one
                batch: half the activations, in about the same time. None does so where there is no
                memory for the batch.
            scheduler: ``"ddim"``, ``"dpm"`` or an object; None is the variant's recommendation.
            seed: of the initial noise and of the DPM sampler's; None draws one.
            tiling: how the VAE takes a frame: ``"none"`` whole, ``"seamless"`` in strips with the
                same result and less memory, ``"tiled"`` in tiles with another result and the
                least memory; ``"auto"`` chooses by the memory there is.
            tile_size: height and width of a tile in pixels; None is half the model's native size.
            tile_overlap: share of a tile's height and width that the next one covers, too.

        Raises:
            InvalidInputError: an argument the model can't follow.
        """
        if not math.isfinite(guidance_scale):
            raise InvalidInputError(f"guidance_scale must be a finite number; got {guidance_scale}")
        seed = secrets.randbelow(2**32) if seed is None else seed
        if not 0 <= seed < 2**63:
            raise InvalidInputError(f"seed must be from 0 to 2**63 - 1; got {seed}")
        check_uncond(uncond, bool(negative_prompt))
        scheduler = self._recommended("scheduler", scheduler)
        if not isinstance(scheduler, Scheduler):
            scheduler = scheduler_name(scheduler, self.scheduler_config)
        any_shape = self.variant is not None and self.variant.longest_side is not None
        if any_shape and image is not None and height is width is None:
            height, width = self.variant.size_like(picture_size(image))
        geometry = self.geometry(num_frames, height, width)
        if sequential_guidance is None:
            sequential_guidance = guidance_scale > 1 and split_cfg(self, geometry, cache)
        way = self._tiling(
            tiling, tile_size, tile_overlap, *geometry.latent_shape[2:4], decode=True
        )
        encodes_frames = extend > 0 or image is not None or video is not None
        if encodes_frames and source_tiling is None:
            source_tiling = "tiled" if way.mode == "tiled" else "seamless"
        source = Source.choose(
            takes_image=self.takes_image,
            geometry=geometry,
            image=image,
            video=video,
            extended=extend > 0,
            strength=strength,
            fit=image_fit,
            image_latent_scale=image_latent_scale,
            tiling=source_tiling,
        )
        request = Request(
            prompt,
            negative_prompt,
            geometry,
            num_inference_steps,
            guidance_scale,
            schedule_name(self._recommended("dynamic_cfg", dynamic_cfg)),
            scheduler,
            seed,
            way,
            source,
            uncond,
            guidance_range if guidance_range is None else tuple(guidance_range),
            extend,
            choose_overlap(
                overlap,
                extend=extend,
                takes_image=self.takes_image,
                num_frames=geometry.num_frames,
            ),
            cache,
            resolve_cache_threshold(cache, cache_threshold),
            sequential_guidance,
        )
        make_run_scheduler(self, request)  # refuses a number of steps that it can't follow
        request.check_steps()
        return request

    def __call__(
        self,
        prompt: str | None = None,
        negative_prompt: str = "",
        *,
        prompt_embeds: mx.array | None = None,
        negative_prompt_embeds: mx.array | None = None,
        latents: mx.array | None = None,
        output_type: str = "np",
        callback_on_step_end: StepCallback | None = None,
        on_progress: Progress | None = None,
        **settings: Any,
    ) -> np.ndarray | mx.array:
        """Makes one video of a prompt.

        Args:
            prompt, negative_prompt, settings: those of ``request``: `image`, `video`, `num_frames`,
                `height`, `width`, `num_inference_steps`, `guidance_scale`, `seed`, ...
            prompt_embeds: ``[1, text_length, text_embed_dim]`` in place of `prompt`.
            negative_prompt_embeds: the same in place of `negative_prompt`.
            latents: initial noise ``[1, frames, height, width, channels]`` in latents, 1.5's extra
                leading frame included.
            output_type: ``"np"`` for uint8 ``[F, H, W, 3]``, ``"float"`` for float32 in [0, 1],
                ``"latent"`` for the final latents in float32, shaped like `latents`.
            callback_on_step_end: called with the step's index, timestep and latents; returning
                False ends the denoising there, and leaves out the windows after it.
            on_progress: called with a stage's name, the steps done and their number.

        Raises:
            InvalidInputError: an argument the model can't follow; before any weight is read.
            GenerationError: the model produced NaN or one constant colour.
        """
        if output_type not in ("np", "float", "latent"):
            raise InvalidInputError(f"output_type must be np, float or latent; got {output_type!r}")
        if prompt is None and prompt_embeds is None:
            raise InvalidInputError("give a prompt or prompt_embeds")
        prompt = prompt if prompt_embeds is None else None
        request = self.request(prompt, negative_prompt, **settings)
        if settings.get("tiling", "auto") == "auto" and request.tiling.mode == "tiled":
            logger.warning(TILED)
        geometry = request.geometry
        if latents is not None and tuple(latents.shape) != geometry.latent_shape:
            raise InvalidInputError(
                f"latents must have shape {geometry.latent_shape}; got {tuple(latents.shape)}"
            )
        check_uncond(request.uncond, negative_prompt_embeds is not None)
        if output_type != "latent":
            self.check_decodable(request)
        encodes = prompt_embeds is None or (
            _needs_negative(request) and negative_prompt_embeds is None
        )
        check_memory_limit(
            self,
            request,
            decode=output_type != "latent",
            done=() if encodes else ("encode",),
        )
        request.source.check(geometry, self.fps)
        report = on_progress or (lambda stage, done, total: None)

        if request.extend and (output_type == "latent" or latents is not None):
            raise InvalidInputError("a video of several windows has no latents of its own")

        report("encode", 0, 1)
        embeds = self._text(request, {}, prompt_embeds, negative_prompt_embeds)
        self.free("text_encoder")
        report("encode", 1, 1)

        stopped = False

        def denoised(window: Request) -> mx.array:
            nonlocal stopped
            conditioning = self.condition(window, on_progress=report)
            report("denoise", 0, window.steps)
            for state in self.denoise(window, embeds, conditioning=conditioning, latents=latents):
                report("denoise", state.step, window.steps)
                if callback_on_step_end is not None:
                    index, timestep = state.step - 1, state.timestep
                    if callback_on_step_end(index, timestep, state.latents) is False:
                        stopped = True
                        break
            return state.latents

        if output_type == "latent":
            return denoised(request)
        frames = self.join(
            request,
            denoised,
            output_type=output_type,
            on_progress=report,
            is_last=lambda: stopped,
        )
        return np.concatenate(list(frames))

    def join(
        self,
        request: Request,
        denoised: Callable[[Request], mx.array],
        *,
        output_type: str = "np",
        on_progress: Progress | None = None,
        is_last: Callable[[], bool] = lambda: False,
    ) -> Iterator[np.ndarray]:
        """The frames of all windows of a video, in order, as they are settled.

        Args:
            denoised: makes the latents of a window, given its request.
            output_type, on_progress: as in ``decode``.
            is_last: asked after each window's latents; True leaves out the windows after it.

        Yields:
            Frames as ``decode`` does.
        """
        joiner = Joiner(request.overlap)
        for number in range(1 + request.extend):
            window = window_request(request, number, joiner.tail)
            latents = denoised(window)
            last = number == request.extend or is_last()
            chunks = self.decode(window, latents, output_type=output_type, on_progress=on_progress)
            yield from joiner.add(chunks, last=last)
            if last:
                return

    def encode(self, requests: Iterable[Request]) -> Iterator[mx.array]:
        """The text stage of each of many requests; frees the text encoder after the last.

        Yields:
            ``[1, text_length, text_embed_dim]``, or with guidance ``[2, ...]``: the
            unconditional, then the prompt's.
        """
        known: dict[str | None, mx.array] = {}
        try:
            for request in requests:
                yield self._text(request, known)
                # The negative prompt seldom changes, and several seeds share a prompt.
                texts = (request.prompt, request.negative_prompt)
                known = {text: known[text] for text in texts if text in known}
        finally:
            self.free("text_encoder")

    def _text(
        self,
        request: Request,
        known: dict[str | None, mx.array],
        prompt_embeds: mx.array | None = None,
        negative_prompt_embeds: mx.array | None = None,
    ) -> mx.array:
        """A request's embeddings; `known` are those of some texts, and gets the others."""

        def embeds_of(text: str) -> mx.array:
            if text not in known:
                known[text] = self.encode_prompt(text)
            return known[text]

        negative = negative_prompt_embeds
        if _needs_negative(request) and negative is None:
            negative = embeds_of(request.negative_prompt)
        positive = embeds_of(request.prompt) if prompt_embeds is None else prompt_embeds
        embeds = [positive]
        if request.guided:
            embeds.insert(0, mx.zeros_like(positive) if negative is None else negative)
        embeds = mx.concatenate(embeds).astype(self.dtype)
        mx.eval(embeds)
        return embeds

    def encode_prompt(self, prompt: str) -> mx.array:
        """Text to ``[1, text_length, text_embed_dim]``; warns of words that don't fit."""
        length = self.configs["transformer"].max_text_seq_length
        if lost := self.tokenizer.truncated_text(prompt, length):
            logger.warning("the prompt is cut at %d tokens; this is lost: %s", length, lost)
        ids = self.tokenizer([prompt], max_length=length)
        return self.text_encoder(ids, EvalSchedule(prefetch=0))

    def condition(
        self, request: Request, *, on_progress: Progress | None = None
    ) -> Conditioning | None:
        """The stage of what a video starts from; frees the VAE. None with noise alone.

        Raises:
            InvalidInputError: its file can't be read (any more).
        """
        source, geometry, config = request.source, request.geometry, self.configs["vae"]
        if source.is_noise:
            return None
        report = on_progress or (lambda stage, done, total: None)
        report("source", 0, 1)
        key, way = _source_key(request.seed), request.source_tiling.settings()
        if source.image is not None:
            posterior = self.encode_video(source.read_image(geometry)[None], 1, **way)
            scale = image_latent_scale(config, source.image_latent_scale)
            latents = posterior.sample(key).astype(mx.float32) * scale
            made = Conditioning(image_latents=place_image(latents, geometry.latent_shape[1]))
        else:
            frames = source.prefix
            if frames is None:
                frames = source.read_video(geometry, self.fps)
            posterior = self.encode_video(frames, len(frames), **way)
            latents = posterior.sample(key).astype(mx.float32) * config.scaling_factor
            latents = with_leading(latents, geometry.leading_latents)
            made = Conditioning(start=latents)
            if source.prefix is not None:
                made = Conditioning(prefix=latents)
        mx.eval(*made.arrays().values())
        report("source", 1, 1)
        return made

    def denoise(
        self,
        request: Request,
        embeds: mx.array,
        state: DenoisingState | None = None,
        *,
        conditioning: Conditioning | None = None,
        latents: mx.array | None = None,
    ) -> Iterator[DenoisingState]:
        """The denoising stage; frees the transformer when it ends or is left.

        Args:
            embeds: what ``encode`` gave for the request.
            state: where to go on; None begins with noise.
            conditioning: what ``condition`` gave for it, which is None with noise alone.
            latents: the noise to begin with; None draws it from the request's seed.

        Yields:
            The state after each step, evaluated. The last one's latents are the result.

        Raises:
            GenerationError: a step gave NaN or infinity.
            InvalidInputError: the request needs a conditioning.
        """
        if conditioning is None and not request.source.is_noise:
            raise InvalidInputError("this request starts from more than noise: condition it")
        try:
            yield from denoising_steps(
                self, request, embeds, state, conditioning or Conditioning(), latents
            )
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


def _needs_negative(request: Request) -> bool:
    """Whether the unconditional is the embeddings of a text."""
    return request.guided and request.uncond == "empty"


def _source_key(seed: int) -> mx.array:
    """Of the latents of a picture or video, which are drawn, too."""
    return mx.random.key(seed + 2**63)
