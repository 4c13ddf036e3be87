"""Fine-tuning: what is asked for, what it needs, and the job that does it."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..device import check_room
from ..errors import InvalidInputError, OutputError
from ..pipeline.fields import settings_of
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.planned import open_to_plan
from ..runs.batch import IMAGE_MARK
from ..training.captions import joined
from ..training.disk import training_needs
from ..training.estimates import estimate_training_memory
from ..training.settings import TrainingSettings, check_rank
from ..video import measure
from ..video.clip import CLIPS
from .adapters import ABOUT
from .home import Home
from .jobs import Job
from .models import Model
from .pictures import write_first_frame
from .planning import MemoryNeeds, planning

SETTINGS = tuple(
    name
    for name, about in settings_of(TrainingSettings).items()
    if about.group != "prior"
    and name not in ("resume_adapter_file", "train_layers", "master_weights")
)
"""The settings that can be chosen: those of adapters, but for files."""
KINDS = ("lora", "dora")
"""What can be trained: a whole model would need the room of one."""
MOST_CLIPS = 500
KEEP = 3
"""Checkpoints that are kept, as by the command."""
CLIP_FOLDER, SAMPLE_PICTURE = "clips", "sample.png"


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """A training that is asked for.

    Attributes:
        title: what people call the adapter.
        model: name of one of ``models.list_models``.
        clips: uploaded files on this machine, which are moved into the job's folder, and their
            captions; only some may be empty.
        settings: of `SETTINGS` by name; None is the default.
        frames, height, width, fps: in which the clips are learned; None is the model's own.
        quantize: bits to which the model is quantized, to need less memory.
        save_every: updates between two checkpoints.
        sample_prompt: what a video shows that is made every so often; "" makes none. For a model
            that takes a picture, that is the first one of the first clip.
        sample_every: updates between two of these.
        sample_steps: its denoising steps.
    """

    title: str
    model: str
    clips: Sequence[tuple[Path, str]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    quantize: int | None = None
    save_every: int = 100
    sample_prompt: str = ""
    sample_every: int = 250
    sample_steps: int = 25

    @property
    def has_samples(self) -> bool:
        return bool(self.sample_prompt.strip() and self.sample_every)


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate(MemoryNeeds):
    """What a training will be and need.

    Attributes:
        frames, width, height, fps: of the clips as they are learned.
        steps: updates of the whole training.
        disk: bytes of its checkpoints and its result, at most.
        fitting: most frames with which the memory suffices, where it doesn't; None if even the
            fewest need more.
    """

    frames: int
    width: int
    height: int
    fps: float
    steps: int
    disk: int
    fitting: int | None = None


def estimate_training(request: TrainingRequest, model: Model, folder: Path) -> TrainingEstimate:
    """Works out what a training needs; nothing is loaded, and no clip is read.

    Args:
        folder: that the adapter will have.

    Raises:
        CogVideoXError: it can't be done.
    """
    settings = _settings(request)
    size = (request.frames, request.height, request.width)
    with planning:
        pipe = open_to_plan(model.source, quantize=request.quantize)
        geometry = pipe.geometry(*size)
        check_rank(pipe.configs["transformer"], settings)
        memory = estimate_training_memory(pipe, geometry, settings)
        needs = training_needs(pipe, settings, folder, KEEP, has_best=False)
        estimate = TrainingEstimate(
            frames=geometry.num_frames,
            width=geometry.width,
            height=geometry.height,
            fps=request.fps or pipe.fps,
            steps=settings.iters,
            memory=memory,
            available=pipe.machine.available,
            largest=pipe.machine.memory,
            disk=sum(need.bytes for need in needs.values()),
        )
        if not estimate.fits:
            estimate = replace(estimate, fitting=_fitting(pipe, settings, estimate))
    try:
        check_room(needs.values())
    except OutputError:
        gib = estimate.disk / 2**30
        raise OutputError(
            f"the disk has no room for the checkpoints and the adapter ({gib:.1f} GiB): make room, "
            "or choose a lower rank"
        ) from None
    return estimate


def _settings(request: TrainingRequest) -> TrainingSettings:
    if unknown := request.settings.keys() - set(SETTINGS):
        raise InvalidInputError(f"no such setting: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in request.settings.items() if value is not None}
    settings = TrainingSettings(**given)
    if settings.fine_tune_type not in KINDS:
        raise InvalidInputError(f"fine_tune_type must be one of {', '.join(KINDS)}")
    for name in ("save_every", "sample_steps"):
        if getattr(request, name) < 1:
            raise InvalidInputError(f"{name} must be at least 1; got {getattr(request, name)}")
    if request.sample_every < 0:
        raise InvalidInputError(f"sample_every must be at least 0; got {request.sample_every}")
    if IMAGE_MARK in request.sample_prompt:
        raise InvalidInputError(f"the prompt of the samples can't have {IMAGE_MARK} in it")
    return settings


def _fitting(
    pipe: CogVideoXPipeline, settings: TrainingSettings, estimate: TrainingEstimate
) -> int | None:
    """The most frames with which a training fits in memory."""
    for frames in range(estimate.frames - 8, 0, -8):
        try:
            geometry = pipe.geometry(frames, estimate.height, estimate.width)
        except InvalidInputError:
            continue
        if max(estimate_training_memory(pipe, geometry, settings).values()) <= estimate.largest:
            return frames
    return None


def check_clips(request: TrainingRequest, estimate: TrainingEstimate) -> None:
    """Raises InvalidInputError unless each clip can be learned, and one has a caption."""
    if not 0 < len(request.clips) <= MOST_CLIPS:
        raise InvalidInputError(
            f"a training takes 1 to {MOST_CLIPS} clips; got {len(request.clips)}"
        )
    if not any(caption.strip() for _, caption in request.clips):
        raise InvalidInputError("no clip has a caption: write what each of them shows")
    for number, (path, _) in enumerate(request.clips, 1):
        if path.suffix.lower() not in CLIPS:
            raise InvalidInputError(f"clip {number} isn't a video")
        try:
            frames = measure(path, estimate.fps).frames
        except InvalidInputError:  # it names the file
            raise InvalidInputError(f"clip {number} can't be read as a video") from None
        if frames < estimate.frames:
            raise InvalidInputError(
                f"clip {number} is too short: it has {frames} frames at {estimate.fps:g} a second, "
                f"and {estimate.frames} are learned: leave it out, or choose fewer frames"
            )


def prepare_training(
    request: TrainingRequest, model: Model, estimate: TrainingEstimate, home: Home, job_id: str
) -> Job:
    """Moves the clips of a training into its job's folder, and makes the job.

    The request must have been estimated and its clips checked.

    Raises:
        OutputError: they can't be moved.
    """
    folder, adapter = home.of_job(job_id), home.adapters / job_id
    settings = _settings(request)
    about = {
        "title": joined(request.title)[:200] or "untitled",
        "model": model.name,
        "settings": {name: value for name, value in request.settings.items() if value is not None},
        "clips": len(request.clips),
        "captions": [joined(caption) for _, caption in request.clips],
        "sample_prompt": request.sample_prompt.strip() if request.has_samples else "",
        "estimate": asdict(estimate),
    }
    try:
        if model.takes_image and request.has_samples:
            size = (estimate.height, estimate.width)
            write_first_frame(request.clips[0][0], folder / SAMPLE_PICTURE, *size)
        (folder / CLIP_FOLDER).mkdir(mode=0o700)
        for number, (path, caption) in enumerate(request.clips, 1):
            clip = folder / CLIP_FOLDER / f"clip-{number:03}{path.suffix.lower()}"
            shutil.move(path, clip)
            clip.with_suffix(".txt").write_text(joined(caption), encoding="utf-8")
        adapter.mkdir(mode=0o700)
        shown = {name: about[name] for name in ("title", "model")} | {"steps": settings.iters}
        (adapter / ABOUT).write_text(json.dumps(shown), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the clips can't be kept: {error.strerror}") from None
    options = _options(request, settings, model.takes_image)
    options |= {
        "model": home.seen_from_job(model.source),
        "adapter_path": home.seen_from_job(adapter),
    }
    return Job(id=job_id, options=options, about=about, output=f"adapters/{job_id}")


def _options(
    request: TrainingRequest, settings: TrainingSettings, takes_image: bool
) -> dict[str, Any]:
    """The options of the command, by their names in its configuration file."""
    options: dict[str, Any] = {"data": CLIP_FOLDER, "keep_checkpoints": KEEP}
    for name in ("frames", "height", "width", "fps", "quantize", "save_every"):
        if getattr(request, name) is not None:
            options[name] = getattr(request, name)
    known = settings_of(TrainingSettings)
    for name in SETTINGS:
        if request.settings.get(name) is not None:
            value = getattr(settings, name)
            option = known[name].options[0].lstrip("-") if known[name].options else name
            options[option] = list(value) if isinstance(value, tuple) else value
    if request.has_samples:
        prompt = joined(request.sample_prompt)
        if prompt.startswith("-"):  # it isn't an option
            prompt = f" {prompt}"
        if takes_image:
            prompt += f"{IMAGE_MARK}{SAMPLE_PICTURE}"
        options |= {
            "sample_prompt": [prompt],
            "sample_every": min(request.sample_every, settings.iters),
            "sample_steps": request.sample_steps,
        }
    return options
