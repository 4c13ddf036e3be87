"""From options to a list of videos to make. Everything that can be checked beforehand is."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoints import default_model, model_identity
from ..checkpoints.components import DTYPES
from ..checkpoints.download import download_need, pending_bytes
from ..checkpoints.identity import model_names
from ..device import check_room
from ..errors import (
    CogVideoXError,
    InvalidInputError,
    NotDownloadedError,
    OutputError,
    with_notes,
)
from ..files import check_unlocked, locked
from ..pipeline.estimates import check_memory_limit
from ..pipeline.output import NO_LATENTS
from ..pipeline.overrides import check_presets, override
from ..pipeline.pipeline import CogVideoXPipeline
from ..pipeline.planned import load_adapters, open_to_plan
from ..pipeline.recording import Record, make_record
from ..pipeline.resolved import ResolvedSettings
from ..pipeline.resolver import resolve
from ..pipeline.run_stages import lost_text
from ..pipeline.sources import check_no_address
from ..pipeline.unused import without_effect
from ..video import check_output_path
from ..video.paths import LATENTS, output_form
from .batch import Prompt, check_distinct, default_output, output_name, read_prompts
from .existing import is_finished, named_settings, resumed, saved_run
from .origin import Options, Origin, find_origin, say_what_is_opened
from .preview import Preview, check_preview_path, remove_preview
from .record import (
    adapter_differences,
    model_differences,
    source_differences,
    version_differences,
)
from .resumable import VideoJob, open_output, remove_fallback
from .run_plan import Failure, Plan
from .saved_run import remove_saved, saved_path
from .settings import BY_MEMORY, RunSettings, video_settings, without_effect_in_file
from .space import saved_needs

_OTHER_OUTPUT = "choose another --output"


def make_plan(
    options: Options, before_download: Callable[[int, Plan | None], None] = lambda *_: None
) -> Plan:
    """Opens the model and decides what becomes of each requested video.

    What is found on disk stays so until the plan's locks are closed.

    Args:
        before_download: gets the bytes that are about to be downloaded, and a plan for an official
            model, which is known without its files.

    Raises:
        CogVideoXError: none of them can be made.
    """
    RunSettings.check(options.given)
    for name in ("image", "video"):
        path = options.given.get(name)
        if path is not None and not os.path.exists(path):
            check_no_address(name, path)
            raise InvalidInputError(f"{path or repr(path)} doesn't exist")
    with ExitStack() as locks:
        plan = _Planner(options, find_origin(options), locks, before_download).plan()
        plan.locks = locks.pop_all()
        return plan


class _Planner:
    """Works out a plan; keeps what the options mean for all videos alike."""

    def __init__(
        self,
        options: Options,
        origin: Origin,
        locks: ExitStack,
        before_download: Callable[[int, Plan | None], None],
    ):
        self.options, self.origin, self.locks = options, origin, locks
        self.before_download = before_download
        self.given = {n: v for n, v in options.given.items() if n not in ("prompt", "seed")}
        recorded = dict(origin.recorded)
        if options.memory_limit is not None:
            recorded |= dict.fromkeys(BY_MEMORY)  # chosen again
        self.settings = override(recorded, self.given)
        check_presets(self.given)
        self.seeds = options.given.get("seed") or [origin.recorded.get("seed")]
        self.compile = self.settings.get("compile", True)

    def plan(self) -> Plan:
        options = self.options
        if options.prompt_file is not None:
            prompts = read_prompts(options.prompt_file)
        else:
            text = self.settings["prompt"] if options.prompt is None else options.prompt
            prompts = [Prompt(text)]
        is_batch = options.prompt_file is not None or len(self.seeds) > 1
        self.result = Plan(*self._open_model(), is_batch)
        self.result.warnings += load_adapters(self.result.pipe, self._adapters())
        if options.previews:
            own = self.settings.get("tiny_vae") if self.settings.get("vae") == "tiny" else None
            self.result.preview = Preview(self.result.pipe, own)
        jobs = list(self._requested_jobs(prompts))
        check_distinct(job.output for job in jobs)
        first, every = options.turn
        jobs = jobs[first::every]
        self.result.warnings += self._warnings(jobs)
        for job in jobs:
            try:
                self._classify(job)
            except CogVideoXError as error:
                self._fail(job.label, error)
        self.result.warnings += self._lost_text(prompts)
        self._check_not_empty(jobs)
        self._check_room()
        return self.result

    def _open_model(self) -> tuple[CogVideoXPipeline, dict[str, Any]]:
        options, then = self.options, self.origin.record.get("model", {})
        if options.model is not None:
            then = {}
        name = options.model or then.get("name") or default_model()
        base = {"name": options.base} if options.base is not None else then.get("base", {})
        if options.replay is not None:
            recorded = self.origin.recorded
            sources = [self.given.get(kind, recorded.get(kind)) for kind in ("image", "video")]
            names = [name, base.get("name"), *(source for source, _ in self._adapters()), *sources]
            say_what_is_opened(options.replay, names)
        parts = {
            "revision": then.get("revision"),
            "base": base.get("name"),
            "base_revision": base.get("revision"),
        }
        if not options.dry_run and (count := pending_bytes(name, **parts)):
            self._announce_download(count)
        opened = open_to_plan if options.dry_run else CogVideoXPipeline.from_pretrained
        quantize = (self.given if options.model else self.settings).get("quantize")
        dtype = DTYPES.get(self.settings.get("dtype"))
        pipe = opened(name, dtype, **parts, quantize=quantize)
        if not self.compile:
            mx.disable_compile()
        pipe.memory_limit, pipe.processes = options.memory_limit, options.processes
        identify = model_names if pipe.to_download else model_identity
        return pipe, identify(name, pipe.folder, pipe.base)

    def _announce_download(self, count: int) -> None:
        """Says what the runs need before so many bytes are downloaded; refuses what can't be."""
        needs, plan = download_need(count), None
        with suppress(NotDownloadedError):  # a plan needs the configurations
            plan = make_plan(replace(self.options, dry_run=True))
            needs += saved_needs(plan.pipe.configs["transformer"], plan.jobs)
        check_room(needs)
        self.before_download(count, plan)

    def _adapters(self) -> list[tuple[str, float]]:
        """The adapters and their scales, as they are given or recorded."""
        recorded = self.origin.recorded.get("lora", [])
        return self.given.get("lora", [(each["source"], each["scale"]) for each in recorded])

    def _check_room(self) -> None:
        """Raises OutputError where a disk is too full; before a download, a plan warns of it."""
        plan = self.result
        saved = saved_needs(plan.pipe.configs["transformer"], plan.jobs)
        try:
            check_room([*download_need(plan.pipe.to_download), *saved])
        except OutputError as error:
            if not plan.pipe.to_download:
                raise
            plan.warnings.append(str(error))

    def _requested_jobs(self, prompts: list[Prompt]) -> Iterator[VideoJob]:
        """The videos as they were requested, before anything on disk is looked at."""
        from_file = self.options.prompt_file is not None
        template = self.options.output or default_output(from_file, len(self.seeds))
        if self.result.is_batch and "{seed" in template and self.seeds == [None]:
            raise InvalidInputError(
                "with {seed} in --output, give --seed: random seeds would differ on a rerun"
            )
        for index, prompt in enumerate(prompts, start=1):
            for seed in self.seeds:
                try:
                    settings, record = self._resolve(self.settings | _of_prompt(prompt, seed))
                except InvalidInputError as error:
                    # A model of images may lack one in this line alone.
                    lacks_image = self.result.pipe.takes_image and "image" not in self.settings
                    if prompt.image is None and not lacks_image:
                        raise
                    self._fail(prompt.label, error)
                    break  # it would be the same with every seed
                output, path = self.origin.output, self.origin.state_file
                if path is None:
                    output = output_name(
                        template, index=index, prompt=prompt.text, seed=settings.seed
                    )
                    path = saved_path(output)
                labels = [prompt.label, f"seed {seed}" if len(self.seeds) > 1 else ""]
                label = ", ".join(filter(None, labels))
                yield VideoJob(label, settings, record, output, path)

    def _resolve(self, settings: Mapping[str, Any]) -> tuple[ResolvedSettings, Record]:
        pipe, model = self.result.pipe, self.result.model
        resolved = resolve(pipe, video_settings(settings))
        of_file = {"fps": pipe.fps, "interpolate": 1}
        of_file = {name: settings.get(name, value) for name, value in of_file.items()}
        return resolved, make_record(pipe, resolved, model, **of_file, compile=self.compile)

    def _warnings(self, jobs: list[VideoJob]) -> Iterator[str]:
        """What won't be as good, or not the same, as expected."""
        for job in jobs:
            form = output_form(job.output)
            yield from without_effect(
                self.result.pipe, self.given, job.settings, decodes=form != LATENTS
            )
            yield from without_effect_in_file(self.given, form, job.settings.total_frames)
        variant = self.result.pipe.variant
        if variant is not None:
            for geometry in {job.settings.geometry for job in jobs}:
                if not variant.was_trained_on(geometry.height, geometry.width):
                    yield (
                        f"{variant.name} was trained on {variant.sizes}: "
                        f"{geometry.width}x{geometry.height} comes out worse"
                    )
                if not variant.was_trained_on_frames(geometry.num_frames):
                    yield (
                        f"{variant.name} was trained on {variant.frames}: "
                        f"{geometry.num_frames} come out worse"
                    )
        if self.options.replay is not None and jobs:
            then, now = self.origin.record, jobs[0].record
            for differences in (
                model_differences(then, now),
                source_differences(then, now),
                adapter_differences(then, now),
                version_differences(then, now),
            ):
                yield from (f"this won't be the same video: {phrase}" for phrase in differences)

    def _lost_text(self, prompts: list[Prompt]) -> Iterator[str]:
        """What the model doesn't get of the texts of the videos to make."""
        labels = {prompt.text: prompt.label for prompt in prompts}
        for job in self.result.jobs:
            for name, problem in lost_text(self.result.pipe, job.settings):
                label = labels.get(job.settings.prompt) if name == "prompt" else None
                yield f"{label}: the {name} {problem}" if label else f"the {name} {problem}"

    def _classify(self, job: VideoJob) -> None:
        """Adds a job to those that are to be made, or to those that are finished."""
        options, plan = self.options, self.result
        self._lock(job)
        saved = None
        if job.path.exists() and (options.resume or not options.overwrite):
            saved = saved_run(job, bool(options.resume))
            new_source = bool({"image", "video"} & self.given.keys())
            plan.warnings += [
                f"results may differ slightly: {difference}"
                for difference in version_differences(saved.record, job.record)
            ]
            named = {"prompt", *self.settings, *named_settings(options.given, saved.record)}
            job = resumed(job, saved, named, self._resolve, new_source=new_source)
        if options.resume or (plan.is_batch and not options.overwrite):
            seed_matters = saved is not None or self.seeds != [None]
            if is_finished(
                job, self._tiling_given(), seed_matters=seed_matters, overwrite=options.overwrite
            ):
                if not options.dry_run:
                    remove_saved(job.path)
                    remove_preview(job.output)  # a kill right after the end leaves it
                plan.finished.append(job.output)
                return
        if saved is None or saved.run.needs_source:
            job.settings.source.check(job.settings.geometry, plan.pipe.fps)
        self._check_output(job)
        if saved is not None:
            plan.resumed[job.path] = saved.progress
        plan.jobs.append(job)

    def _tiling_given(self) -> set[str]:
        """Names of the settings that the command gives; automatic tiling isn't one."""
        automatic = {"tiling"} if self.given.get("tiling") == "auto" else set()
        return set(self.given) - automatic

    def _check_output(self, job: VideoJob) -> None:
        """Raises an error where the output can't be written, or its stages don't fit in memory."""
        plan, overwrite = self.result, self.options.overwrite
        latents_only = output_form(job.output) == LATENTS
        if latents_only and job.settings.extend:
            raise InvalidInputError(NO_LATENTS)
        if latents_only:
            check_output_path(job.output, overwrite)
        else:
            open_output(job.output, job.record, overwrite)
            plan.pipe.check_decodable(job.settings)
        if plan.preview is not None and not overwrite:
            check_preview_path(job.output)
        check_memory_limit(plan.pipe, job.settings, decode=not latents_only, done=job.done)

    def _lock(self, job: VideoJob) -> None:
        """Raises OutputError where another process writes the output or the saved run of a job."""
        for path in (Path(job.output), job.path):
            if self.options.dry_run:
                check_unlocked(path, _OTHER_OUTPUT)
            else:
                self.locks.callback(remove_fallback, path)
                self.locks.enter_context(locked(path, _OTHER_OUTPUT))

    def _fail(self, label: str, error: CogVideoXError) -> None:
        if not self.result.is_batch:
            raise error
        self.result.failed.append(Failure(label, type(error), with_notes(error)))

    def _check_not_empty(self, jobs: list[VideoJob]) -> None:
        plan = self.result
        if plan.failed and not plan.jobs and not plan.finished:
            first, others = plan.failed[0], len(plan.failed) - 1
            more = f" (and {others} more like this)" if others else ""
            raise first.kind(f"{first.label}: {first.reason}{more}")
        if self.options.resume and jobs and not plan.resumed and not plan.finished:
            raise InvalidInputError(f"nothing to resume: there is no {jobs[0].path}")


def _of_prompt(prompt: Prompt, seed: int | None) -> dict[str, Any]:
    """The settings in which the videos of a command differ."""
    settings: dict[str, Any] = {"prompt": prompt.text}
    if seed is not None:
        settings["seed"] = seed
    if prompt.image is not None:
        settings["image"] = prompt.image
    return settings
