"""Calls of ``lora.py`` on the bundled demo and three tiny clips, and what they write."""

import json
import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
from clips import make_clip

from mlx_cogvideo.cli.lora import main
from mlx_cogvideo.video import write_video

SMALL = ["--frames", 9, "--height", 32, "--width", 48, "--rank", 4, "--warmup", 2]


def make_data(folder: Path) -> Path:
    """Writes three clips of 12 frames and their captions."""
    for name, size in (("a", (48, 64)), ("b", (40, 80)), ("c", (33, 49))):
        write_video(folder / f"{name}.mp4", make_clip(12, *size), 8)
        (folder / f"{name}.txt").write_text(f"a yellow square moves right, take {name}")
    return folder


def lora(clips, adapter, *arguments, small=SMALL) -> int:
    """Trains a small adapter of the demo in this process and returns the exit code."""
    logging.getLogger("mlx_cogvideo").handlers.clear()
    command = ["--data", clips, "--adapter-path", adapter, "--model", "demo", *small, *arguments]
    try:
        return main([str(argument) for argument in command])
    except SystemExit as stop:
        return stop.code


def read_log(adapter) -> list[dict]:
    return [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]


def tensors(adapter) -> dict[str, np.ndarray]:
    loaded = mx.load(str(adapter / "pytorch_lora_weights.safetensors"))
    return {name: np.array(tensor) for name, tensor in loaded.items()}


def same(first, second) -> bool:
    first, second = tensors(first), tensors(second)
    return first.keys() == second.keys() and all((first[n] == second[n]).all() for n in first)
