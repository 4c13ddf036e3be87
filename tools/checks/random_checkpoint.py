"""Writes a full-size checkpoint in the official layout with random weights.

    python tools/checks/random_checkpoint.py 5b /tmp/random-5b

Names, shapes, dtype and shards are those of the official files, so memory and speed can be measured
without the official weights; the videos are noise. Takes the disk space of the official checkpoint
(5B: 21 GB) and the memory of one shard. `--share OTHER` links the text encoder and the VAE of
another such folder instead of writing them again.
"""

import argparse
import json
import shutil
import sys
from math import prod
from pathlib import Path

import mlx.core as mx

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from official import TRANSFORMERS, official
from support import scheduler_config

from mlx_cogvideo.checkpoints import COMPONENT_STEMS, DEMO_PATH
from mlx_cogvideo.checkpoints.recommended import KEY as RECOMMENDED

SHARD_BYTES = 5e9
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("variant", choices=[name.replace("_", "-") for name in TRANSFORMERS])
    parser.add_argument("folder", type=Path, help="the new folder to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the weights (default: float16 for 2b, else bfloat16)",
    )
    parser.add_argument(
        "--share", type=Path, metavar="OTHER", help="folder to link T5 and VAE from"
    )
    args = parser.parse_args()
    variant = args.variant.replace("-", "_")
    dtype = DTYPES[args.dtype or ("float16" if variant == "2b" else "bfloat16")]

    args.folder.mkdir(parents=True)
    shutil.copytree(DEMO_PATH / "tokenizer", args.folder / "tokenizer")
    index = json.loads((DEMO_PATH / "model_index.json").read_text())
    del index[RECOMMENDED]  # for the demo alone
    write_json(args.folder / "model_index.json", index)
    shift = 3.0 if variant == "2b" else 1.0
    sampler = "CogVideoXDDIMScheduler" if variant == "2b" else "CogVideoXDPMScheduler"
    scheduler = {"_class_name": sampler, **scheduler_config(snr_shift_scale=shift)}
    write_json(args.folder / "scheduler" / "scheduler_config.json", scheduler)
    write_component(args.folder / "transformer", variant, TRANSFORMERS[variant], dtype)
    scaling = 1.15258426 if variant == "2b" else 0.7
    for name, tensors, config in (
        ("text_encoder", "t5_v1_1_xxl_encoder", {}),
        ("vae", "vae", {"scaling_factor": scaling}),
    ):
        if args.share:
            (args.folder / name).symlink_to((args.share / name).resolve())
        else:
            write_component(args.folder / name, tensors, config, dtype)


def write_component(folder: Path, name: str, config: dict, dtype: mx.Dtype) -> None:
    folder.mkdir()
    write_json(folder / "config.json", config)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for tensor, shape in official(name).items():
        if dtype.size * sum(map(prod, [*shards[-1].values(), shape])) > SHARD_BYTES:
            shards.append({})
        shards[-1][tensor] = shape
    stem = COMPONENT_STEMS[folder.name]
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        file = f"{stem}.safetensors" if len(shards) == 1 else file
        mx.save_safetensors(
            str(folder / file),
            {tensor: random_tensor(tensor, shape, dtype) for tensor, shape in shapes.items()},
            {"format": "pt"},
        )
        weight_map |= dict.fromkeys(shapes, file)
        mx.clear_cache()
    if len(shards) > 1:
        size = dtype.size * sum(map(prod, official(name).values()))
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def random_tensor(name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Random values that keep activations finite: scaled by a matrix's inputs, 1 for norms."""
    if len(shape) == 1:
        return mx.ones(shape, dtype) if name.endswith("weight") else mx.zeros(shape, dtype)
    return mx.random.normal(shape, dtype, scale=prod(shape[1:]) ** -0.5)


def write_json(path: Path, contents: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(contents, indent=2) + "\n")


if __name__ == "__main__":
    main()
