"""The plot of a training's loss."""

from pathlib import Path

from .log import read_rows

WIDTH, HEIGHT, MARGIN = 800, 400, 50
SMOOTHING = 0.97


def write_plot(log: Path, picture: Path) -> None:
    """Writes an SVG of the smoothed loss of each step and the validation loss."""
    rows = list(read_rows(log))
    if len(rows) < 2:
        return
    smooth, average, weight = [], 0.0, 0.0
    for row in rows:
        average = SMOOTHING * average + (1 - SMOOTHING) * row["loss"]
        weight = SMOOTHING * weight + 1 - SMOOTHING
        smooth.append((row["step"], average / weight))
    validation = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    top = max(value for _, value in smooth + validation)
    last = rows[-1]["step"]

    def points(values: list[tuple[int, float]]) -> str:
        return " ".join(
            f"{MARGIN + step / last * (WIDTH - 2 * MARGIN):.1f},"
            f"{HEIGHT - MARGIN - value / top * (HEIGHT - 2 * MARGIN):.1f}"
            for step, value in values
        )

    def line(values: list[tuple[int, float]], color: str) -> str:
        return (
            f'<polyline points="{points(values)}" fill="none" stroke="{color}" stroke-width="2"/>'
        )

    def text(x: float, y: float, words: str, color: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" fill="{color}">{words}</text>'

    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="#333"/>',
        line(smooth, "#1f77b4"),
        text(MARGIN + 8, MARGIN - 24, "loss, smoothed", "#1f77b4"),
        text(4, MARGIN + 4, f"{top:.3g}"),
        text(MARGIN - 14, bottom + 4, "0"),
        text(right - 20, bottom + 20, f"{last} steps"),
    ]
    if validation:
        parts += [
            line(validation, "#d62728"),
            text(MARGIN + 130, MARGIN - 24, "validation, at fixed noise", "#d62728"),
        ]
    partial = picture.with_name(f"{picture.name}.partial")
    partial.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    partial.replace(picture)
