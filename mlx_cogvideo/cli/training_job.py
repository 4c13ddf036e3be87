"""What a training is asked for, checked before anything is computed."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints import Adapter, default_model
from ..checkpoints.components import DTYPES
from ..distributed import Distributed
from ..errors import InvalidInputError
from ..files import file_digest
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.planned import load_adapters, open_to_plan
from ..pipeline.resolved import ResolvedSettings
from ..runs.batch import IMAGE_MARK, read_prompts
from ..training.checkpoint import (
    check_adapter_folder,
    check_resumable,
    check_writable,
    saved_checkpoints,
)
from ..training.clips import Clip
from ..training.existing_adapter import open_existing, resumed_settings
from ..training.latent_cache import Cache
from ..training.prepare import ClipOptions
from ..training.settings import TrainingSettings, check_rank
from ..training.trained_model import check_full_training
from ..video import ClipSpec
from .lora_options import SAMPLE_STEPS, check_needs, read_settings, without_effect
from .options import given_settings
from .reports import check_packages
from .training_data import cache_folder, find_all_clips, hold_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingJob:
    """A command line that is checked and has a value for everything.

    Attributes:
        model: the model's folder, hub id or short name, as it was given.
        clips: the clips to learn, and then those that are held out.
        prior: prompts whose videos should not change.
        sample_videos: videos to make during the training.
        existing: adapter to start from.
    """

    pipe: CogVideoXPipeline
    model: str | Path
    clips: Sequence[Clip]
    clip_options: ClipOptions
    settings: TrainingSettings
    prior: Sequence[str]
    sample_videos: Sequence[ResolvedSettings]
    cache: Cache
    existing: Adapter | None

    @property
    def other_texts(self) -> list[str]:
        """Texts beside the captions."""
        return [*(video.prompt for video in self.sample_videos), *self.prior]

    @property
    def shapes(self) -> str:
        """The shapes in which clips are learned, in words."""
        specs = self.clip_options.specs
        return f"{' or '.join(map(described, specs))}, {specs[0].fps:g} a second"


def described(spec: ClipSpec) -> str:
    """The length and size of clips, such as ``17 frames of 384x256``."""
    return f"{spec.frames} frames of {spec.width}x{spec.height}"


def read_job(args: argparse.Namespace, distributed: Distributed, *, plans: bool) -> TrainingJob:
    """Checks everything that can be checked before anything is computed.

    Args:
        plans: whether the job is only planned: nothing is downloaded.
    """
    check_needs(args)
    settings, prior = read_settings(args), []
    if args.prior_prompts:
        prior = [prompt.text for prompt in read_prompts(args.prior_prompts)]
    clips, held_out = find_all_clips(args)
    if distributed.is_main:
        check_adapter_folder(args.adapter_path, args.resume, settings.is_full)
        check_packages(args.report_to)
    cache = cache_folder(args)
    check_writable(cache, "--cache")
    model = args.model or default_model()
    dtype = DTYPES.get(args.dtype)
    opened = open_to_plan if plans else CogVideoXPipeline.from_pretrained
    pipe = opened(model, dtype, base=args.base, quantize=args.quantize)
    for line in [*load_adapters(pipe, args.lora), *without_effect(args, pipe)]:
        logger.warning("%s", line)
    settings, existing = _starting_point(pipe, args, settings)
    if settings.is_full:
        check_full_training(pipe, settings, args.adapter_path)
    elif settings.resume_adapter_file is None:
        check_rank(pipe.configs["transformer"], settings)
    if args.resume and distributed.is_main:
        check_resumable(args.adapter_path, settings.of_all(distributed.size))
    options = _clip_options(pipe, args, settings.seed)
    clips = hold_out(args, clips, held_out, settings.seed, options)
    steps = SAMPLE_STEPS if args.sample_steps is None else args.sample_steps
    videos = [
        _sample_video(pipe, text, options.specs[0], settings, steps) for text in args.sample_prompt
    ]
    cache = Cache(cache)
    return TrainingJob(pipe, model, clips, options, settings, prior, videos, cache, existing)


def _starting_point(
    pipe: CogVideoXPipeline, args: argparse.Namespace, settings: TrainingSettings
) -> tuple[TrainingSettings, Adapter | None]:
    """The settings with what an existing adapter decides, and that adapter if it is needed."""
    given = given_settings(args, TrainingSettings)
    if args.resume:
        settings = resumed_settings(settings, given, args.adapter_path)
    if settings.resume_adapter_file is None or (
        args.resume and saved_checkpoints(args.adapter_path)
    ):
        return settings, None
    settings, existing = open_existing(
        settings, given, pipe.configs["transformer"], download=pipe.download
    )
    if any(file_digest(adapter.file) == file_digest(existing.file) for adapter, _ in pipe.adapters):
        raise InvalidInputError(
            f"{existing.source} is given as --resume-adapter-file and as --lora, which would add "
            "it twice: leave out one of them"
        )
    # Another process has the checkpoint to resume from.
    return settings, None if args.resume else existing


def _clip_options(pipe: CogVideoXPipeline, args: argparse.Namespace, seed: int) -> ClipOptions:
    """Raises InvalidInputError if the model can't make videos like the clips."""
    skip = (args.skip_frames[0], args.skip_frames[-1])
    if len(args.skip_frames) > 2 or min(skip) < 0:
        raise InvalidInputError("--skip-frames takes one or two numbers, 0 or more")
    if args.bucket and (args.frames or args.height or args.width):
        raise InvalidInputError("--bucket includes frames, height and width: leave those out")
    sizes = args.bucket or [(args.frames, args.height, args.width)]
    geometries = dict.fromkeys(pipe.geometry(*wanted) for wanted in sizes)
    fps, repeat = args.fps or pipe.fps, args.short == "repeat"
    specs = [
        ClipSpec(each.num_frames, each.height, each.width, fps, skip, repeat_last=repeat)
        for each in geometries
    ]
    return ClipOptions(
        tuple(specs), args.crop, seed, args.timeout, args.windows, args.window_places
    )


def _sample_video(
    pipe: CogVideoXPipeline, text: str, spec: ClipSpec, settings: TrainingSettings, steps: int
) -> ResolvedSettings:
    """A video of ``prompt`` or ``prompt@@image``, whose noise is always the same.

    Raises:
        InvalidInputError: the model can't make it.
    """
    prompt, mark, image = (part.strip() for part in text.partition(IMAGE_MARK))
    if pipe.takes_image and not mark:
        raise InvalidInputError(
            f"--sample-prompt of an image-to-video model needs an image: TEXT{IMAGE_MARK}IMAGE"
        )
    video = pipe.request(
        prompt,
        image=image if mark else None,
        image_latent_scale=settings.image_latent_scale if mark else None,
        num_frames=spec.frames,
        height=spec.height,
        width=spec.width,
        num_inference_steps=steps,
        seed=settings.seed,
    )
    video.source.check(video.geometry, spec.fps)
    return video
