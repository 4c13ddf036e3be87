"""Keeps tables in the documentation up to date; settings_tables.py and mac_tables.py make them.

A table stands between the lines ``<!-- KIND: NAME -->`` and ``<!-- end -->``.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main(kind: str, pages: list[str], table: Callable[[str], str]) -> int:
    """Rewrites the tables of a kind; with ``--check`` it only compares them.

    Args:
        pages: their names below the root of the repository.
        table: makes the table of a name.

    Returns:
        The exit code: 1 where ``--check`` finds a table that isn't up to date.
    """

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{table(match[2])}\n\n{match[3]}"

    marked = rf"(<!-- {kind}: (\w+) -->).*?(<!-- end -->)"
    for path in (ROOT / page for page in pages):
        before = path.read_text(encoding="utf-8")
        after = re.sub(marked, made, before, flags=re.DOTALL)
        if "--check" in sys.argv and after != before:
            return 1
        path.write_text(after, encoding="utf-8")
    return 0
