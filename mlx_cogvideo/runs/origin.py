"""What a command's settings begin with: nothing, a record that is replayed, or a saved run."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..distributed import ONE_PROCESS, Processes
from ..errors import InvalidInputError
from ..pipeline.recording import NOT_RECORDED, Record
from ..pipeline.sources import AN_ARRAY
from ..video import read_record
from .batch import default_output
from .record import check_record
from .saved_run import SUFFIX, SavedRun, saved_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command was given.

    Attributes:
        given: settings of ``RunSettings`` by name, for all videos. ``seed`` is a list, of which
            each makes a video of each prompt.
        prompt_file: file of prompts, one a line.
        replay: output whose record is made again.
        resume: whether unfinished runs go on; a file that holds one, or its output.
        model: folder, alias or hub id.
        base: the same, of the model that gives the components which the model lacks.
        output: template of the outputs' names.
        overwrite: whether outputs that exist are replaced.
        dry_run: whether nothing is to be made or downloaded.
        memory_limit: bytes that a stage may be estimated to need.
        previews: whether previews are drawn.
        processes: those that share each run.
        turn: where processes make one video each: the number of this one, and how many there are.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    prompt_file: Path | None = None
    replay: Path | None = None
    resume: bool | str = False
    model: str | None = None
    base: str | None = None
    output: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    memory_limit: int | None = None
    previews: bool = False
    processes: Processes = ONE_PROCESS
    turn: tuple[int, int] = (0, 1)

    @property
    def prompt(self) -> str | None:
        return self.given.get("prompt")


@dataclass(frozen=True)
class Origin:
    """Where settings begin.

    Attributes:
        record: what was recorded; empty where nothing was.
        state_file: the saved run that goes on, of a resume that names no prompt.
        output: output of that run.
    """

    record: Record = field(default_factory=dict)
    state_file: Path | None = None
    output: str = ""

    @property
    def recorded(self) -> dict[str, Any]:
        return self.record.get("settings", {})


def find_origin(options: Options) -> Origin:
    """Reads what a command refers to.

    Raises:
        InvalidInputError: it can't be read, or the options don't go together.
    """
    from_text = options.prompt is not None or options.prompt_file is not None
    if isinstance(options.resume, str) and (from_text or options.replay is not None):
        raise InvalidInputError(
            f"--resume {options.resume} has its prompt and settings inside: leave out --prompt, "
            "--prompt-file and --replay"
        )
    if options.replay is not None:
        return Origin(_record_to_replay(options.replay))
    if from_text:
        return Origin()
    output = options.output or default_output(False, 1)
    if isinstance(options.resume, str):
        state_file = _saved_run(options.resume)
        saved = SavedRun.load(state_file)
        return Origin(saved.record, state_file, options.output or saved.output)
    state_file = saved_path(output)
    return Origin(SavedRun.load(state_file).record, state_file, output)


def _record_to_replay(file: Path) -> Record:
    record = read_record(file)
    parts = [record.get(part) if record else None for part in ("model", "settings")]
    if not all(isinstance(part, dict) for part in parts) or "prompt" not in parts[1]:
        raise InvalidInputError(
            f"{file} holds no record of how it was made: only outputs of this program do"
        )
    try:
        check_record(record)
    except InvalidInputError as error:
        raise InvalidInputError(f"{file} can't be replayed: {error}") from None
    if AN_ARRAY in (parts[1].get("image"), parts[1].get("video")):
        raise InvalidInputError(f"{file} was made of pixels that its record doesn't hold")
    if missing := record.get(NOT_RECORDED):
        raise InvalidInputError(f"{file} was made with more than its record holds: {missing}")
    # Records that are older than the choice.
    parts[1].setdefault("tiling", "none")
    return record


def say_what_is_opened(file: Path, names: Iterable[Any]) -> None:
    """Says what a replay needs, before that is opened: the file may be a stranger's."""
    logger.info("%s opens %s", file, ", ".join(str(name) for name in names if name is not None))


def _saved_run(file: str) -> Path:
    """The saved run that `file` names, itself or by its output."""
    return Path(file) if file.endswith(SUFFIX) else saved_path(file)
