"""What the plan of a training says of its result, of the disk, and of the network."""

import argparse
import logging
from collections.abc import Iterator, Mapping
from math import prod

from ..checkpoints.download import download_need
from ..device import Need, check_room, free_space, size
from ..errors import OutputError
from ..training.checkpoint import MODEL
from ..training.disk import exchanged_bytes, prior_bytes, training_needs
from ..training.settings import TrainingSettings
from .training_data import holds_out
from .training_job import TrainingJob

logger = logging.getLogger(__name__)


def result_line(args: argparse.Namespace, settings: TrainingSettings) -> tuple[str, str]:
    """What the training makes, as a line of the plan."""
    if settings.is_full:
        what = "some weights" if settings.train_layers else "all weights"
        masters = ", float32 masters" if settings.master_weights else ""
        optimizer = settings.effective_optimizer.replace("_", " ")
        return "trains", f"{what}, {optimizer}{masters}, into {args.adapter_path / MODEL}"
    kind = "DoRA, " if settings.fine_tune_type == "dora" else ""
    source = settings.resume_adapter_file
    start = f", started from {source}" if source else ""
    return "adapter", f"{args.adapter_path}, {kind}rank {settings.rank}{start}"


def kept_checkpoints(job: TrainingJob, args: argparse.Namespace) -> int:
    """The number of checkpoints to keep, beside the best one."""
    return args.keep_checkpoints or (1 if job.settings.is_full else 3)


def disk_needs(job: TrainingJob, args: argparse.Namespace) -> dict[str, Need]:
    """The room on the disk that the checkpoints and the result need.

    Raises:
        OutputError: there is less. Where nothing is trained, this is a warning.
    """
    needs = training_needs(
        job.pipe,
        job.settings,
        args.adapter_path,
        kept_checkpoints(job, args),
        has_best=holds_out(args),
    )
    if answers := prior_bytes(job.pipe, job.settings, _latents(job)):
        cache, instead = job.cache.folder, "choose another --cache"
        needs["prior"] = Need(cache, answers, "the answers to prior prompts", instead)
    try:
        check_room([*download_need(job.pipe.to_download), *needs.values()])
    except OutputError as error:
        if not (args.dry_run or args.show_clips):
            raise
        logger.warning("%s", error)
    return needs


def _latents(job: TrainingJob) -> int:
    """Numbers of the latents of the largest clip."""
    channels = job.pipe.configs["transformer"].out_channels
    geometries = (
        job.pipe.geometry(spec.frames, spec.height, spec.width) for spec in job.clip_options.specs
    )
    return max(prod(geometry.latent_shape[1:4]) * channels for geometry in geometries)


def needs_lines(
    job: TrainingJob, disk: Mapping[str, Need], processes: int
) -> Iterator[tuple[str, str]]:
    """Lines of a plan about the disk and the network."""
    for folder in dict.fromkeys(need.folder for need in disk.values()):
        needs = {name: need for name, need in disk.items() if need.folder == folder}
        parts = ", ".join(f"{name} {size(need.bytes)}" for name, need in needs.items())
        yield "disk", f"at most {parts}; {size(free_space(folder))} free"
    if processes > 1:
        count = exchanged_bytes(job.pipe, job.settings)
        yield "network", f"each update exchanges {size(count)} of gradients"
