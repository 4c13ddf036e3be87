"""Writes the tables of settings in the documentation from the settings' classes.

    python tools/docs/settings_tables.py            # rewrites docs/settings.md and docs/lora.md
    python tools/docs/settings_tables.py --check    # exit 1 where a table isn't up to date

A table stands between the lines ``<!-- settings: NAME -->`` and ``<!-- end -->``.
"""

import re
import sys
from pathlib import Path

from mlx_cogvideo.cli.options import default_words, option_name
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.training.settings import TrainingSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "settings.md", DOCS / "lora.md"]
CLASSES = {"video": RunSettings, "training": TrainingSettings}


def table(settings_class: type) -> str:
    """A row for each setting: its names, what it does, its default, and whether it may change."""
    rows = ["| setting | option | what it does | default | may change on resume |"]
    rows.append("|---|---|---|---|---|")
    for name, about in settings_of(settings_class).items():
        option = option_name(settings_class, name)
        text = about.help.replace("|", "\\|")
        if about.choices is not None:
            text += f" One of {', '.join(f'`{choice}`' for choice in about.choices)}."
        default = default_words(settings_class, name) or ""
        rows.append(
            f"| `{name}` | `{option}` | {text} | {default} | {'yes' if about.may_change else ''} |"
        )
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with its tables made anew."""

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{table(CLASSES[match[2]])}\n\n{match[3]}"

    return re.sub(r"(<!-- settings: (\w+) -->).*?(<!-- end -->)", made, page, flags=re.DOTALL)


def main() -> int:
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    if "--check" in sys.argv:
        return int(any(with_tables(page) != page for page in pages.values()))
    for path, page in pages.items():
        path.write_text(with_tables(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
