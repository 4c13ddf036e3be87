"""What an earlier run has left on disk for a job: a saved run, or the finished output."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ..errors import InvalidInputError, OutputError
from ..pipeline.overrides import decided_by, override
from ..pipeline.recording import Record
from ..pipeline.resolved import ResolvedSettings
from ..video import read_record
from .record import check_record, model_differences, setting_differences
from .resumable import VideoJob
from .saved_run import SavedRun
from .settings import BY_MEMORY, DECODING, MAY_CHANGE, SOURCE_DIGESTS

Resolve = Callable[[Mapping[str, Any]], tuple[ResolvedSettings, Record]]
"""Makes a job's settings and its record of settings by name."""


def saved_run(job: VideoJob, resume: bool) -> SavedRun:
    """Loads the saved run of a job.

    Raises:
        OutputError: there is one, and the command doesn't say to resume it.
    """
    saved = SavedRun.load(job.path)
    if not resume:
        raise OutputError(
            f"{job.path} holds an unfinished run, {saved.progress}: "
            "continue it with --resume, or start afresh with --overwrite"
        )
    return saved


def named_settings(given: Mapping[str, Any], then: Record) -> set[str]:
    """Names of the settings that a command gives for a run which it resumes.

    Args:
        then: the run's record. With the same preset its steps stay what they were, though another
            tuning may have found others.
    """
    named = {"seed"} & given.keys()
    if given.get("preset") != then.get("preset"):
        named |= {name for each in given for name in decided_by(each)}
    return named


def resumed(
    job: VideoJob, saved: SavedRun, named: Collection[str], resolve: Resolve, *, new_source: bool
) -> VideoJob:
    """The job as it goes on from a saved run.

    Args:
        named: settings that are given or recorded; others stay what they were.
        new_source: whether the command gives an image or a video.

    Raises:
        InvalidInputError: the run was started with other settings, or with another model.
    """
    now = job.record["settings"]
    settings = override(saved.record["settings"], {n: now[n] for n in named if n in now})
    for name in named:  # what is off isn't recorded
        if name not in now:
            settings.pop(name, None)
    resolved, record = resolve(settings)
    if not saved.run.needs_source and not new_source:
        # It has been encoded: what has become of its file doesn't matter any more.
        digests = SOURCE_DIGESTS & saved.record["settings"].keys()
        record["settings"] |= {name: saved.record["settings"][name] for name in digests}
    differences = model_differences(saved.record, record)
    differences += setting_differences(saved.record, record, but=MAY_CHANGE)
    if differences:
        raise InvalidInputError(
            f"{job.path} was started with other settings: {'; '.join(differences)}: resume it with "
            "the same, or start afresh with --overwrite and without --resume"
        )
    resumed_at = [*saved.record.get("resumed_at", []), saved.steps_done]
    record = {**saved.record, "settings": record["settings"], "resumed_at": resumed_at}
    return replace(job, settings=resolved, record=record, done=saved.stages_done)


def is_finished(
    job: VideoJob, given: Collection[str], *, seed_matters: bool, overwrite: bool
) -> bool:
    """Whether the output of a batch, or of a run that was to be resumed, exists already.

    Raises:
        OutputError: it exists and was made with other settings.
    """
    if not os.path.lexists(job.output):
        return False
    try:
        then = read_record(job.output)
        if then is not None:
            check_record(then)
    except InvalidInputError:
        then = None
    if then is None:
        problem = "isn't the result of such a run"
    else:
        but = not_compared(given, seed_matters)
        if "preset" in given and then.get("preset") == job.record.get("preset"):
            but += decided_by("preset")  # another tuning may have changed them since
        differences = model_differences(then, job.record)
        differences += setting_differences(then, job.record, but)
        if not differences:
            return True
        problem = f"was made with other settings ({'; '.join(differences)})"
    if overwrite:
        return False
    raise OutputError(
        f"{job.output} exists and {problem}: choose another --output, or --overwrite it"
    )


def not_compared(given: Collection[str], seed_matters: bool = True) -> tuple[str, ...]:
    """Settings that the machine or chance decides where nothing is given."""
    but = () if seed_matters else ("seed",)
    if not set(DECODING) & set(given):
        but += (*DECODING, "source_tiling")
    return but + tuple(name for name in BY_MEMORY if name not in given)
