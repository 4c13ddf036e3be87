"""Writes the tables of what a Mac can run and how long it takes, from the package's estimates.

    python tools/docs/mac_tables.py            # rewrites the tables
    python tools/docs/mac_tables.py --check    # exit 1 where a table isn't up to date

Nothing in them was measured on a Mac. The rate of a chip is `mlx_cogvideo.nn.backend`'s: the peak
of its smallest version, of which 70 % are counted.
"""

import sys
from functools import cache

from marked_tables import main

from mlx_cogvideo.checkpoints.model_configurations import official_model
from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli.common import duration
from mlx_cogvideo.device import mac
from mlx_cogvideo.machine.speed import MAC_SIZES, Ceilings, Choice, choices_on_macs, outlook
from mlx_cogvideo.nn.backend import PEAK_TERAFLOPS, SUSTAINED
from mlx_cogvideo.nn.quantization import Quantization
from mlx_cogvideo.pipeline.resolver import model_geometry
from mlx_cogvideo.training.estimates import estimate_training_memory
from mlx_cogvideo.training.settings import TrainingSettings

PAGES = ["README.md", "docs/index.md", "docs/your-mac.md", "docs/fine-tuning.md"]
VIDEOS = {variant.alias: variant for variant in VARIANTS}

ADVICE = (
    (16, "M4", "5b", 4),
    (24, "M4 Pro", "5b", 8),
    (32, "M2 Max", "5b", None),
    (64, "M4 Max", "5b", None),
    (128, "M4 Max", "1.5-5b", None),
)
"""Memory of a Mac in GB, a chip that is sold with it, a model, and bits for its weights (None: as
they are published)."""

CHIPS = [chip for chip in PEAK_TERAFLOPS if not chip.startswith("M5")]
"""The M5 is left out: its rate depends on whether MLX uses its neural accelerators."""

SMALL = 17, 256, 384
"""Frames, height and width at which most trainings are begun."""

TRAININGS = {
    "LoRA, rank 64": (None, TrainingSettings()),
    "LoRA, model in 4 bits": (4, TrainingSettings()),
    "all, adafactor": (None, TrainingSettings(fine_tune_type="full")),
    "all, adamw_8bit": (None, TrainingSettings(fine_tune_type="full", optimizer="adamw_8bit")),
    "all, adamw": (None, TrainingSettings(fine_tune_type="full", optimizer="adamw")),
    "all, adafactor, masters": (
        None,
        TrainingSettings(fine_tune_type="full", master_weights=True),
    ),
}
"""Bits of the model's weights and settings of a training, by its name."""

TRAINING_MACS = (*MAC_SIZES, 192, 256, 512)
"""Memory of Macs in GB."""

OPERATIONS_PER_BYTE = 25
"""Operations in the time in which a Mac's memory moves a byte, by what Apple states."""


def seconds(chip: str, alias: str) -> float:
    """Estimated seconds for 50 steps of a model at its own size, with guidance."""
    rate = SUSTAINED * PEAK_TERAFLOPS[chip] * 1e12
    ceilings = Ceilings("bfloat16", rate, rate, rate / OPERATIONS_PER_BYTE)
    return outlook(VIDEOS[alias], ceilings).video


@cache
def choices(chip: str) -> dict[tuple[int, str, str], Choice]:
    """What the command chooses on Macs with a chip, by their memory, a model, and bits."""
    return {(c.gigabytes, c.variant, c.bits): c for c in choices_on_macs(chip)}


def advice() -> str:
    """A row for each size of Mac: a model that fits, with its command, memory and time."""
    rows = [
        "| your Mac | model | command | memory | a video takes about |",
        "|---|---|---|---|---|",
    ]
    for gigabytes, chip, alias, bits in ADVICE:
        chosen = choices(chip)[gigabytes, alias, f"{bits or 16} bits"]
        assert chosen.fits, f"{alias} doesn't fit {gigabytes} GB"
        model = f"{VIDEOS[alias].name}, {bits or 16} bits"
        quantized = f" -q {bits}" if bits else ""
        command = f'`mlx-cogvideo generate --model {alias}{quantized} --prompt "..."`'
        memory = f"{chosen.memory / 2**30:.1f} of {chosen.limit / 2**30:.1f} GiB"
        took = f"{duration(seconds(chip, alias))} ({chip})"
        rows.append(f"| {gigabytes} GB | {model} | {command} | {memory} | {took} |")
    return "\n".join(rows)


def chips() -> str:
    """A row for each chip: the time of each model's video."""
    models = ("2b", "5b", "1.5-5b")
    rows = [f"| chip | {' | '.join(f'`{alias}`' for alias in models)} |", "|---" * 4 + "|"]
    for chip in CHIPS:
        cells = (duration(seconds(chip, alias)) for alias in models)
        rows.append(f"| {chip} | {' | '.join(cells)} |")
    return "\n".join(rows)


def training() -> str:
    """A row for each model and kind of training: its memory, and the smallest Mac for it."""
    rows = [
        f"| model | what is trained | {SMALL[0]}x{SMALL[1]}x{SMALL[2]} | its own size |",
        "|---|---|---|---|",
    ]
    for alias in ("2b", "5b", "1.5-5b"):
        size = model_geometry(official_model(VIDEOS[alias]))
        own = size.num_frames, size.height, size.width
        for name, (bits, settings) in TRAININGS.items():
            cells = " | ".join(_training(alias, bits, settings, each) for each in (SMALL, own))
            rows.append(f"| {VIDEOS[alias].name} | {name} | {cells} |")
    return "\n".join(rows)


def _training(
    alias: str, bits: int | None, settings: TrainingSettings, size: tuple[int, int, int]
) -> str:
    """The memory of a training in GiB, and the smallest Mac on which all its stages fit."""
    model = official_model(VIDEOS[alias], bits and Quantization(bits, 64))
    for gigabytes in TRAINING_MACS:
        model.machine = mac(gigabytes)
        needs = estimate_training_memory(model, model_geometry(model, *size), settings)
        if max(needs.values()) <= model.machine.memory:
            return f"{needs['train'] / 2**30:.1f} ({gigabytes} GB)"
    return f"{needs['train'] / 2**30:.1f}"


TABLES = {"advice": advice, "chips": chips, "training": training}

if __name__ == "__main__":
    sys.exit(main("macs", PAGES, lambda name: TABLES[name]()))
