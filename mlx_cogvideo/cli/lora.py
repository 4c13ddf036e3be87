"""``mlx-cogvideo lora``: clips and captions in, an adapter out."""

import argparse
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import default_model, model_identity
from ..checkpoints.download import download_need, pending_bytes
from ..device import check_room, manage_memory, size
from ..distributed import Distributed
from ..errors import (
    CogVideoXError,
    NotDownloadedError,
    OutputError,
    mlx_errors,
)
from ..training.checkpoint import check_resumable, locked_adapter_folder, ways_on
from ..training.digests import model_digests
from ..training.estimates import estimate_training_memory, memory_advice
from ..training.log import TRAINING
from ..training.prepare import prepare, text_problems
from ..training.sample_videos import write_sample_videos
from ..training.show_clips import show_clips
from ..training.trainer import Trainer
from .announce import (
    adapter_lines,
    download_lines,
    how_to_quantize_once,
    most_by_stage,
    report_download,
    show_lines,
    show_plan,
    warn_of_the_moment,
)
from .awake import awake
from .clip_list import list_clips
from .common import FAILED, INTERRUPTED, Bars, be_quiet, duration, run, say, wired_bytes
from .config_file import with_config_file
from .json_events import JsonEvents
from .lora_options import make_parser
from .publishing import TrainedResult, find_repository, trigger_problems, upload_lines
from .reports import Reports, described_run
from .signals import Interrupts
from .training_data import data_lines, validation_interval
from .training_job import TrainingJob, read_job
from .training_plan import disk_needs, kept_checkpoints, needs_lines, result_line

STEPS_TO_TIME = 3
"""Steps after which a training reports its time; the first compiles, and is slower."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(train, arguments)


def train(arguments: Sequence[str], events: JsonEvents) -> int | None:
    parser = make_parser()
    args = parser.parse_args(with_config_file(parser, arguments))
    wired = wired_bytes(args)
    distributed = Distributed.connect()
    events.start("lora", args.json_events, is_main=distributed.is_main)
    if args.quiet or not distributed.is_main:
        be_quiet()
        args.quiet = True
    if distributed.is_main:
        args.upload_repo = find_repository(args)
    job = _open_job(args, distributed, events)
    if args.dry_run:
        return list_clips(job, events) if distributed.is_main else None
    lock = nullcontext()
    if distributed.is_main:
        lock = locked_adapter_folder(args.adapter_path, args.resume, job.settings.is_full)
    manage_memory(wired=wired)
    interrupts = Interrupts()
    with mlx_errors(), interrupts, lock, awake(args.caffeinate):
        try:
            if args.show_clips:
                return _show_clips(job, args, events) if distributed.is_main else None
            return _run(job, args, interrupts, distributed, events)
        except KeyboardInterrupt as error:
            if distributed.is_main and not hasattr(error, "__notes__"):
                error.add_note(ways_on(args.adapter_path, job.settings))
            raise
        except CogVideoXError:
            raise
        except OSError as error:
            problem = f"{error.filename or args.adapter_path}: {error.strerror}"
            notes = getattr(error, "__notes__", [])
            raise OutputError("; ".join([problem, *notes])) from error


def _open_job(
    args: argparse.Namespace, distributed: Distributed, events: JsonEvents
) -> TrainingJob:
    """Reads and announces the job: before a download, where the model is an official one."""
    announced = False
    if distributed.is_main and not args.dry_run:
        announced = _announce_download(args, distributed, events)
    job = read_job(args, distributed, plans=args.dry_run)
    if not announced:
        _announce(job, args, distributed, events)
    problems = text_problems(job.pipe, job.clips, job.other_texts)
    for problem in [*problems, *trigger_problems(args, job)]:
        logger.warning(problem)
    return job


def _announce_download(
    args: argparse.Namespace, distributed: Distributed, events: JsonEvents
) -> bool:
    """Says what will be downloaded.

    Returns:
        Whether the job was announced, too: an official model's needs are known before.

    Raises:
        OutputError: the disk has no room for the download and the training.
    """
    count = pending_bytes(args.model or default_model(), base=args.base)
    if not count:
        return False
    check_room(download_need(count))
    job = None
    with suppress(NotDownloadedError):  # a plan needs the configurations
        job = read_job(args, distributed, plans=True)
    if job is not None:
        _announce(job, args, distributed, events)
    else:
        show_lines(download_lines(count))
    report_download(count, events)
    return job is not None


def _announce(
    job: TrainingJob, args: argparse.Namespace, distributed: Distributed, events: JsonEvents
) -> None:
    """Says on stderr what will be learned, and what that needs.

    Raises:
        OutputError: the disk has no room for the training.
    """
    pipe, specs, settings = job.pipe, job.clip_options.specs, job.settings
    disk = disk_needs(job, args) if distributed.is_main else {}
    held_out = sum(clip.held_out for clip in job.clips)
    updates = f"steps of {settings.batch_size}"
    if settings.accumulate > 1:
        updates = f"updates of {settings.accumulate} times {settings.batch_size}"
    processes = distributed.size
    by_each = f" by each of {processes} processes" if processes > 1 else ""
    lines = [
        ("model", f"{job.model}, {pipe.precision}"),
        *how_to_quantize_once(pipe, job.model),
        *adapter_lines(pipe),
        *data_lines(args, job.clips),
        ("as", job.shapes),
        result_line(args, settings),
        ("training", f"{settings.iters} {updates}{by_each}"),
    ]
    lines += upload_lines(args, is_full=settings.is_full)
    lines += download_lines(pipe.to_download)
    geometries = (pipe.geometry(spec.frames, spec.height, spec.width) for spec in specs)
    needs = most_by_stage(
        estimate_training_memory(pipe, geometry, settings) for geometry in geometries
    )
    available, need = pipe.machine.available, max(needs.values())
    show_plan([*lines, *needs_lines(job, disk, processes)], needs, available)
    events.emit(
        "plan",
        model=str(job.model),
        dtype=pipe.dtype_name,
        lora=[{"source": each.source, "scale": scale} for each, scale in pipe.adapters],
        clips=len(job.clips) - held_out,
        held_out=held_out,
        output=args.adapter_path,
        upload=args.upload_repo,
        fine_tune_type=settings.fine_tune_type,
        rank=None if settings.is_full else settings.rank,
        steps=settings.iters,
        memory=needs,
        disk={name: need.bytes for name, need in disk.items()},
        available=available,
        download=pipe.to_download,
    )
    if need > pipe.machine.memory:
        logger.warning(
            "this may need more memory than this machine has: %s", memory_advice(pipe, settings)
        )
    elif need > available:
        warn_of_the_moment("this", need, available)


def _show_clips(job: TrainingJob, args: argparse.Namespace, events: JsonEvents) -> int | None:
    """Writes what is learned of the first clips and prints where; returns the exit code."""
    identity = model_identity(job.model, job.pipe.folder, job.pipe.base)
    data, folder = (job.clips, job.clip_options, job.cache), args.adapter_path / "samples" / "clips"
    written = show_clips(job.pipe, identity, *data, folder, args.show_clips)
    shown = False
    for path in written:
        events.tell("output", str(path), output=path)
        shown = True
    return None if shown else FAILED


def _run(
    job: TrainingJob,
    args: argparse.Namespace,
    interrupts: Interrupts,
    distributed: Distributed,
    events: JsonEvents,
) -> int | None:
    """Prepares the clips and trains; returns the exit code."""
    bars = Bars(events, quiet=args.quiet, dynamic_ncols=True)
    events.progress.about = dict.fromkeys(("loss", "learning_rate"))  # until there are some
    events.progress.time.work = {"steps": job.settings.iters}
    identity = model_identity(job.model, job.pipe.folder, job.pipe.base)
    model, also = identity.get("sha256", identity), job.other_texts
    if args.resume and distributed.is_main:
        known = model_digests(model, job.pipe.precision, job.pipe.adapters)
        check_resumable(args.adapter_path, job.settings.of_all(distributed.size), known)
    distributed.check_same({"--resume": args.resume})
    try:
        with distributed.main_process_first():
            samples, texts = prepare(
                job.pipe, identity, job.clips, job.clip_options, job.cache, bars, also
            )
        bars.close()
        result = TrainedResult(job, args, samples, distributed.size)
        mx.reset_peak_memory()
        with job.pipe.keeping("transformer"):
            trainer = Trainer(
                job.pipe,
                samples,
                texts[""],
                job.settings,
                args.adapter_path,
                keep=kept_checkpoints(job, args),
                prior=[texts[prompt] for prompt in job.prior],
                model=model,
                distributed=distributed,
                existing=job.existing,
                on_save=partial(_saved, result, events),
            )
            done = _train(trainer, job, args, texts, bars, interrupts, events)
    finally:
        bars.close()
    if not done:
        if distributed.is_main:
            raise KeyboardInterrupt
        return INTERRUPTED
    if distributed.is_main:
        if best := trainer.validation.best:
            result.tell_of_best(best.step, best.validation, trainer.best_result)
        interrupts.patient = False
        result.publish(trainer.step, events)
        events.tell("output", str(trainer.result), output=trainer.result)
    return None


def _saved(result: TrainedResult, events: JsonEvents, checkpoint: Path, step: int) -> None:
    events.emit("checkpoint", path=checkpoint, step=step)
    events.can_resume()
    # Another process saves elsewhere what the main one can't any more.
    if not result.job.settings.is_full and checkpoint.parents[1] == result.folder:
        result.write_card(step)


def _train(
    trainer: Trainer,
    job: TrainingJob,
    args: argparse.Namespace,
    texts: Mapping[str, Path],
    bars: Bars,
    interrupts: Interrupts,
    events: JsonEvents,
) -> bool:
    """Trains, showing each step; returns whether the training is done."""
    if args.resume:
        trainer.resume(bars)
        logger.info("%-8s after %d steps", "resumed", trainer.step)
        events.can_resume()
        if trainer.is_done:
            logger.info("%-8s all %d steps are done already", "training", trainer.step)
        events.progress.time.work["steps"] -= trainer.step
    else:
        trainer.prepare(bars)
    folder, fps = args.adapter_path / "samples", job.clip_options.specs[0].fps

    def on_step(row: Mapping[str, Any]) -> None:
        step = row["step"]
        learned = {"loss": row["loss"], "learning_rate": row["learning_rate"]}
        bars("train", step, job.settings.iters, **learned)
        bars.note(f"loss {row['loss']:.4f}, {size(row['peak_memory'])}")
        reports.row(row)
        if step == first + STEPS_TO_TIME:
            _tell_time(events)
        if "validation" in row:
            _tell_validation(row, trainer.validation.is_best(step), events)
        if args.sample_every and step % args.sample_every == 0:
            trainer.save()  # a sample may take long, and fail
            written = write_sample_videos(
                job.pipe, job.sample_videos, texts, folder, step, fps, lambda: interrupts.wanted
            )
            for prompt, path in written:
                events.emit("sample", path=path, step=step, prompt=prompt)
                reports.video(path, prompt, step)

    first = trainer.step
    bars("train", first, job.settings.iters)
    # What was prepared is on disk already; only a step is worth waiting for.
    interrupts.patient = True
    with Reports(
        args.report_to if trainer.distributed.is_main else (),
        args.adapter_path,
        described_run(job.pipe, job.settings),
        step=trainer.step,
        project=args.project_name,
        quiet=args.quiet or events.on,
    ) as reports:
        return trainer.train(
            save_every=args.save_every,
            validate_every=validation_interval(args),
            on_step=on_step,
            should_stop=lambda: interrupts.wanted,
        )


def _tell_time(events: JsonEvents) -> None:
    """Says how long the rest of the training will take, without validations and samples."""
    if seconds := events.progress.time.seconds():
        logger.info("%-8s about %s left", "time", duration(seconds))


def _tell_validation(row: Mapping[str, Any], is_best: bool, events: JsonEvents) -> None:
    """Says the losses of a row's validation."""
    step, loss, learned = row["step"], row["validation"], row.get(TRAINING)
    clips = "on training clips"
    if learned is not None:
        clips = f"on held-out clips, {learned:.4f} {clips}"
    best = "; the best so far" if is_best else ""
    say(f"step {step}: validation loss {loss:.4f} {clips}{best}")
    events.emit("validation", step=step, loss=loss, training_loss=learned, best=is_best)
