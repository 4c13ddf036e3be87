"""From a command line to a list of videos to make; what can be checked beforehand is checked."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import default_model, model_identity
from ..checkpoints.components import DTYPES
from ..device import size
from ..errors import CogVideoXError, InvalidInputError, OutputError, with_notes
from ..files import check_unlocked, locked
from ..pipeline.estimates import check_memory_limit
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.request import Request
from ..pipeline.sources import AN_ARRAY
from ..video import check_output_path, open_writer, read_record
from ..video.paths import LATENTS, output_form
from .batch import Prompt, check_distinct, default_output, output_name, read_prompts
from .preview import Preview, check_preview_path
from .record import (
    DECODING,
    MAY_CHANGE,
    Record,
    adapter_differences,
    make_record,
    model_differences,
    request_again,
    setting_differences,
    source_differences,
    version_differences,
)
from .resumable import Job, remove_fallback
from .saved_run import SUFFIX, SavedRun, remove_saved, saved_path

SETTINGS = {
    "negative_prompt": "negative_prompt",
    "frames": "num_frames",
    "height": "height",
    "width": "width",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "guidance_schedule": "dynamic_cfg",
    "guidance_range": "guidance_range",
    "uncond": "uncond",
    "image": "image",
    "image_latent_scale": "image_latent_scale",
    "image_fit": "image_fit",
    "video": "video",
    "strength": "strength",
    "extend": "extend",
    "overlap": "overlap",
    "source_tiling": "source_tiling",
    "cache": "cache",
    "cache_threshold": "cache_threshold",
    "sequential_guidance": "sequential_guidance",
    "scheduler": "scheduler",
    "tiling": "tiling",
    "tile_size": "tile_size",
    "tile_overlap": "tile_overlap",
    "fps": "fps",
}
"""From options to the names of a record's settings."""

_OTHER_OUTPUT = "choose another --output"


@dataclass(frozen=True)
class Failure:
    """A video that can't be made. An exception itself would keep what it met in memory."""

    label: str
    kind: type[CogVideoXError]
    reason: str


@dataclass
class Plan:
    """What a command is about to do.

    Attributes:
        pipe, model: the model, and its ``model_identity``.
        is_batch: whether more than one video was asked for.
        jobs: the videos to make.
        begun: for those of them that go on, what has been done.
        finished: outputs that are there already.
        failed: what can't be made.
        warnings: of what won't be as it was.
        preview: what previews are drawn with, if any are.
        locks: keep other processes from writing what this one is about to; to be closed.
    """

    pipe: CogVideoXPipeline
    model: dict[str, Any]
    is_batch: bool
    jobs: list[Job] = field(default_factory=list)
    begun: dict[Path, str] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    preview: Preview | None = None
    locks: ExitStack = field(default_factory=ExitStack)


def make_plan(args: argparse.Namespace) -> Plan:
    """Opens the model and settles what becomes of each video that was asked for.

    What is found on disk stays so until the plan's locks are closed.

    Raises:
        CogVideoXError: none of them can be made.
    """
    with ExitStack() as locks:
        plan = _Planner(args, locks).plan()
        plan.locks = locks.pop_all()
        return plan


class _Planner:
    """Works out a plan; keeps what the arguments mean for all videos alike."""

    def __init__(self, args: argparse.Namespace, locks: ExitStack):
        self.args = args
        self.locks = locks
        self.given = {
            name: getattr(args, option)
            for option, name in SETTINGS.items()
            if getattr(args, option) is not None
        }
        if self.given.get("cache") == "none":
            self.given["cache"] = None
        # What was recorded gives way to what is asked for, as a whole.
        if "cache" in self.given:
            self.given = {"cache_threshold": None} | self.given
        if "extend" in self.given:
            self.given = {"overlap": None, "source_tiling": None} | self.given
        if self.given.get("guidance_scale", 2) <= 1:
            self.given = {"guidance_range": None} | self.given
        if "tiling" in self.given:
            self.given = dict.fromkeys(DECODING) | self.given
        elif self.given.keys() & set(DECODING):
            self.given["tiling"] = "tiled"
        for path in filter(None, (args.image, args.video)):
            if not os.path.exists(path):
                raise InvalidInputError(f"{path} doesn't exist")
        from_text = args.prompt is not None or args.prompt_file is not None
        if args.resume not in (False, True) and (from_text or args.replay is not None):
            raise InvalidInputError(
                f"--resume {args.resume} has its prompt and settings inside: leave out --prompt, "
                "--prompt-file and --replay"
            )
        # Where a --resume without a prompt finds its run; others look beside each output.
        self.state_file: Path | None = None
        self.base: Record = {}
        if args.replay is not None:
            self.base = _replayed(args.replay)
        elif not from_text:
            default = args.output or default_output(False, 1)
            self.state_file = saved_path(default) if args.resume is True else _named(args.resume)
            saved = SavedRun.load(self.state_file)
            self.base = saved.record
            self.output = default if args.resume is True else args.output or saved.output
        self.settings = self.base.get("settings", {})
        self.compile = self.settings.get("compile", True) and not args.no_compile

    def plan(self) -> Plan:
        args, settings = self.args, self.settings
        if args.prompt_file is not None:
            prompts = read_prompts(args.prompt_file)
        else:
            prompts = [Prompt(settings["prompt"] if args.prompt is None else args.prompt)]
        self.seeds = args.seed or [settings.get("seed")]
        is_batch = args.prompt_file is not None or len(self.seeds) > 1

        pipe, model = self._open_model()
        if args.memory_limit is not None:
            self.settings = {**self.settings, "sequential_guidance": None}  # chosen anew
            pipe.memory_limit = int(min(args.memory_limit * 2**30, sys.maxsize))
        self.result = Plan(pipe, model, is_batch)
        if args.preview_every is not None:
            self.result.preview = Preview(pipe)
        wishes = list(self._wishes(prompts))
        check_distinct(job.output for job in wishes)
        if pipe.variant is not None:
            for geometry in {job.request.geometry for job in wishes}:
                if not pipe.variant.was_trained_on(geometry.height, geometry.width):
                    self.result.warnings.append(
                        f"{pipe.variant.name} was trained on {pipe.variant.sizes}: "
                        f"{geometry.width}x{geometry.height} comes out worse"
                    )
        if args.replay is not None and wishes:
            now = wishes[0].record
            self.result.warnings += [
                f"this won't be the same video: {difference}"
                for difference in model_differences(self.base, now)
                + source_differences(self.base, now)
                + adapter_differences(self.base, now)
                + version_differences(self.base, now)
            ]
        for job in wishes:
            try:
                self._settle(job)
            except CogVideoXError as error:
                self._fail(job.label, error)
        self._check_not_empty(wishes)
        return self.result

    def _open_model(self) -> tuple[CogVideoXPipeline, dict[str, Any]]:
        args, then = self.args, self.base.get("model", {})
        name = args.model or then.get("name") or default_model()
        pipe = CogVideoXPipeline.from_pretrained(
            name,
            DTYPES.get(args.dtype or self.settings.get("dtype")),
            revision=None if args.model else then.get("revision"),
            download=not args.dry_run,
        )
        before = [(told["source"], told["scale"]) for told in self.settings.get("lora", [])]
        for source, scale in before if args.lora is None else args.lora:
            pipe.load_lora(source, scale)
        if not self.compile:
            mx.disable_compile()
        return pipe, model_identity(name, pipe.folder)

    def _wishes(self, prompts: list[Prompt]) -> Iterator[Job]:
        """The videos as they were asked for, before anything on disk is looked at."""
        template = self.args.output or default_output(
            self.args.prompt_file is not None, len(self.seeds)
        )
        if self.result.is_batch and "{seed" in template and self.seeds == [None]:
            raise InvalidInputError(
                "with {seed} in --output a batch wants --seed: drawn ones would be others next time"
            )
        pipe = self.result.pipe
        for index, prompt in enumerate(prompts, start=1):
            for seed in self.seeds:
                label = [prompt.label] * bool(prompt.label)
                label += [f"seed {seed}"] * (len(self.seeds) > 1)
                asked = {"prompt": prompt.text} | ({} if seed is None else {"seed": seed})
                asked |= {} if prompt.image is None else {"image": prompt.image}
                settings = {**self.settings, **self.given, **asked}
                try:
                    request, record = self._request(settings)
                except InvalidInputError as error:
                    lacks_image = pipe.takes_image and "image" not in {
                        **self.settings,
                        **self.given,
                    }
                    if prompt.image is None and not lacks_image:
                        raise
                    self._fail(prompt.label, error)
                    break  # it would be the same with every seed
                if self.state_file is not None:
                    output, path = self.output, self.state_file
                else:
                    output = output_name(
                        template, index=index, prompt=prompt.text, seed=request.seed
                    )
                    path = saved_path(output)
                yield Job(", ".join(label), request, record, output, path)

    def _request(self, settings: dict[str, Any]) -> tuple[Request, Record]:
        pipe, model = self.result.pipe, self.result.model
        request = request_again(pipe, settings)
        fps = settings.get("fps", pipe.fps)
        return request, make_record(pipe, request, model, fps=fps, compile=self.compile)

    def _settle(self, job: Job) -> None:
        """Adds a job to those that are to be made, or to those that are finished."""
        args, plan = self.args, self.result
        self._lock(job)
        saved = None
        if job.path.exists() and (args.resume or not args.overwrite):
            saved = SavedRun.load(job.path)
            if not args.resume:
                raise OutputError(
                    f"{job.path} holds an unfinished run, {saved.progress}: "
                    "go on with --resume, or start afresh with --overwrite"
                )
            job = self._continued(job, saved)
        if self._is_finished(job, seed_matters=saved is not None or self.seeds != [None]):
            if not args.dry_run:
                remove_saved(job.path)
            plan.finished.append(job.output)
            return
        if output_form(job.output) == LATENTS and job.request.extend:
            raise InvalidInputError("a video of several windows has no latents of its own")
        if saved is None or saved.needs_source:
            job.request.source.check(job.request.geometry, plan.pipe.fps)
        if output_form(job.output) == LATENTS:
            check_output_path(job.output, args.overwrite)
        else:
            open_writer(job.output, job.record["settings"]["fps"], overwrite=args.overwrite)
            plan.pipe.check_decodable(job.request)
        if plan.preview is not None and not args.overwrite:
            check_preview_path(job.output)
        check_memory_limit(
            plan.pipe,
            job.request,
            decode=output_form(job.output) != LATENTS,
            done=job.done,
        )
        if saved is not None:
            plan.begun[job.path] = saved.progress
        plan.jobs.append(job)

    def _lock(self, job: Job) -> None:
        """Raises OutputError where another process writes the output or the saved run of a job."""
        for path in (Path(job.output), job.path):
            if self.args.dry_run:
                check_unlocked(path, _OTHER_OUTPUT)
            else:
                self.locks.callback(remove_fallback, path)
                self.locks.enter_context(locked(path, _OTHER_OUTPUT))

    def _continued(self, job: Job, saved: SavedRun) -> Job:
        """The job as it goes on from a saved run.

        Raises:
            InvalidInputError: it was begun with other settings, or with another model.
        """
        # What wasn't asked for this time is as it was.
        named = self.given.keys() | self.settings.keys() | {"prompt"}
        named |= {"seed"} if self.args.seed else set()
        asked = job.record["settings"]
        settings = saved.record["settings"] | {n: asked[n] for n in named & asked.keys()}
        for name in named - asked.keys():  # what is off isn't told
            settings.pop(name, None)
        request, record = self._request(settings)
        if not saved.needs_source and not {"image", "video"} & self.given.keys():
            # It has been encoded: what has become of its file doesn't matter any more.
            digests = {"image_sha256", "video_sha256"} & saved.record["settings"].keys()
            record["settings"] |= {name: saved.record["settings"][name] for name in digests}
        differences = model_differences(saved.record, record)
        differences += setting_differences(saved.record, record, but=MAY_CHANGE)
        if differences:
            raise InvalidInputError(
                f"{job.path} was begun otherwise: {'; '.join(differences)}: go on with the same "
                "settings, or start afresh with --overwrite and without --resume"
            )
        for difference in version_differences(saved.record, record):
            self.result.warnings.append(f"a little may come out otherwise: {difference}")
        resumed_at = [*saved.record.get("resumed_at", []), saved.steps_done]
        record = {**saved.record, "settings": record["settings"], "resumed_at": resumed_at}
        return replace(job, request=request, record=record, done=saved.stages_done)

    def _is_finished(self, job: Job, seed_matters: bool) -> bool:
        """Whether the output of a batch, or of a run that was to go on, is there already.

        Raises:
            OutputError: it is there and was made otherwise.
        """
        args = self.args
        may_be = args.resume or (self.result.is_batch and not args.overwrite)
        if not may_be or not os.path.lexists(job.output):
            return False
        try:
            then = read_record(job.output)
        except InvalidInputError:
            then = None
        but = () if seed_matters else ("seed",)
        if self.given.get("tiling", "auto") == "auto":
            but += (*DECODING, "source_tiling")
        if "sequential_guidance" not in self.given:
            but += ("sequential_guidance",)
        if then is None:
            problem = "isn't the result of such a run"
        elif differences := model_differences(then, job.record) + setting_differences(
            then, job.record, but
        ):
            problem = f"was made otherwise ({'; '.join(differences)})"
        else:
            return True
        if args.overwrite:
            return False
        raise OutputError(
            f"{job.output} exists and {problem}: choose another --output, or --overwrite it"
        )

    def _fail(self, label: str, error: CogVideoXError) -> None:
        if not self.result.is_batch:
            raise error
        self.result.failed.append(Failure(label, type(error), with_notes(error)))

    def _check_not_empty(self, wishes: list[Job]) -> None:
        plan = self.result
        if plan.failed and not plan.jobs and not plan.finished:
            first, others = plan.failed[0], len(plan.failed) - 1
            more = f" (and {others} more like this)" if others else ""
            raise first.kind(f"{first.label}: {first.reason}{more}")
        if self.args.resume and not plan.begun and not plan.finished:
            raise InvalidInputError(f"nothing to resume: there is no {wishes[0].path}")
        _check_space(plan)


def _check_space(plan: Plan) -> None:
    """Raises OutputError where a disk hasn't room for what the runs save of themselves."""
    config = plan.pipe.configs["transformer"]
    needs: dict[Path, int] = {}
    for job in plan.jobs:
        embeds = config.max_text_seq_length * config.text_embed_dim * (1 + job.request.guided)
        # Latents and x0, twice for the moment in which one save takes the place of another.
        # What it starts from, and the windows before the last, come on top.
        latents = (1 + (not job.request.source.is_noise) + job.request.extend / 4) * 4
        latents = int(latents * prod(job.request.geometry.latent_shape))
        before = needs.setdefault(job.path.parent, 4 * (embeds + latents))
        needs[job.path.parent] = before + 4 * embeds
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if free < need:
            raise OutputError(
                f"the disk of {folder} has {size(free)} free and more than {size(need)} are "
                "needed: make room, or choose another --output"
            )


def _replayed(file: Path) -> Record:
    record = read_record(file)
    parts = [record.get(part) if record else None for part in ("model", "settings")]
    if not all(isinstance(part, dict) for part in parts) or "prompt" not in parts[1]:
        raise InvalidInputError(
            f"{file} holds no record of how it was made: only outputs of this program do"
        )
    if AN_ARRAY in (parts[1].get("image"), parts[1].get("video")):
        raise InvalidInputError(f"{file} was made of pixels that its record doesn't hold")
    # Records of before there was a choice.
    parts[1].setdefault("tiling", "none")
    return record


def _named(file: str) -> Path:
    """The saved run that `file` names, be it by its output's name."""
    return Path(file) if file.endswith(SUFFIX) else saved_path(file)
