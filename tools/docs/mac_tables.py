"""Writes the tables of what a Mac can run and how long it takes, from the package's estimates.

    python tools/docs/mac_tables.py            # rewrites the tables
    python tools/docs/mac_tables.py --check    # exit 1 where a table isn't up to date

Nothing in them was measured on a Mac. The rate of a chip is `mlx_cogvideo.nn.backend`'s: the peak
of its smallest version, of which 70 % are counted.
"""

import sys
from functools import cache

from marked_tables import main

from mlx_cogvideo.checkpoints.variants import VARIANTS
from mlx_cogvideo.cli.common import duration
from mlx_cogvideo.machine.speed import Ceilings, Choice, choices_on_macs, outlook
from mlx_cogvideo.nn.backend import PEAK_TERAFLOPS, SUSTAINED

PAGES = ["README.md", "docs/index.md", "docs/your-mac.md"]
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


TABLES = {"advice": advice, "chips": chips}

if __name__ == "__main__":
    sys.exit(main("macs", PAGES, lambda name: TABLES[name]()))
