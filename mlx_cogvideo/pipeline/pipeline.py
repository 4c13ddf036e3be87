"""From a prompt to a video: the one story that everything else consumes.

Stages run one after another, and each frees its network before the next begins: at any moment
memory holds the text encoder, or the transformer, or the VAE.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import mlx.core as mx
import numpy as np

from ..diffusion.conditioning import Conditioning
from ..diffusion.denoising import DenoisingState, denoising_steps
from ..diffusion.division import Division
from ..diffusion.split import WHOLE, Split
from ..errors import InvalidInputError
from ..nn.autoencoder import Posterior
from . import run_stages as stages
from .call import Call, PromptedSettings, given_embeds
from .diffusers_names import DiffusersNames
from .events import Event, Progress, RunState, no_progress
from .fields import with_arguments
from .geometry import Geometry
from .many import PipelineCall
from .output import STREAMED_TYPES, VideoOutput, check_output_type, to_pictures
from .recording import NOT_RECORDED, Meter, make_record
from .resolved import ResolvedSettings
from .resolver import initial_noise, model_geometry, resolve, run_scheduler, sampling
from .settings import VideoSettings
from .step_hook import StepHook
from .vae_stage import Dealer, deal_to_none
from .windows import extended_events


class CogVideoXPipeline(DiffusersNames):
    """A CogVideoX model folder, ready to make videos; each stage frees its network.

    Attributes:
        needs_video: whether a call must have a video to start from.
        make_split: makes this process's part of the steps, where several take them together.
        deal_tiles: deals tiles that are decoded to these processes.
    """

    needs_video: ClassVar[bool] = False
    make_split: Callable[[Division], Split] = staticmethod(lambda division: WHOLE)
    deal_tiles: Dealer = staticmethod(deal_to_none)

    def events(
        self,
        settings: ResolvedSettings,
        run: RunState | None = None,
        *,
        noise: mx.array | None = None,
        output_type: str = "uint8",
        after_step: Callable[[DenoisingState], DenoisingState] = lambda state: state,
        ends_early: Callable[[], bool] = lambda: False,
    ) -> Iterator[Event]:
        """Tells the story of a video: text, source, denoising, decoding, event by event.

        Args:
            run: what has been computed before; None begins.
            noise: initial noise in place of the seed's, in the shape of the latents.
            output_type: ``"uint8"`` for uint8 frames, ``"np"`` for float32 in [0, 1], ``"latent"``
                for none: the last event's run has the latents.
            after_step: called with the state after each step; the run continues with its result.
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
                window,
                embeds,
                run.denoising,
                conditioning=run.conditioning,
                latents=noise,
                after_step=after_step,
            ):
                run = replace(run, denoising=state)
                yield Event("denoise", state.step, window.steps, window, run)
                if ends_early():
                    break
            if output_type != "latent":
                total = window.geometry.num_frames
                yield Event("decode", 0, total, window, run)
                for done, frames in stages.decode(
                    self, window, run.latents, output_type, self.deal_tiles
                ):
                    yield Event("decode", done, total, window, run, frames)

        check_output_type(output_type, settings.extend, STREAMED_TYPES)
        run = run or RunState()
        if settings.extend:
            return extended_events(tell, settings, run, ends_early)
        return tell(settings, run)

    @with_arguments(PipelineCall)
    def __call__(self, call: PipelineCall) -> VideoOutput:
        """Makes a video of each prompt, one after another.

        The first video takes the seed, and each further one the next number.

        Raises:
            InvalidInputError: an argument the model can't follow; before any weight is read.
            GenerationError: the model produced NaN or one constant colour.
        """
        if self.needs_video and call.video is None:
            raise InvalidInputError("give the video to start from")
        jobs = call.prepared(self)
        records = [make_record(self, settings, {}, fps=self.fps) for _, settings in jobs]
        if beyond := call.not_recorded(self.has_own_schedule):
            records = [{**record, NOT_RECORDED: beyond} for record in records]
        meters = [Meter(record, call.on_progress) for record in records]
        runs = self._texts(jobs, meters[0])
        made = [
            self._make(*job, run, meter) for job, run, meter in zip(jobs, runs, meters, strict=True)
        ]
        frames = mx.concatenate(made) if call.output_type == "latent" else made
        if not call.return_dict:
            return cast(VideoOutput, (frames,))  # which the signature doesn't say
        return VideoOutput(frames, self.fps, records, self.identity)

    def _texts(self, jobs: list[tuple[Call, ResolvedSettings]], report: Progress) -> list[RunState]:
        """What a call's videos begin with: given embeddings, or the texts of several videos."""
        call, _ = jobs[0]
        given = call.prompt_embeds is not None or call.negative_prompt_embeds is not None
        if len(jobs) == 1 and not given:
            return [RunState()]
        report("encode", 0, 1)
        if given:
            with self.keeping("text_encoder"):
                embeds = [given_embeds(self, *job) for job in jobs]
        else:
            embeds = list(self.encode(settings for _, settings in jobs))
        report("encode", 1, 1)
        return [RunState(embeds=each) for each in embeds]

    def _make(self, call: Call, settings: ResolvedSettings, run: RunState, report: Progress) -> Any:
        """One video of a call, in the form that the call asks for."""
        kind, hook, frames = call.output_type, StepHook(self, call.callback_on_step_end), []
        for event in self.events(
            settings,
            run,
            noise=call.latents,
            output_type="uint8" if kind == "pil" else kind,
            after_step=hook,
            ends_early=lambda: hook.stopped,
        ):
            report(event.stage, event.done, event.total)
            if event.frames is not None:
                frames.append(event.frames)
        if kind == "latent":
            return event.run.latents
        video = np.concatenate(frames)
        return to_pictures(video) if kind == "pil" else video

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
        after_step: Callable[[DenoisingState], DenoisingState] = lambda state: state,
    ) -> Iterator[DenoisingState]:
        """The denoising stage; frees the transformer when it ends or is left.

        Args:
            embeds: what ``encode`` gave for the settings.
            state: where to go on; None begins with noise.
            conditioning: what ``condition`` gave for it, which is None with noise alone.
            latents: the noise to begin with; None draws it from the seed.
            after_step: as in ``events``.

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
                after_step,
                self.make_split(settings.division),
            )
        finally:
            self.free("transformer")

    def decode(
        self,
        settings: ResolvedSettings,
        latents: mx.array,
        *,
        output_type: str = "uint8",
        on_progress: Progress = no_progress,
    ) -> Iterator[np.ndarray]:
        """The last stage, latents to pixels; frees the VAE when it ends or is left.

        Args:
            latents: what ``denoise`` came to.
            output_type: ``"uint8"``, or ``"np"`` for float32 in [0, 1].
            on_progress: as in a pipeline's call.

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
        """Checks that latents can be decoded.

        Raises:
            InvalidInputError: an array would be too large for MLX, or weights are missing.
            CheckpointError: those of the small decoder are another network's.
        """
        stages.check_decoder(self, settings)


class CogVideoXImageToVideoPipeline(CogVideoXPipeline):
    """A pipeline that only opens image-to-video models; the call needs an `image`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not self.takes_image:
            raise InvalidInputError(
                f"{self.folder} makes videos of text: open it with CogVideoXPipeline"
            )


class CogVideoXVideoToVideoPipeline(CogVideoXPipeline):
    """A pipeline whose calls need a `video` to start from."""

    needs_video = True
