"""``lora.py``: clips and captions in, an adapter out."""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoints import default_model, holds_adapter, model_identity
from ..checkpoints.components import DTYPES
from ..device import manage_memory, size
from ..distributed import Distributed
from ..errors import CogVideoXError, InvalidInputError, OutputError, mlx_errors
from ..files import check_unlocked, locked
from ..pipeline.events import RunState
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.resolved import ResolvedSettings
from ..runs.batch import IMAGE_MARK, read_prompts
from ..training.checkpoint import last_checkpoint, saved_checkpoints
from ..training.clips import Clip, choose_shape, find_clips
from ..training.estimates import estimate_training_memory
from ..training.latent_cache import Cache
from ..training.prepare import ClipOptions, load_text, prepare
from ..training.settings import Settings, adapter_parameters
from ..training.trainer import LESS_MEMORY, Trainer
from ..video import ClipSpec, write_video
from .announce import show_plan, warn_of_the_moment
from .awake import awake
from .common import FAILED, INTERRUPTED, Bars, be_quiet, run, say, wired_bytes
from .config_file import with_config_file
from .lora_options import make_parser
from .signals import Interrupts

OTHER_FOLDER = "choose another --adapter-path"
LOCK = ".lock"
"""The name of the file, in an adapter's folder, that is locked while it is trained."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(train, arguments)


@dataclass(frozen=True)
class Job:
    """What a command line asks for, checked and with nothing left to a default.

    Attributes:
        name: of the model, as it was given.
        prior: prompts whose videos are to stay as they are.
        samples: what to make on the way.
    """

    pipe: CogVideoXPipeline
    name: str | Path
    clips: Sequence[Clip]
    reading: ClipOptions
    settings: Settings
    prior: Sequence[str]
    samples: Sequence[ResolvedSettings]
    cache: Path


def train(arguments: Sequence[str] | None) -> int | None:
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, arguments))
    wired = wired_bytes(args)
    peers = Distributed.connect()
    if args.quiet or not peers.is_main:
        be_quiet()
        args.quiet = True
    job = _read_job(args, peers)
    _announce(job, args, peers.size)
    if args.dry_run:
        return _list(job.clips, job.reading) if peers.is_main else None
    lock = nullcontext()
    if peers.is_main:
        lock = locked_adapter(args.adapter_path, args.resume)
    manage_memory(wired=wired)
    interrupts = Interrupts()
    with mlx_errors(), interrupts, lock, awake(args.caffeinate):
        try:
            return _train(job, args, interrupts, peers)
        except KeyboardInterrupt as error:
            if peers.is_main:
                error.add_note(_kept(args.adapter_path, job.settings.iters))
            raise
        except CogVideoXError:
            raise
        except OSError as error:
            raise OutputError(f"{error.filename or args.adapter_path}: {error.strerror}") from error


def _kept(adapter_path: Path, iters: int) -> str:
    """What there is to go on from."""
    found = saved_checkpoints(adapter_path)
    if not found:
        return "no step is saved yet; clips and captions that were prepared are kept"
    return (
        f"{int(found[-1].name)} of {iters} steps are kept in {adapter_path}; the same command with "
        "--resume goes on"
    )


def _read_job(args: argparse.Namespace, peers: Distributed) -> Job:
    """Checks all that can be before anything is computed."""
    settings = Settings(
        iters=args.iters,
        learning_rate=args.learning_rate,
        rank=args.rank,
        alpha=args.alpha,
        targets=tuple(args.target),
        batch_size=args.batch_size,
        accumulate=args.grad_accumulation_steps,
        warmup=args.warmup,
        schedule=args.lr_schedule,
        caption_dropout=args.caption_dropout,
        image_dropout=args.image_dropout,
        image_latent_scale=args.image_latent_scale,
        prior_batch_size=args.prior_batch_size if args.prior_prompts else 0,
        prior_weight=args.prior_weight,
        seed=args.seed,
    )
    prior = (
        [prompt.text for prompt in read_prompts(args.prior_prompts)] if args.prior_prompts else []
    )
    if bool(args.sample_every) != bool(args.sample_prompt):
        raise InvalidInputError("--sample-every and --sample-prompt go together")
    clips = find_clips(args.data)
    if peers.is_main:
        # First: what is there may be what another training has written so far.
        lock_file = args.adapter_path / LOCK
        check_unlocked(args.adapter_path, OTHER_FOLDER, lock_file)
        check_adapter_path(args.adapter_path, args.resume)
    cache = args.cache or args.data / ".mlx_cogvideo"
    check_writable(cache, "--cache")
    name = args.model or default_model()
    pipe = CogVideoXPipeline.from_pretrained(
        name, DTYPES.get(args.dtype), download=not args.dry_run
    )
    reading = _reading(pipe, args)
    samples = [
        sample_request(pipe, prompt, reading.shapes[0], args) for prompt in args.sample_prompt
    ]
    return Job(pipe, name, clips, reading, settings, prior, samples, cache)


def _reading(pipe: CogVideoXPipeline, args: argparse.Namespace) -> ClipOptions:
    """How the clips are to be read, after checking that the model can make such videos."""
    fps, skip = args.fps or pipe.fps, (args.skip_frames[0], args.skip_frames[-1])
    if len(args.skip_frames) > 2 or min(skip) < 0:
        raise InvalidInputError("--skip-frames takes one or two numbers, 0 or more")
    if args.bucket and (args.frames or args.height or args.width):
        raise InvalidInputError("--bucket has frames, height and width inside: leave those out")
    sizes = args.bucket or [(args.frames, args.height, args.width)]
    made = [pipe.geometry(*wanted) for wanted in sizes]
    repeat = args.short == "repeat"
    shapes = [
        ClipSpec(g.num_frames, g.height, g.width, fps, skip, repeat_last=repeat)
        for g in dict.fromkeys(made)
    ]
    return ClipOptions(tuple(shapes), args.crop, args.seed, args.timeout)


def _announce(job: Job, args: argparse.Namespace, processes: int) -> None:
    """Says on stderr what will be learned, and what it needs."""
    pipe, clips, reading, settings = job.pipe, job.clips, job.reading, job.settings
    by_each = f" by each of {processes} processes" * (processes > 1)
    updates = f"steps of {settings.batch_size}"
    if settings.accumulate > 1:
        updates = f"updates of {settings.accumulate} times {settings.batch_size}"
    without = sum(not clip.caption for clip in clips)
    captions = f", {without} without a caption" * (without > 0)
    needs = [
        estimate_training_memory(
            pipe,
            pipe.geometry(shape.frames, shape.height, shape.width),
            settings.batch_size + settings.prior_batch_size,
            adapter_parameters(pipe.configs["transformer"], settings),
        )
        for shape in reading.shapes
    ]
    needs = {stage: max(need[stage] for need in needs) for stage in needs[0]}
    fps = reading.shapes[0].fps
    available, machine = pipe.machine.available, pipe.machine.memory
    lines = [
        ("model", f"{job.name}, {pipe.dtype_name}"),
        ("clips", f"{len(clips)} from {args.data}{captions}"),
        ("as", f"{' or '.join(map(_described, reading.shapes))}, {fps:g} a second"),
        ("adapter", f"{args.adapter_path}, rank {settings.rank}"),
        ("training", f"{settings.iters} {updates}{by_each}"),
    ]
    show_plan(lines, needs, available)
    need = max(needs.values())
    if need > machine:
        logger.warning("this may need more memory than there is: %s", LESS_MEMORY)
    elif need > available:
        warn_of_the_moment("this", need, available)


def _described(shape: ClipSpec) -> str:
    return f"{shape.frames} frames of {shape.width}x{shape.height}"


def _list(clips: Sequence[Clip], reading: ClipOptions) -> int | None:
    """Prints what each clip would be learned as; returns the exit code."""
    usable = 0
    for clip in clips:
        try:
            measured = reading.measure(clip)
            shape = choose_shape(measured, reading.shapes)
            what = f"{_described(shape)} of its {measured.frames} of "
            what += f"{measured.width}x{measured.height}"
            if measured.frames < (1 if shape.repeat_last else shape.frames):
                what = f"left out, {measured.frames} frames at {shape.fps:g} a second"
            else:
                usable += 1
        except InvalidInputError as error:
            what = f"left out, {error}"
        print(f"{clip.path}: {what}: {clip.caption}")
    return None if usable else FAILED


def _train(
    job: Job, args: argparse.Namespace, interrupts: Interrupts, peers: Distributed
) -> int | None:
    pipe, settings = job.pipe, job.settings
    bars = Bars(quiet=args.quiet, dynamic_ncols=True)
    try:
        identity = model_identity(job.name, pipe.folder)
        also = [*(sample.prompt for sample in job.samples), *job.prior]
        peers.check_same({"--resume": args.resume})
        with peers.main_process_first():
            learned, texts = prepare(
                pipe, identity, job.clips, job.reading, Cache(job.cache), bars, also
            )
        bars.close()
        mx.reset_peak_memory()
        with pipe.keeping("transformer"):
            trainer = Trainer(
                pipe,
                learned,
                texts[""],
                settings,
                args.adapter_path,
                keep=args.keep_checkpoints,
                prior=[texts[prompt] for prompt in job.prior],
                model=identity.get("sha256", identity),
                peers=peers,
            )
            if args.resume:
                trainer.resume()
                logger.info("%-8s after %d steps", "resumed", trainer.step)

            def show(told: dict) -> None:
                bars("train", told["step"], settings.iters)
                bars.note(f"loss {told['loss']:.4f}, {size(told['peak_memory'])}")
                if "validation" in told:
                    say(f"step {told['step']}: validation loss {told['validation']:.4f}")
                if args.sample_every and told["step"] % args.sample_every == 0:
                    make_samples(job, texts, args.adapter_path / "samples", told["step"])

            # What was prepared is on disk; only a step is worth waiting for.
            interrupts.patient = True
            done = trainer.train(
                save_every=args.save_every,
                validate_every=args.val_every,
                on_step=show,
                should_stop=lambda: interrupts.wanted,
            )
    finally:
        bars.close()
    if not done and peers.is_main:
        say(f"interrupted: {_kept(args.adapter_path, settings.iters)}")
    if not done:
        return INTERRUPTED
    if peers.is_main:
        print(args.adapter_path)
    return None


def sample_request(
    pipe: CogVideoXPipeline, text: str, shape: ClipSpec, args: argparse.Namespace
) -> ResolvedSettings:
    """A clip to make on the way, of ``prompt`` or ``prompt@@image``; the noise is always the same.

    Raises:
        InvalidInputError: the model can't make it.
    """
    prompt, mark, image = (part.strip() for part in text.partition(IMAGE_MARK))
    request = pipe.request(
        prompt,
        image=image if mark else None,
        image_latent_scale=args.image_latent_scale if mark else None,
        num_frames=shape.frames,
        height=shape.height,
        width=shape.width,
        num_inference_steps=args.sample_steps,
        seed=args.seed,
    )
    request.source.check(request.geometry, shape.fps)
    return request


def make_samples(job: Job, texts: dict[str, Path], folder: Path, step: int) -> None:
    """Writes the clips. One that can't be made is no reason to stop a training."""
    folder.mkdir(exist_ok=True)
    pipe, fps = job.pipe, job.reading.shapes[0].fps
    for number, request in enumerate(job.samples):
        output = folder / f"{step:07}-{number}.mp4"
        embeds = [load_text(texts[text]) for text in ("", request.prompt)]
        embeds = mx.concatenate(embeds[-1 - request.guided :])
        try:
            events = pipe.events(request, RunState(embeds=embeds))
            frames = [event.frames for event in events if event.frames is not None]
            write_video(output, np.concatenate(frames), fps, overwrite=True)
            logger.info("%-8s %s", "sample", output)
        except CogVideoXError as error:
            logger.warning("no sample of %r: %s", request.prompt, error)


def check_adapter_path(path: Path, resume: bool) -> None:
    """Raises an error where an adapter can't be written, another one is already, or there is
    nothing to resume."""
    check_writable(path, "--adapter-path")
    if resume:
        last_checkpoint(path)
    elif saved_checkpoints(path):
        raise OutputError(
            f"{path} holds a training: choose another --adapter-path, or go on with --resume"
        )
    elif holds_adapter(path):
        raise OutputError(f"{path} holds an adapter: choose another --adapter-path")


def check_writable(folder: Path, option: str) -> None:
    """Raises OutputError where a folder can't be made, or nothing can be written into it.

    Args:
        option: that would name another one.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise OutputError(f"{nearest} is a file: choose another {option} than {folder}")
    probe = nearest / f".mlx_cogvideo-probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{nearest} can't be written ({error.strerror}): choose another {option}"
        ) from None


@contextmanager
def locked_adapter(path: Path, resume: bool) -> Iterator[None]:
    """Keeps other trainings out of a folder, which is made if it isn't there.

    Raises:
        OutputError: there is one, or there has been one since `check_adapter_path` looked.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, OTHER_FOLDER, path / LOCK):
        check_adapter_path(path, resume)
        yield
