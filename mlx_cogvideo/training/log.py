"""The log of a training: a JSON object per step, one a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


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
