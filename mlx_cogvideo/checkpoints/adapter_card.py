"""Writes the README.md of a trained adapter or model, in the form that the hub reads.

The front matter is written by the hub's own library. Texts that users gave are escaped, so that
they can't become Markdown or HTML.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..called import shell_word
from .model_card import license_fields
from .variants import Variant

CARD = "README.md"
OURS = "<!-- Written by mlx-cogvideo. Remove this line to keep your own changes. -->"

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass(frozen=True, kw_only=True)
class TrainedCard:
    """What the card of a trained adapter or model says. No name contains a path of this machine.

    Attributes:
        name: the hub repository that it is for, or the name of its folder.
        is_full: whether it is a whole model.
        base: hub repository of the base model, or None.
        model: name of the model that was trained, for ``mlx-cogvideo generate``.
        variant: the official model with the same transformer, or None.
        takes_image: whether it makes videos from an image.
        trigger_word: word of the captions that stands for what was learned, or None.
        adapters: names and scales of the adapters that the base model had.
        shape: frames, height and width of the clips.
        fps: frames of the clips per second.
        settings: what else the training depended on, by name.
        samples: prompts of sample videos, by the videos' paths below the folder.
        plot: path of a picture of the loss below the folder, or None.
    """

    name: str
    is_full: bool
    base: str | None
    model: str
    variant: Variant | None
    takes_image: bool
    trigger_word: str | None
    adapters: Sequence[tuple[str, float]]
    shape: tuple[int, int, int]
    fps: float
    settings: Mapping[str, str]
    samples: Mapping[str, str]
    plot: str | None

    @property
    def task(self) -> str:
        return "image-to-video" if self.takes_image else "text-to-video"

    def text(self) -> str:
        """The whole card."""
        parts = [
            *("---", self._front_matter(), "---", OURS),
            *("", f"# {escaped(self.name)}", ""),
            *self._introduction(),
            *self._samples(),
            *("## Use", "", *self._commands()),
            *("## Training", "", *self._training()),
        ]
        return "\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        """The metadata that the hub reads, as YAML.

        diffusers is the library that loads the files as they are, and that the hub shows a code
        example for. ``template:sd-lora`` shows the samples as a gallery.
        """
        kind = ["finetune"] if self.is_full else ["lora", "template:sd-lora"]
        more: dict[str, Any] = license_fields(self.variant)
        if self.base is not None:
            more |= {"base_model": self.base}
            more["base_model_relation"] = "finetune" if self.is_full else "adapter"
        if self.trigger_word is not None:
            more["instance_prompt"] = one_line(self.trigger_word)
        if self.samples:
            videos = self.samples.items()
            more["widget"] = [
                {"text": one_line(text), "output": {"url": file}} for file, text in videos
            ]
        data = ModelCardData(
            library_name="diffusers",
            pipeline_tag=self.task,
            tags=[*kind, "cogvideox", self.task, "diffusers", "mlx", "mlx-cogvideo"],
            **more,
        )
        return data.to_yaml()

    def _introduction(self) -> Iterator[str]:
        base = escaped(self.base or self.model)
        if self.is_full:
            article = "An" if self.takes_image else "A"
            what = f"{article} {self.task} model"
            yield f"{what}: {base}, of which the transformer was trained further."
        else:
            yield f"An adapter for the {self.task} model {base}."
        if self.base not in (None, self.model):
            yield f"The training began with {escaped(self.model)}, which comes from that model."
        yield ""
        if self.adapters:
            names = ", ".join(f"{escaped(name)} at {scale:g}" for name, scale in self.adapters)
            if self.is_full:
                yield f"These adapters were fused into the base model before: {names}."
            else:
                yield f"It was trained beside other adapters, and needs them: {names}."
            yield ""
        if self.trigger_word is not None:
            yield f"Use **{escaped(self.trigger_word)}** in the prompt."
            yield ""

    def _samples(self) -> Iterator[str]:
        if self.samples:
            yield from ("<Gallery />", "", "| sample | prompt |", "|---|---|")
            for file, prompt in self.samples.items():
                yield f"| [{Path(file).name}]({file}) | {escaped(prompt)} |"
            yield ""

    def _commands(self) -> Iterator[str]:
        """How to use it with this program and with diffusers."""
        own = shell_word(self.name)
        options = ["--model", own if self.is_full else shell_word(self.model)]
        if not self.is_full:
            for name, scale in self.adapters:
                options += ["--lora", shell_word(name), f"{scale:g}"]
            options += ["--lora", own]
        names = ("--frames", "--height", "--width")
        options += [word for pair in zip(names, map(str, self.shape), strict=True) for word in pair]
        options += ["--image", "start.jpg"] if self.takes_image else []
        command = " ".join(["mlx-cogvideo generate", *options, '--prompt "..."'])
        yield from ("With MLX:", "", "```", command, "```", "")
        if self.is_full or self.base is not None:
            yield from ("With diffusers:", "", "```python", *self._in_diffusers(), "```", "")

    def _in_diffusers(self) -> Iterator[str]:
        pipeline = f"CogVideoX{'ImageToVideo' if self.takes_image else ''}Pipeline"
        image = ", load_image" if self.takes_image else ""
        yield "import torch"
        yield f"from diffusers import {pipeline}"
        yield f"from diffusers.utils import export_to_video{image}"
        yield ""
        model = json.dumps(self.name if self.is_full else self.base)
        yield f"pipe = {pipeline}.from_pretrained({model}, torch_dtype=torch.bfloat16)"
        if not self.is_full and not self.adapters:
            yield f"pipe.load_lora_weights({json.dumps(self.name)})"
        elif not self.is_full:
            adapters = [*self.adapters, (self.name, 1.0)]
            names = [f"adapter_{number}" for number in range(len(adapters))]
            for name, (source, _) in zip(names, adapters, strict=True):
                yield f'pipe.load_lora_weights({json.dumps(source)}, adapter_name="{name}")'
            scales = [scale for _, scale in adapters]
            yield f"pipe.set_adapters({json.dumps(names)}, {json.dumps(scales)})"
        frames, height, width = self.shape
        image = 'image=load_image("start.jpg"), ' if self.takes_image else ""
        size = f"num_frames={frames}, height={height}, width={width}"
        yield f'video = pipe(prompt="...", {image}{size}).frames[0]'
        yield f'export_to_video(video, "video.mp4", fps={self.fps:g})'

    def _training(self) -> Iterator[str]:
        yield from ("| setting | value |", "|---|---|")
        for name, value in self.settings.items():
            yield f"| {escaped(name)} | {escaped(value)} |"
        if self.plot is not None:
            yield from ("", f"![The loss of each step]({self.plot})")


def one_line(text: str) -> str:
    return " ".join(text.split())


def escaped(text: str) -> str:
    """A text as one line of Markdown in which no character has a meaning of its own."""
    return _PUNCTUATION.sub(r"\\\1", one_line(text))


def write_card(folder: Path, card: TrainedCard) -> bool:
    """Writes the card into a folder, unless there is one that a user has written or changed.

    Returns:
        Whether the card was written.

    Raises:
        OSError: it can't be written.
    """
    file, partial = folder / CARD, folder / f".{CARD}.partial"
    if file.exists() and OURS not in file.read_text(encoding="utf-8", errors="replace"):
        return False
    partial.write_text(card.text(), encoding="utf-8", errors="replace")
    partial.replace(file)
    return True
