"""What the page says: names of settings, sizes, times and errors, in words for everybody."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...cli.common import duration
from ...cli.options import option_name
from ...device import size
from ...runs.settings import RUN_SETTINGS, RunSettings
from ..jobs import DONE, FAILED, QUEUED, RUNNING, STOPPED, Job
from ..models import Model
from ..planning import Estimate
from ..progress import Progress
from ..runner import Runner

LABELS = {
    "prompt": "What the video shows",
    "negative_prompt": "What to steer away from",
    "num_frames": "Length (frames)",
    "height": "Height (pixels)",
    "width": "Width (pixels)",
    "extend": "Further parts",
    "overlap": "Frames that two parts share",
    "image": "Picture",
    "video": "Clip",
    "video_start": "Start in the clip (seconds)",
    "video_end": "End in the clip (seconds)",
    "strength": "Strength of the change",
    "image_fit": "Fit to the video's size",
    "image_latent_scale": "Scale of the picture's latents",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "dynamic_cfg": "Guidance over the steps",
    "guidance_range": "Steps with guidance",
    "uncond": "Input of the unconditional pass",
    "preset": "How much is computed",
    "cache": "Step cache",
    "cache_threshold": "Threshold of the step cache",
    "computed_steps": "Steps that are computed",
    "scheduler": "Sampler",
    "seed": "Seed",
    "sequential_guidance": "Passes one after the other",
    "vae": "Decoder",
    "tiling": "Tiling",
    "tile_size": "Size of a tile (pixels)",
    "tile_overlap": "Overlap of tiles",
    "source_tiling": "Tiling of the source",
    "lora": "Adapters",
    "dtype": "Type of numbers",
    "quantize": "Quantize (bits)",
    "compile": "Compile",
    "fps": "Frames per second",
    "interpolate": "Times the frames",
}
"""What the page calls each setting, with its unit."""

HELP = {
    "prompt": "A long description in English works best.",
    "negative_prompt": "What the video should not show.",
    "num_frames": "9, 17, 25 and so on: always 8N+1.",
    "height": "How high the frames are.",
    "width": "How wide the frames are.",
    "extend": "Number of further parts, each as long as the first, that continue the video.",
    "overlap": "Frames, 8N+1, that a part shares with the one before it; they are blended.",
    "image": "The video begins with it.",
    "video": "The new video keeps its movement and composition.",
    "video_start": "The part to use begins here.",
    "video_end": "The part to use ends here.",
    "strength": "How much of the clip changes, above 0 and up to 1. 1 ignores the clip.",
    "image_fit": "crop covers the size, pad puts it on black, stretch distorts it.",
    "num_inference_steps": "More steps take longer and give finer videos.",
    "guidance_scale": "Weight of the description. 1 or less ignores it, and halves the time.",
    "dynamic_cfg": "constant, wave as in the official tools, or cosine, which rises to the end.",
    "uncond": "empty, or zero: embeddings of zeros as in the original tools.",
    "preset": "exact computes every step, balanced 22 of 50, and fast 17 of 50: less exact.",
    "cache": "Skips a part of some steps: faster, but the video differs.",
    "cache_threshold": "Higher is faster and less exact.",
    "computed_steps": "Fewer are faster and less exact. The number, or a list such as 0, 1, 4, 8.",
    "scheduler": "The method by which the steps are taken.",
    "dtype": "Fewer bits need less memory.",
    "quantize": "Keep the weights in so few bits: less memory, and a slightly different video.",
    "seed": "The same seed makes the same video again.",
    "lora": "Adapters that were trained here, which change the style or the subject.",
    "compile": "Faster. Switch it off only to look for faults.",
    "fps": "From 0.02 to 1000.",
    "interpolate": "FFmpeg computes frames between those of the model.",
}
"""Help for people who don't know the commands; of other settings it is that of the command."""

_DEFAULTS = {
    "num_inference_steps": "the model's own number",
    "guidance_scale": "the model's own",
    "dynamic_cfg": "the model's own",
    "scheduler": "the model's own",
}
"""What an empty field stands for, where it is said in fewer words than by the commands."""

HEADINGS = {
    "what": "More about the video",
    "source": "More about the picture or clip",
    "sampling": "Steps and guidance",
    "memory": "Memory and speed",
    "output": "The file",
}

STATES = {
    QUEUED: "Waiting",
    RUNNING: "Being made",
    STOPPED: "Stopped",
    DONE: "Finished",
    FAILED: "Failed",
}
_LONGEST_NAME = 60
"""Letters of a prompt in the name of its file."""
_LONGEST_TITLE = 80
"""Letters of a title in a sentence."""
_STAGES = {
    "encode": "Reading the description",
    "source": "Reading the picture or clip",
    "denoise": "Making the video",
    "decode": "Drawing the frames",
    "captions": "Reading the captions",
    "clips": "Reading the clips",
    "prior": "Making videos to compare with",
    "train": "Learning",
}
_NEEDS = {
    "encode": "description",
    "source": "picture or clip",
    "denoise": "video",
    "decode": "frames",
}
_OPTIONS = {option_name(RunSettings, name): name for name in RUN_SETTINGS} | {"-q": "quantize"}
_OPTION = re.compile(r"(?<![\w-])(--no-[a-z-]+|--[a-z-]+|-q)(?![\w-])")
_PATH = re.compile(r"""(?<![\w<&/.])(?:~|\.{1,2})?/(?:[^\s'":,;()]+/)*([^\s'":,;()/]*)""")


def escape(text: object) -> str:
    """Text for HTML, also for an attribute, and for the page's templates."""
    text = html.escape(str(text))
    return text.translate({ord("{"): "&#123;", ord("}"): "&#125;", ord("$"): "&#36;"})


def label_of(name: str) -> str:
    """What the page calls a setting."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def help_of(name: str) -> str:
    """What a setting does."""
    return HELP.get(name) or in_words(RUN_SETTINGS[name].help)


def default_of(name: str) -> str:
    """What a setting is if none is given."""
    return _DEFAULTS.get(name) or in_words(RUN_SETTINGS[name].if_none or "none")


def in_words(text: str) -> str:
    """A text of the commands with options replaced by what the page calls them."""

    def replaced(found: re.Match[str]) -> str:
        option = found[1].replace("--no-", "--")
        return f"“{label_of(_OPTIONS[option])}”" if option in _OPTIONS else found[1]

    return _OPTION.sub(replaced, text)


def problem(error: BaseException | str, home: Path | None = None) -> str:
    """An error of a form or a job in one line, without folders of this machine."""
    text = " ".join(str(error).split())
    if home is not None:
        text = text.replace(f"{home}/", "/")
    text = in_words(_PATH.sub(lambda found: found[1] or "a folder", text))
    for name in sorted(RUN_SETTINGS, key=len, reverse=True):
        if "_" in name:
            text = re.sub(rf"\b{name}\b", f"“{label_of(name)}”", text)
    begins_with_name = "." in text.split(" ", 1)[0]
    return text if begins_with_name else text[:1].upper() + text[1:]


def model_choices(models: Iterable[Model]) -> list[tuple[str, str]]:
    """Titles and names of models, for a list to choose from."""
    return [(_model_title(model), model.name) for model in models]


def _model_title(model: Model) -> str:
    demo = " (tiny, for trying out)" if model.name.startswith("demo") else ""
    known = "" if model.title == model.name else f" ({model.title})"
    return f"{model.name}{demo or known}"


def lasts(frames: int, fps: float) -> str:
    """How long a video is, such as ``2.1 seconds``."""
    return f"{frames / fps:.1f} seconds"


def size_in_words(estimate: Estimate) -> str:
    """Such as ``17 frames of 96x96 pixels, 8 a second: 2.1 seconds; 10 steps``."""
    e = estimate
    steps = f"{e.steps} steps"
    if e.strength is not None:
        steps = f"{e.steps} of {e.schedule} steps (strength {e.strength:g})"
    return (
        f"{e.frames} frames of {e.width}x{e.height} pixels, {e.fps:g} a second: "
        f"{lasts(e.frames, e.fps)}; {steps}"
    )


def time_in_words(seconds: float | None) -> str:
    """How long the steps take, if it is known."""
    return "Time: not known before it begins" if seconds is None else f"About {duration(seconds)}"


def memory_in_words(memory: Mapping[str, int], largest: int) -> str:
    """What each stage needs of the memory that there is."""
    each = ", ".join(f"{_NEEDS.get(stage, stage)} {size(need)}" for stage, need in memory.items())
    return f"Memory: {each}; this machine has {size(largest)} for it"


def stage_in_words(progress: Progress) -> str:
    """What a job does, such as ``Making the video: step 3 of 10``."""
    if not progress.stage:
        return "Starting"
    stage = _STAGES.get(progress.stage, progress.stage.replace("_", " "))
    if progress.total <= 1 or progress.unit == "bytes":
        return stage
    unit = progress.unit.removesuffix("s")
    return f"{stage}: {unit} {progress.step} of {progress.total}"


def left_in_words(progress: Progress) -> str:
    """How long a job still takes, if it is known."""
    left = progress.seconds_left
    return "" if left is None else f"about {duration(left)} left"


def place_in_words(runner: Runner, job: Job) -> str:
    """When a job that was just added is carried out, such as ``is next in the queue``."""
    place = runner.place(job.id)
    if place:
        return f"is number {place + 1} in the queue"
    waits = place == 0 and any(each.state == RUNNING for each in runner.store.all())
    return "is next in the queue" if waits else "begins now"


def title_of(job: Job) -> str:
    """What a job is called: the prompt of a video."""
    settings = job.about.get("settings", {})
    title = settings.get("prompt") or job.about.get("title") or job.about.get("name")
    return str(title or {"video": "Video", "training": "Fine-tuning"}.get(job.kind, "Model"))


def short(title: str) -> str:
    """The beginning of a long title."""
    return title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1].rstrip() + "…"


def file_name(title: str, seed: object, suffix: str) -> str:
    """A name for a saved video, such as ``a-red-circle-7.mp4``: letters, digits and hyphens."""
    words = re.sub(r"[\W_]+", "-", title)[:_LONGEST_NAME].strip("-").lower() or "video"
    return words + ("" if seed is None else f"-{seed}") + suffix
