"""``lora.py``: clips and captions in, an adapter out."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import default_model, model_identity
from ..checkpoints.components import DTYPES
from ..device import manage_memory, size
from ..distributed import Distributed
from ..errors import CogVideoXError, InvalidInputError, OutputError, mlx_errors
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.resolved import ResolvedSettings
from ..runs.batch import IMAGE_MARK, read_prompts
from ..training.checkpoint import (
    check_adapter_folder,
    check_writable,
    locked_adapter_folder,
    saved_checkpoints,
)
from ..training.clips import Clip, choose_spec, find_clips
from ..training.estimates import estimate_training_memory, memory_advice
from ..training.latent_cache import Cache
from ..training.prepare import ClipOptions, prepare
from ..training.sample_videos import write_sample_videos
from ..training.settings import TrainingSettings, adapter_parameters
from ..training.trainer import Trainer
from ..video import ClipSpec
from .announce import most_by_stage, show_plan, warn_of_the_moment
from .awake import awake
from .common import FAILED, INTERRUPTED, Bars, be_quiet, run, say, wired_bytes
from .config_file import with_config_file
from .lora_options import (
    SAMPLE_STEPS,
    check_needs,
    make_parser,
    read_settings,
    without_effect,
)
from .signals import Interrupts

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(train, arguments)


@dataclass(frozen=True)
class TrainingJob:
    """A command line that is checked and has a value for everything.

    Attributes:
        model: the model's folder, hub id or short name, as it was given.
        prior: prompts whose videos should not change.
        sample_videos: videos to make during the training.
    """

    pipe: CogVideoXPipeline
    model: str | Path
    clips: Sequence[Clip]
    clip_options: ClipOptions
    settings: TrainingSettings
    prior: Sequence[str]
    sample_videos: Sequence[ResolvedSettings]
    cache: Cache


def train(arguments: Sequence[str] | None) -> int | None:
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, arguments))
    wired = wired_bytes(args)
    distributed = Distributed.connect()
    if args.quiet or not distributed.is_main:
        be_quiet()
        args.quiet = True
    job = _read_job(args, distributed)
    _announce(job, args, distributed.size)
    if args.dry_run:
        return _list_clips(job.clips, job.clip_options) if distributed.is_main else None
    lock = nullcontext()
    if distributed.is_main:
        lock = locked_adapter_folder(args.adapter_path, args.resume)
    manage_memory(wired=wired)
    interrupts = Interrupts()
    with mlx_errors(), interrupts, lock, awake(args.caffeinate):
        try:
            return _run(job, args, interrupts, distributed)
        except KeyboardInterrupt as error:
            if distributed.is_main:
                error.add_note(_saved_steps(args.adapter_path, job.settings.iters))
            raise
        except CogVideoXError:
            raise
        except OSError as error:
            raise OutputError(f"{error.filename or args.adapter_path}: {error.strerror}") from error


def _read_job(args: argparse.Namespace, distributed: Distributed) -> TrainingJob:
    """Checks everything that can be checked before anything is computed."""
    check_needs(args)
    settings, prior = read_settings(args), []
    if args.prior_prompts:
        prior = [prompt.text for prompt in read_prompts(args.prior_prompts)]
    clips = find_clips(args.data, args.adapter_path)
    if distributed.is_main:
        check_adapter_folder(args.adapter_path, args.resume)
    cache = args.cache or args.data / ".mlx_cogvideo"
    check_writable(cache, "--cache")
    model = args.model or default_model()
    dtype = DTYPES.get(args.dtype)
    pipe = CogVideoXPipeline.from_pretrained(model, dtype, download=not args.dry_run)
    for line in without_effect(args, pipe):
        logger.warning("%s", line)
    options = _clip_options(pipe, args, settings.seed)
    steps = SAMPLE_STEPS if args.sample_steps is None else args.sample_steps
    videos = [
        _sample_video(pipe, text, options.specs[0], settings, steps) for text in args.sample_prompt
    ]
    return TrainingJob(pipe, model, clips, options, settings, prior, videos, Cache(cache))


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
    return ClipOptions(tuple(specs), args.crop, seed, args.timeout)


def _sample_video(
    pipe: CogVideoXPipeline, text: str, spec: ClipSpec, settings: TrainingSettings, steps: int
) -> ResolvedSettings:
    """A video of ``prompt`` or ``prompt@@image``, whose noise is always the same.

    Raises:
        InvalidInputError: the model can't make it.
    """
    prompt, mark, image = (part.strip() for part in text.partition(IMAGE_MARK))
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


def _announce(job: TrainingJob, args: argparse.Namespace, processes: int) -> None:
    """Says on stderr what will be learned, and how much memory that needs."""
    pipe, clips, specs, settings = job.pipe, job.clips, job.clip_options.specs, job.settings
    without = sum(not clip.caption for clip in clips)
    captions = f", {without} without a caption" if without else ""
    updates = f"steps of {settings.batch_size}"
    if settings.accumulate > 1:
        updates = f"updates of {settings.accumulate} times {settings.batch_size}"
    by_each = f" by each of {processes} processes" if processes > 1 else ""
    lines = [
        ("model", f"{job.model}, {pipe.dtype_name}"),
        ("clips", f"{len(clips)} from {args.data}{captions}"),
        ("as", f"{' or '.join(map(_described, specs))}, {specs[0].fps:g} a second"),
        ("adapter", f"{args.adapter_path}, rank {settings.rank}"),
        ("training", f"{settings.iters} {updates}{by_each}"),
    ]
    batch_size = settings.batch_size + settings.prior_batch_size
    parameters = adapter_parameters(pipe.configs["transformer"], settings)
    geometries = (pipe.geometry(spec.frames, spec.height, spec.width) for spec in specs)
    needs = most_by_stage(
        estimate_training_memory(pipe, geometry, batch_size, parameters) for geometry in geometries
    )
    available, need = pipe.machine.available, max(needs.values())
    show_plan(lines, needs, available)
    if need > pipe.machine.memory:
        logger.warning("this may need more memory than this machine has: %s", memory_advice(pipe))
    elif need > available:
        warn_of_the_moment("this", need, available)


def _described(spec: ClipSpec) -> str:
    return f"{spec.frames} frames of {spec.width}x{spec.height}"


def _list_clips(clips: Sequence[Clip], options: ClipOptions) -> int | None:
    """Prints what would be learned of each clip; returns the exit code."""
    usable = 0
    for clip in clips:
        try:
            info = options.measure(clip)
            spec = choose_spec(info, options.specs)
            if info.frames < (1 if spec.repeat_last else spec.frames):
                use = f"left out, {info.frames} frames at {spec.fps:g} a second"
            else:
                use = f"{_described(spec)} of its {info.frames} of {info.width}x{info.height}"
                usable += 1
        except InvalidInputError as error:
            use = f"left out, {error}"
        print(f"{clip.path}: {use}: {clip.caption}")
    return None if usable else FAILED


def _run(
    job: TrainingJob, args: argparse.Namespace, interrupts: Interrupts, distributed: Distributed
) -> int | None:
    """Prepares the clips and trains; returns the exit code."""
    bars = Bars(quiet=args.quiet, dynamic_ncols=True)
    identity = model_identity(job.model, job.pipe.folder)
    also = [*(video.prompt for video in job.sample_videos), *job.prior]
    distributed.check_same({"--resume": args.resume})
    try:
        with distributed.main_process_first():
            samples, texts = prepare(
                job.pipe, identity, job.clips, job.clip_options, job.cache, bars, also
            )
        bars.close()
        mx.reset_peak_memory()
        with job.pipe.keeping("transformer"):
            trainer = Trainer(
                job.pipe,
                samples,
                texts[""],
                job.settings,
                args.adapter_path,
                keep=args.keep_checkpoints,
                prior=[texts[prompt] for prompt in job.prior],
                model=identity.get("sha256", identity),
                distributed=distributed,
            )
            done = _train(trainer, job, args, texts, bars, interrupts)
    finally:
        bars.close()
    if not done:
        if distributed.is_main:
            say(f"interrupted: {_saved_steps(args.adapter_path, job.settings.iters)}")
        return INTERRUPTED
    if distributed.is_main:
        print(args.adapter_path)
    return None


def _train(
    trainer: Trainer,
    job: TrainingJob,
    args: argparse.Namespace,
    texts: Mapping[str, Path],
    bars: Bars,
    interrupts: Interrupts,
) -> bool:
    """Trains, showing each step; returns whether the training is done."""
    if args.resume:
        trainer.resume()
        logger.info("%-8s after %d steps", "resumed", trainer.step)
    folder, fps = args.adapter_path / "samples", job.clip_options.specs[0].fps

    def on_step(row: Mapping[str, Any]) -> None:
        step = row["step"]
        bars("train", step, job.settings.iters)
        bars.note(f"loss {row['loss']:.4f}, {size(row['peak_memory'])}")
        if "validation" in row:
            say(f"step {step}: validation loss {row['validation']:.4f}")
        if args.sample_every and step % args.sample_every == 0:
            write_sample_videos(job.pipe, job.sample_videos, texts, folder, step, fps)

    # What was prepared is on disk already; only a step is worth waiting for.
    interrupts.patient = True
    return trainer.train(
        save_every=args.save_every,
        validate_every=args.val_every,
        on_step=on_step,
        should_stop=lambda: interrupts.wanted,
    )


def _saved_steps(adapter_path: Path, iters: int) -> str:
    """Says what was saved and how to continue."""
    found = saved_checkpoints(adapter_path)
    if not found:
        return "no step is saved yet; clips and captions that were prepared are kept"
    return (
        f"{int(found[-1].name)} of {iters} steps are kept in {adapter_path}; the same command with "
        "--resume continues the training"
    )
