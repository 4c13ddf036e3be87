"""The list of clips that ``mlx-cogvideo lora --dry-run`` prints."""

from ..errors import InvalidInputError
from ..training.clip_windows import window_count
from ..training.clips import Clip, choose_spec
from ..training.prepare import ClipOptions
from .common import FAILED
from .json_events import JsonEvents
from .streams import printable
from .training_job import TrainingJob, described


def list_clips(job: TrainingJob, events: JsonEvents) -> int | None:
    """Prints what would be learned of each clip; returns the exit code."""
    usable = 0
    for clip in job.clips:
        use, is_usable = _use(clip, job.clip_options)
        usable += is_usable and not clip.held_out
        if clip.held_out and is_usable:
            use += ", held out"
        name = f"{clip.path}{clip.part}"
        events.tell(
            "clip",
            printable(f"{name}: {use}: {clip.caption}"),
            path=name,
            usable=is_usable,
            use=use,
            caption=clip.caption,
            held_out=clip.held_out,
        )
    return None if usable else FAILED


def _use(clip: Clip, options: ClipOptions) -> tuple[str, bool]:
    """What would be learned of a clip, or why it is left out; and whether it is usable."""
    try:
        info = options.measure(clip)
    except InvalidInputError as error:
        return f"left out, {error}", False
    spec = choose_spec(info, options.specs)
    if info.frames < (1 if spec.repeat_last else spec.frames):
        return f"left out, {info.frames} frames at {spec.fps:g} a second", False
    count = window_count(info.frames, spec, options.windows)
    windows = f"{count} windows of " if count > 1 else ""
    whole = f"{info.frames} of {info.width}x{info.height}"
    return f"{windows}{described(spec)} of its {whole}", True
