"""What the page and the API can ask for: it makes jobs of it."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InvalidInputError
from ..pipeline.fields import settings_of
from ..runs.settings import RunSettings
from .adapters import TrainedAdapter, find_adapters, is_finished
from .downloads import DownloadPlan, make_download, plan_download
from .home import Home, new_id
from .jobs import Job, JobStore
from .media import Media, check_media
from .models import Model, find_model
from .planning import Estimate, estimate_video
from .runner import Runner
from .trainings import (
    TrainingEstimate,
    TrainingRequest,
    check_clips,
    estimate_training,
    prepare_training,
)

SETTINGS = tuple(name for name in settings_of(RunSettings) if name != "tiny_vae")
"""The settings that can be chosen: all but the name of a file on this machine."""
_TYPES = get_type_hints(RunSettings)
FILES = {"image": "picture", "video": "clip"}
"""Settings that are files, and what they are called in a job's folder, without an ending."""
TAKEN = tuple(name for name in SETTINGS if name not in (*FILES, "lora"))
"""The settings of a request that are given by value."""
PREVIEW_EVERY = 2
"""Steps between two previews."""


@dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """A video that is asked for.

    Attributes:
        model: name of one of ``models.list_models``.
        settings: of ``RunSettings`` by name, without those that are files; None is the default.
        image, video: uploaded files on this machine, which are moved into the job's folder.
        adapters: ids of trainings here, each with its weight.
    """

    model: str
    settings: Mapping[str, Any]
    image: Path | None = None
    video: Path | None = None
    adapters: tuple[tuple[str, float], ...] = ()


class Service:
    """Makes jobs, and knows what there is.

    Attributes:
        home: the folder of all.
        store, runner: the jobs, and what carries them out.
    """

    def __init__(self, home: Home, runner: Runner):
        self.home, self.runner = home, runner
        self.store: JobStore = runner.store

    def model(self, name: str) -> Model:
        """A model by its name; raises InvalidInputError if it isn't one, or not here."""
        model = find_model(self.home, name)
        if not model.is_here:
            raise InvalidInputError(f"the model {name} isn't on this machine: download it first")
        return model

    def estimate(self, request: VideoRequest) -> Estimate:
        """What a requested video needs; see ``estimate_video``."""
        _files(request)
        output = self.home.videos / f"{new_id('video')}.mp4"  # which doesn't exist
        return estimate_video(self._settings(request), self.model(request.model), output)

    def add_video(self, request: VideoRequest) -> Job:
        """Queues a video.

        Raises:
            QueueFullError: too many jobs wait.
            CogVideoXError: it can't be made.
        """
        model = self.model(request.model)
        job_id, folder = self.store.new_folder("video")
        try:
            files = {
                name: shutil.move(path, folder / f"{FILES[name]}{media.suffix}")
                for name, (path, media) in _files(request).items()
            }
            output = self.home.videos / f"{job_id}.mp4"
            settings = self._settings(request) | files
            estimate = estimate_video(settings, model, output)
            options = _options(settings) | {
                "model": self.home.seen_from_job(model.source),
                "seed": estimate.seed,
                "output": f"../../videos/{output.name}",
                **({"preview_every": PREVIEW_EVERY} if estimate.has_previews else {}),
                **{name: Path(path).name for name, path in files.items()},
            }
            if request.adapters:
                options["lora"] = [[f"../../adapters/{i}", scale] for i, scale in request.adapters]
            shown = {name: value for name, value in request.settings.items() if value is not None}
            about = {
                "model": model.name,
                "settings": shown | {"seed": estimate.seed},
                "adapters": [list(each) for each in request.adapters],
                "sources": sorted(files),
                "estimate": asdict(estimate),
            }
            job = Job(id=job_id, options=options, about=about, output=f"videos/{output.name}")
            return self.runner.add(job)
        except BaseException:
            self.store.discard(job_id)
            raise

    def _settings(self, request: VideoRequest) -> dict[str, Any]:
        """The settings of a request, with its files and adapters."""
        if unknown := request.settings.keys() - set(TAKEN):
            raise InvalidInputError(f"no such setting: {', '.join(sorted(unknown))}")
        settings = {name: value for name, value in request.settings.items() if value is not None}
        settings |= {n: getattr(request, n) for n in FILES if getattr(request, n) is not None}
        if request.adapters:
            settings["lora"] = [(str(self.adapter(i)), scale) for i, scale in request.adapters]
        return settings

    def adapter(self, training_id: str) -> Path:
        """The folder of a finished adapter.

        Raises:
            InvalidInputError: there is none of this id.
        """
        if not is_finished(self.store, training_id):
            raise InvalidInputError(f"there is no adapter {training_id[:40]!r}")
        return self.home.adapters / training_id

    def adapters(self) -> list[TrainedAdapter]:
        """The finished adapters, newest first."""
        return find_adapters(self.store)

    def estimate_training(self, request: TrainingRequest) -> TrainingEstimate:
        """What a training needs; see ``trainings.estimate_training``. It may have no clips yet."""
        model = self.model(request.model)
        return estimate_training(request, model, self.home.adapters / "estimate")

    def add_training(self, request: TrainingRequest) -> Job:
        """Queues a training, whose clips are moved once all is checked.

        Raises:
            QueueFullError: too many jobs wait.
            CogVideoXError: it can't be done.
        """
        estimate = self.estimate_training(request)
        check_clips(request, estimate)
        job_id, _ = self.store.new_folder("training")
        try:
            model = self.model(request.model)
            return self.runner.add(prepare_training(request, model, estimate, self.home, job_id))
        except BaseException:
            self.store.discard(job_id)
            shutil.rmtree(self.home.adapters / job_id, ignore_errors=True)
            raise

    def plan_download(self, name: str, bits: int | None) -> DownloadPlan:
        """What a model needs before it can be used; see ``downloads.plan_download``."""
        return plan_download(find_model(self.home, name), bits, self.home)

    def add_download(self, name: str, bits: int | None) -> Job:
        """Queues the download of a model, and its conversion to few bits.

        Raises:
            QueueFullError: too many jobs wait.
            CogVideoXError: it can't be done.
        """
        plan = self.plan_download(name, bits)
        job_id, _ = self.store.new_folder("model")
        try:
            model = find_model(self.home, name)
            return self.runner.add(make_download(plan, model, job_id, self.store))
        except BaseException:
            self.store.discard(job_id)
            raise


def list_length(name: str) -> int | None:
    """How many numbers the list of a setting has; 0 is any number, None that it is no list."""
    members = get_args(_TYPES[name]) or (_TYPES[name],)
    lists = [get_args(each) for each in members if get_origin(each) is tuple]
    if not lists:
        return None
    return 0 if lists[0][-1] is Ellipsis else len(lists[0])


def may_be_one(name: str) -> bool:
    """Whether a setting that may be a list may be one number, too."""
    return int in get_args(_TYPES[name])


def _files(request: VideoRequest) -> dict[str, tuple[Path, Media]]:
    """The files of a request, and what they are.

    Raises:
        InvalidInputError: one of them is something else, damaged or too large.
    """
    found = {}
    for name, stem in FILES.items():
        path = getattr(request, name)
        if path is not None:
            media = check_media(path)
            if media.kind != name:
                raise InvalidInputError(f"the uploaded {stem} is a {FILES[media.kind]}")
            found[name] = path, media
    return found


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as options in a configuration file, which has lists for tuples."""
    options = {}
    for name, value in settings.items():
        if name in (*FILES, "lora") or value is None:
            continue
        options[name] = list(value) if isinstance(value, tuple) else value
    return options
