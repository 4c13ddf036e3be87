"""The log of a training, a JSON object per step, one a line; and the plot of its loss."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
TRAINING = "training_validation"
"""Name of the validation loss on clips that are learned, where others are held out."""

WIDTH, HEIGHT, MARGIN = 800, 400, 50
SMOOTHING = 0.97
"""Size of the plot, and the smoothing of its loss."""

BLUE, RED, ORANGE = "#1f77b4", "#d62728", "#ff7f0e"

Points = list[tuple[int, float]]
"""Steps and their values."""


def append_row(log: Path, row: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cut_log(log: Path, step: int) -> None:
    """Removes the rows after a step, from which a training continues."""
    rows = [row for row in read_rows(log) if row["step"] <= step]
    partial = log.with_name(f".{log.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(log)


def read_rows(log: Path) -> Iterator[dict[str, Any]]:
    """The rows that can be read. A power cut may have truncated the last one."""
    if not log.is_file():
        return
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row


def write_plot(log: Path, picture: Path) -> None:
    """Writes an SVG of the smoothed loss of each step and the losses of the validations."""
    rows = list(read_rows(log))
    if len(rows) < 2:
        return
    lines = [("loss, smoothed", BLUE, smoothed(rows)), *_validations(rows)]
    top = max(value for *_, values in lines for _, value in values)
    last = rows[-1]["step"]

    def line(values: Points, color: str) -> str:
        points = " ".join(
            f"{MARGIN + step / last * (WIDTH - 2 * MARGIN):.1f},"
            f"{HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN):.1f}"
            for step, value in values
        )
        return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>'

    def text(x: float, y: float, words: str, color: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" fill="{color}">{words}</text>'

    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="#333"/>',
        text(4, MARGIN + 4, f"{top:.3g}"),
        text(MARGIN - 14, bottom + 4, "0"),
        text(right - 20, bottom + 20, f"{last} steps"),
    ]
    for place, (words, color, values) in enumerate(lines):
        parts += [line(values, color), text(MARGIN + 8 + 240 * place, MARGIN - 24, words, color)]
    partial = picture.with_name(f"{picture.name}.partial")
    partial.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    partial.replace(picture)


def smoothed(rows: list[dict[str, Any]]) -> Points:
    """A running average of the loss of each step."""
    points, average, weight = [], 0.0, 0.0
    for row in rows:
        average = SMOOTHING * average + (1 - SMOOTHING) * row["loss"]
        weight = SMOOTHING * weight + 1 - SMOOTHING
        points.append((row["step"], average / weight))
    return points


def _validations(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, Points]]:
    """The lines of the validations: their words, color and points."""

    validated = [row for row in rows if "validation" in row]
    held_out = [(row["step"], row["validation"]) for row in validated if TRAINING in row]
    learned = [(row["step"], row.get(TRAINING, row["validation"])) for row in validated]
    if learned:
        yield "training clips, at fixed noise", ORANGE, learned
    if held_out:
        yield "held-out clips, at fixed noise", RED, held_out
