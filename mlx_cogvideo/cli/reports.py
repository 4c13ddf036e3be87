"""Reports a training to Weights & Biases or TensorBoard, which are optional packages."""

import argparse
import importlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ..checkpoints.model_folder import ModelFolder
from ..checkpoints.published_names import published_model, published_name
from ..errors import InvalidInputError, first_line
from ..training.settings import TrainingSettings

PACKAGES = {"wandb": "wandb", "tensorboard": "tensorboardX"}
"""Services, and the package that each needs."""

NAMES = {
    "loss": "train/loss",
    "prior_loss": "train/prior_loss",
    "gradient": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "seconds": "train/seconds",
    "peak_memory": "train/peak_memory",
    "validation": "validation/loss",
    "training_validation": "validation/training_loss",
}
"""Names of what the log has of a step, as they are reported."""

PROJECT = "mlx_cogvideo"

logger = logging.getLogger(__name__)


def services(text: str) -> tuple[str, ...]:
    """Some of the services of ``--report-to``, such as ``wandb,tensorboard``."""
    names = tuple(name.strip() for name in text.split(","))
    if not set(names) <= PACKAGES.keys():
        raise argparse.ArgumentTypeError(
            f"must be {' or '.join(PACKAGES)}, or both with a comma between them; got {text!r}"
        )
    return names


class Services(argparse.Action):
    """``--report-to SERVICE``, also several of them: a configuration file has a list."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        names = chain.from_iterable(values)
        setattr(namespace, self.dest, tuple(dict.fromkeys(names)))


def check_packages(names: Sequence[str]) -> None:
    """Raises InvalidInputError if the package of a service isn't installed."""
    for name in names:
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise InvalidInputError(
                f"--report-to {name} needs the package {PACKAGES[name]} ({first_line(error)}): pip "
                f"install {PACKAGES[name]}"
            ) from None


def described_run(model: ModelFolder, settings: TrainingSettings) -> dict[str, Any]:
    """What a run is described by, without paths of this machine."""
    source = settings.resume_adapter_file
    return {
        "model": published_model(model),
        **asdict(settings),
        "resume_adapter_file": source and published_name(source),
    }


class Service(Protocol):
    """A run of a training as a service has it."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def video(self, file: Path, prompt: str, step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class Wandb:
    """A run of Weights & Biases; a training that is resumed continues its run."""

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], step: int, project: str | None, quiet: bool
    ):
        import wandb

        self._package = wandb
        known = folder / "wandb_run.txt"
        if not (step and known.is_file()):
            known.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=project or PROJECT,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            name=folder.absolute().name,
            dir=str(folder),
            config=dict(settings),
            # Nothing of the console, since it has paths and stdout may be for another program.
            settings=wandb.Settings(console="off", silent=quiet, save_code=False),
        )
        # Steps since the last checkpoint are made again by a training that was killed.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def video(self, file: Path, prompt: str, step: int) -> None:
        video = self._package.Video(str(file), caption=prompt, format="mp4")
        self._run.log({f"samples/{file.stem.partition('-')[2]}": video, "step": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TensorBoard:
    """Files of TensorBoard; what follows the last checkpoint is replaced on resuming."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def video(self, file: Path, prompt: str, step: int) -> None:
        """Does nothing: TensorBoard has pictures only."""

    def close(self, failed: bool) -> None:
        self._writer.close()


class Reports:
    """The services that a training is reported to, in a ``with`` block.

    A service that fails is named in a warning, and then left alone: the training goes on.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        settings: Mapping[str, Any],
        *,
        step: int = 0,
        project: str | None = None,
        quiet: bool = False,
    ):
        """
        Args:
            folder: of the adapter.
            settings: what the run is described by; see `described_run`.
            step: updates done before.
            project: of Weights & Biases.
            quiet: whether the services print nothing.
        """
        makers: dict[str, Callable[[], Service]] = {
            "wandb": lambda: Wandb(folder, settings, step, project, quiet),
            "tensorboard": lambda: TensorBoard(folder, step),
        }
        self._services: dict[str, Service] = {}
        for name in names:
            self._attempt(name, lambda name=name: self._services.update({name: makers[name]()}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._each(lambda service: service.close(failed=error is not None))

    def row(self, row: Mapping[str, Any]) -> None:
        """Reports a row of the log."""
        values = {NAMES[name]: value for name, value in row.items() if name in NAMES}
        self._each(lambda service: service.scalars(values, row["step"]))

    def video(self, file: Path, prompt: str, step: int) -> None:
        """Reports a video that was made during the training."""
        self._each(lambda service: service.video(file, prompt, step))

    def _each(self, action: Callable[[Service], None]) -> None:
        for name, service in list(self._services.items()):
            self._attempt(name, lambda service=service: action(service))

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a package may raise anything, at any time
            self._services.pop(name, None)
            reason = first_line(error) or type(error).__name__
            logger.warning("--report-to %s has ended: %s; the training goes on", name, reason)
