"""From a prompt to a video: the one story that everything else consumes.

Stages run one after another, and each frees its network before the next begins: at any moment
memory holds the text encoder, or the transformer, or the VAE.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np

from ..checkpoints.model_folder import ModelFolder
from ..diffusion.conditioning import Conditioning
from ..diffusion.denoising import DenoisingState, denoising_steps
from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from . import run_stages as stages
from .call import Call, PromptedSettings, check_output_type, given_embeds, prepare
from .events import Event, Progress, RunState, no_progress
from .fields import with_arguments
from .geometry import Geometry
from .resolved import ResolvedSettings
from .resolver import initial_noise, model_geometry, resolve, run_scheduler, sampling
from .settings import VideoSettings
from .vae_stage import check_decodable
from .windows import extended_events


class CogVideoXPipeline(ModelFolder):
    """A CogVideoX model folder, ready to make videos; each stage frees its network."""

    def events(
        self,
        settings: ResolvedSettings,
        run: RunState | None = None,
        *,
        noise: mx.array | None = None,
        output_type: str = "np",
        ends_early: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Tells the story of a video: text, source, denoising, decoding, event by event.

        Args:
            run: what has been computed before; None begins.
            noise: initial noise in place of the seed's, in the shape of the latents.
            output_type: ``"np"`` for uint8 frames, ``"float"`` for float32 in [0, 1], ``"latent"``
                for none: the last event's run has the latents.
            ends_early: asked after each step; True ends the denoising there.

        Raises:
            GenerationError: the model produced NaN, infinity or one constant colour.
            InvalidInputError: the file to start from can't be read (any more).
        """

        def tell(window: ResolvedSettings, run: RunState) -> Iterator[Event]:
            embeds = run.embeds
            if embeds is None:
                yield Event("encode", 0, 1, window, run)
                (embeds,) = self.encode([window])
                run = replace(run, embeds=embeds)
                yield Event("encode", 1, 1, window, run)
            if run.conditioning is None and run.denoising is None and not window.source.is_noise:
                yield Event("source", 0, 1, window, run)
                run = replace(run, conditioning=self.condition(window))
                yield Event("source", 1, 1, window, run)
            yield Event("denoise", run.steps_done, window.steps, window, run)
            for state in self.denoise(
                window, embeds, run.denoising, conditioning=run.conditioning, latents=noise
            ):
                run = replace(run, denoising=state)
                yield Event("denoise", state.step, window.steps, window, run)
                if ends_early():
                    break
            if output_type != "latent":
                total = window.geometry.num_frames
                yield Event("decode", 0, total, window, run)
                for done, frames in stages.decode(self, window, run.latents, output_type):
                    yield Event("decode", done, total, window, run, frames)

        check_output_type(output_type, settings)
        run = run or RunState()
        if settings.extend:
            return extended_events(tell, settings, run, ends_early)
        return tell(settings, run)

    @with_arguments(Call)
    def __call__(self, call: Call) -> np.ndarray | mx.array:
        """Makes one video of a prompt.

        Raises:
            InvalidInputError: an argument the model can't follow; before any weight is read.
            GenerationError: the model produced NaN or one constant colour.
        """
        settings, run = prepare(self, call), RunState()
        report, stopped, frames = call.on_progress or no_progress, False, []
        if call.prompt_embeds is not None or call.negative_prompt_embeds is not None:
            report("encode", 0, 1)
            run = RunState(embeds=given_embeds(self, call, settings))
            report("encode", 1, 1)

        def ends_early() -> bool:
            return stopped

        for event in self.events(
            settings, run, noise=call.latents, output_type=call.output_type, ends_early=ends_early
        ):
            report(event.stage, event.done, event.total)
            state = event.run.denoising
            if event.stage == "denoise" and state is not None and call.callback_on_step_end:
                given = state.step - 1, state.timestep, state.latents
                stopped = call.callback_on_step_end(*given) is False
            if event.frames is not None:
                frames.append(event.frames)
        return event.run.latents if call.output_type == "latent" else np.concatenate(frames)

    @with_arguments(PromptedSettings)
    def request(self, settings: PromptedSettings) -> ResolvedSettings:
        """Gives every setting its value for this model. No weight is read.

        Warns of what the model doesn't get of the prompts.

        Raises:
            InvalidInputError: a setting that the model can't follow.
        """
        resolved = resolve(self, settings)
        stages.warn_of_lost_text(self, resolved)
        return resolved

    def geometry(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Geometry:
        """The size of a run; None is the model's own.

        Raises:
            InvalidInputError: a size that the model can't make.
        """
        size = VideoSettings(num_frames=num_frames, height=height, width=width)
        return model_geometry(self, size.num_frames, size.height, size.width)

    def encode(self, videos: Iterable[ResolvedSettings]) -> Iterator[mx.array]:
        """The text stage of many videos; frees the text encoder after the last.

        Yields:
            Embeddings ``[1 or 2, text_length, text_embed_dim]``, an unconditional one first.
        """
        yield from stages.encode_texts(self, partial(self.encode_prompt, warn=False), videos)

    def encode_prompt(self, prompt: str, *, warn: bool = True) -> mx.array:
        """Encodes a text to ``[1, text_length, text_embed_dim]``; may warn of what is lost."""
        return stages.encode_prompt(self, prompt, warn=warn)

    def condition(self, settings: ResolvedSettings) -> Conditioning | None:
        """The stage of what a video starts from; frees the VAE. None with noise alone.

        Raises:
            InvalidInputError: its file can't be read (any more).
        """
        return stages.condition(self, settings)

    def denoise(
        self,
        settings: ResolvedSettings,
        embeds: mx.array,
        state: DenoisingState | None = None,
        *,
        conditioning: Conditioning | None = None,
        latents: mx.array | None = None,
    ) -> Iterator[DenoisingState]:
        """The denoising stage; frees the transformer when it ends or is left.

        Args:
            embeds: what ``encode`` gave for the settings.
            state: where to go on; None begins with noise.
            conditioning: what ``condition`` gave for it, which is None with noise alone.
            latents: the noise to begin with; None draws it from the seed.

        Yields:
            The state after each step, evaluated. The last one's latents are the result.

        Raises:
            GenerationError: a step gave NaN or infinity.
            InvalidInputError: the settings need a conditioning.
        """
        if state is not None and state.step < settings.steps:
            state = state.to_save
        elif state is not None:
            return
        if conditioning is None and not settings.source.is_noise:
            raise InvalidInputError("this video starts from more than noise: condition it first")
        noise = initial_noise(settings) if latents is None else latents
        try:
            yield from denoising_steps(
                self.transformer,
                run_scheduler(self, settings),
                sampling(self, settings),
                embeds,
                noise,
                conditioning or Conditioning(),
                state,
            )
        finally:
            self.free("transformer")

    def decode(
        self,
        settings: ResolvedSettings,
        latents: mx.array,
        *,
        output_type: str = "np",
        on_progress: Progress = no_progress,
    ) -> Iterator[np.ndarray]:
        """The last stage, latents to pixels; frees the VAE when it ends or is left.

        Args:
            latents: what ``denoise`` came to.
            output_type, on_progress: as in a pipeline's call.

        Yields:
            The frames in order, chunk by chunk: ``[F, H, W, 3]``.

        Raises:
            GenerationError: NaN or infinity, or after the last chunk: one constant colour.
        """
        total = settings.geometry.num_frames
        on_progress("decode", 0, total)
        for done, frames in stages.decode(self, settings, latents, output_type):
            if frames is not None:
                yield frames
            on_progress("decode", done, total)

    def encode_video(
        self,
        frames: Iterable[np.ndarray],
        num_frames: int,
        *,
        tiling: str = "auto",
        tile_size: tuple[int, int] | None = None,
        tile_overlap: tuple[float, float] | None = None,
    ) -> Posterior:
        """Encodes a clip to the posterior of its latents, which aren't scaled; frees the VAE.

        Args:
            frames: uint8 ``[H, W, 3]``, taken as they are needed, so that they can come from a
                file; with tiles they are kept until the last one is there.
            num_frames: how many of them to take, usually 8N+1.
            tiling, tile_size, tile_overlap: as in a pipeline's call.

        Raises:
            InvalidInputError: there are fewer frames, or their size can't be encoded.
        """
        how = VideoSettings(
            num_frames=num_frames, tiling=tiling, tile_size=tile_size, tile_overlap=tile_overlap
        )
        return stages.encode_video(
            self, frames, how.num_frames, how.tiling, how.tile_size, how.tile_overlap
        )

    def check_decodable(self, settings: ResolvedSettings) -> None:
        """Raises InvalidInputError where decoding would make an array that MLX can't hold."""
        check_decodable(self.configs["vae"], settings.decoded_shape, settings.decoding)
