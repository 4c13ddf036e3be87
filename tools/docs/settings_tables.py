"""Writes the tables of settings in the documentation from the settings' classes.

python tools/docs/settings_tables.py            # rewrites the tables
python tools/docs/settings_tables.py --check    # exit 1 where a table isn't up to date
"""

import sys

from marked_tables import main

from mlx_cogvideo.cli.options import default_words, option_name
from mlx_cogvideo.pipeline.fields import settings_of
from mlx_cogvideo.runs.settings import RunSettings
from mlx_cogvideo.training.settings import TrainingSettings

PAGES = ["docs/settings.md", "docs/fine-tuning.md"]
CLASSES = {"video": RunSettings, "training": TrainingSettings}


def table(name: str) -> str:
    """A row for each setting: its names, what it does, its default, and whether it may change."""
    settings_class = CLASSES[name]
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


if __name__ == "__main__":
    sys.exit(main("settings", PAGES, table))
