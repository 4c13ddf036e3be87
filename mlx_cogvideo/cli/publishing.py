"""Publishes what a command has made on the hub, and writes the card of a training's result."""

import argparse
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.adapter_card import CARD, TrainedCard, write_card
from ..checkpoints.adapters import ADAPTER_FILES
from ..checkpoints.published_names import (
    base_repository,
    published_adapters,
    published_model,
    published_name,
)
from ..checkpoints.upload import check_login, check_repo_name, upload_folder
from ..errors import InvalidInputError, OutputError
from ..training.checkpoint import MODEL
from ..training.prepare import Sample
from ..version import __version__
from ..video import read_record
from .json_events import JsonEvents
from .training_job import TrainingJob

SAMPLES, PLOT = "samples", "loss.svg"
_SAMPLE = re.compile(r"(\d{7})-\d+\.mp4")

logger = logging.getLogger(__name__)


def find_repository(args: argparse.Namespace) -> str | None:
    """The repository of ``--upload-repo`` with its owner, or None if it isn't given.

    A dry run asks nobody, and gives the name as it is.

    Raises:
        InvalidInputError: it can't be the name of a repository.
        OutputError: nothing can be uploaded to it.
    """
    if args.upload_repo is None:
        return None
    check_repo_name(args.upload_repo)
    return args.upload_repo if args.dry_run else check_login(args.upload_repo)


def upload(
    folder: Path, repo: str, how_again: str, events: JsonEvents, files: Sequence[str] | None = None
) -> None:
    """Uploads a folder, or some of its files, and says where it is.

    Raises:
        OutputError: it can't be uploaded; `how_again` follows, which says what uploads it later.
    """
    try:
        upload_folder(folder, repo, files)
    except OutputError as error:
        error.add_note(how_again)
        raise
    logger.info("%-8s https://huggingface.co/%s", "uploaded", repo)
    events.emit("upload", repo=repo, path=folder)


def upload_lines(args: argparse.Namespace, *, is_full: bool) -> list[tuple[str, str]]:
    """The line about what a training will upload, if anything."""
    if args.upload_repo is None:
        return []
    files = ", ".join([*ADAPTER_FILES, CARD, f"{PLOT} and the last samples"])
    what = f"the model folder {args.adapter_path / MODEL}" if is_full else files
    return [("upload", f"to {args.upload_repo}: {what}")]


def trigger_problems(args: argparse.Namespace, job: TrainingJob) -> Iterator[str]:
    """Says that no caption has the word of ``--trigger-word``."""
    word = args.trigger_word
    if word is not None and not any(word.lower() in each.caption.lower() for each in job.clips):
        yield f"no caption contains the trigger word {word!r}, so that it will have no effect"


@dataclass(frozen=True)
class TrainedResult:
    """The result of a training, for its card and its upload.

    Attributes:
        samples: what was learned, and what was held out.
        processes: number of processes that train together.
    """

    job: TrainingJob
    args: argparse.Namespace
    samples: Sequence[Sample]
    processes: int

    @property
    def folder(self) -> Path:
        """Where the adapter or the model is written."""
        folder = self.args.adapter_path
        return folder / MODEL if self.job.settings.is_full else folder

    def publish(self, step: int, events: JsonEvents) -> None:
        """Writes the card of the finished result, and uploads it where that was requested.

        Raises:
            OSError: the card can't be written.
            OutputError: the result can't be uploaded; a note says what uploads it later.
        """
        if not self.write_card(step):
            logger.info("%-8s %s is your own and stays as it is", "card", self.folder / CARD)
        if self.args.upload_repo is None:
            return
        events.can_resume()
        files = None if self.job.settings.is_full else self._files(step)
        again = "the same command with --resume uploads it again"
        upload(self.folder, self.args.upload_repo, again, events, files)

    def tell_of_best(self, step: int, loss: float, folder: Path) -> None:
        """Says which step was the best by its validation loss, and writes its card into `folder`.

        Raises:
            OSError: the card can't be written.
        """
        logger.info("%-8s step %d, validation loss %.4f, in %s", "best", step, loss, folder)
        if folder != self.folder:
            self.write_card(step, folder)

    def write_card(self, step: int, folder: Path | None = None) -> bool:
        """Writes the card for what `step` updates have made, with the samples that it shows.

        Args:
            folder: where the result of that step is; None is that of the last one.

        Returns:
            Whether it was written: one that a user has changed is kept.

        Raises:
            OSError: it can't be written.
        """
        folder, source = folder or self.folder, self.args.adapter_path
        videos = _last_samples(source / SAMPLES, step)
        samples = {f"{SAMPLES}/{video.name}": prompt for video, prompt in videos}
        plot = PLOT if (source / PLOT).is_file() else None
        if folder != source:
            for file in [*samples, *filter(None, [plot])]:
                (folder / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / file, folder / file)
        return write_card(folder, self._card(folder, step, samples, plot))

    def _files(self, step: int) -> list[str]:
        """The files of an adapter, its card and what the card shows, below the folder."""
        videos = (video for video, _ in _last_samples(self.folder / SAMPLES, step))
        names = [*ADAPTER_FILES, CARD, PLOT, *(f"{SAMPLES}/{video.name}" for video in videos)]
        return [name for name in names if (self.folder / name).is_file()]

    def _card(
        self, folder: Path, step: int, samples: dict[str, str], plot: str | None
    ) -> TrainedCard:
        pipe, spec = self.job.pipe, self.job.clip_options.specs[0]
        uploaded = self.args.upload_repo if folder == self.folder else None
        return TrainedCard(
            name=uploaded or published_name(folder),
            is_full=self.job.settings.is_full,
            base=base_repository(pipe),
            model=published_model(pipe),
            variant=pipe.variant,
            takes_image=pipe.takes_image,
            trigger_word=self.args.trigger_word,
            adapters=[
                (each["source"], each["scale"]) for each in published_adapters(pipe.adapters)
            ],
            shape=(spec.frames, spec.height, spec.width),
            fps=spec.fps,
            settings=dict(self._settings(step)),
            samples=samples,
            plot=plot,
        )

    def _settings(self, step: int) -> Iterator[tuple[str, str]]:
        """What the result depends on, by name."""
        job, settings = self.job, self.job.settings
        learned = [sample for sample in self.samples if not sample.clip.held_out]
        clips = len({sample.clip for sample in learned})
        windows = f" ({len(learned)} windows)" if len(learned) > clips else ""
        yield "clips", f"{clips}{windows}"
        yield "size", job.shapes
        yield "updates", str(step)
        yield "clips an update", str(self.processes * settings.batch_size * settings.accumulate)
        yield "model", f"{published_model(job.pipe)}, {job.pipe.precision}"
        if settings.is_full:
            yield "trained weights", " ".join(settings.train_layers or ["all"])
            if job.pipe.dtype_name != "float32":
                rounding = "of a float32 copy" if settings.master_weights else "stochastic"
                yield "rounding", rounding
        else:
            kind = "DoRA" if settings.fine_tune_type == "dora" else "LoRA"
            yield (
                "kind",
                f"{kind}, scaled by alpha / {'sqrt(rank)' if settings.use_rslora else 'rank'}",
            )
            yield "rank", str(settings.rank)
            yield "alpha", f"{settings.effective_alpha:g}"
            yield "layers", " ".join(settings.targets)
        if settings.resume_adapter_file is not None:
            yield "started from", published_name(settings.resume_adapter_file)
        yield "optimizer", settings.effective_optimizer
        rate = f"{settings.effective_learning_rate:g}, {settings.schedule}"
        warmup = min(settings.warmup, settings.iters // 2)
        plural = "s" * (warmup != 1)
        yield "learning rate", f"{rate} after {warmup} update{plural} of warmup"
        if job.prior:
            yield "prior prompts", f"{len(job.prior)}, with weight {settings.prior_weight:g}"
        yield "seed", str(settings.seed)
        yield "trained with", f"mlx-cogvideo {__version__}"


def _last_samples(folder: Path, step: int) -> list[tuple[Path, str]]:
    """The newest sample videos up to a step and their prompts, in order."""
    by_step: dict[int, list[Path]] = {}
    for video in sorted(folder.glob("*.mp4")):
        if (name := _SAMPLE.fullmatch(video.name)) and int(name[1]) <= step:
            by_step.setdefault(int(name[1]), []).append(video)
    found = []
    for video in by_step[max(by_step)] if by_step else ():
        try:
            record = read_record(video)
        except InvalidInputError:
            continue
        if record is not None and isinstance(record.get("prompt"), str):
            found.append((video, record["prompt"]))
    return found
