"""From what a user calls a model to a folder on this disk."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from ..errors import ModelNotFoundError
from ..variants import ALIASES

DEMO_PATH = Path(__file__).parents[1] / "demo"
"""The bundled checkpoint: tiny, trained from scratch on moving shapes."""

DOWNLOADED = ["*.json", "*/*.json", "*/*.safetensors", "tokenizer/spiece.model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def default_model() -> Path:
    """The model when none is named: the folder ``mlx_model`` here, else the bundled demo."""
    converted = Path("mlx_model")
    return converted if converted.is_dir() else DEMO_PATH


def resolve_model(model: str | Path, revision: str | None = None, *, download: bool = True) -> Path:
    """The folder of a model.

    Args:
        model: a folder, an alias (``demo`` or one of `ALIASES`), or a hub id such as
            ``THUDM/CogVideoX-5b``, which is downloaded unless it is in the local hub cache.
        revision: commit, branch or tag of a hub repository; None is its main branch.
        download: False takes a hub repository only from the cache.

    Raises:
        ModelNotFoundError: none of these, or the hub doesn't give it.
    """
    name = str(model)
    folder = Path(model).expanduser()
    if name and folder.is_dir():
        return folder
    if name == "demo":
        return DEMO_PATH
    repo = ALIASES.get(name.lower(), name)
    if not _HUB_ID.fullmatch(repo):
        known = ", ".join(["demo", *ALIASES])
        raise ModelNotFoundError(f"no model {name!r}: give a folder, a hub id or one of {known}")
    return _fetch(repo, revision, download)


def _fetch(repo: str, revision: str | None, download: bool) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=DOWNLOADED,
                local_files_only=not download,
            )
        )
    except hub_errors.GatedRepoError:
        problem = "asks you to accept its licence first, on its page, and to log in (hf auth login)"
    except hub_errors.RepositoryNotFoundError:
        problem = "is neither a folder here nor a repository on the hub"
    except hub_errors.RevisionNotFoundError:
        problem = f"has no revision {revision}"
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
        problem = "isn't in the local cache and the hub can't be reached"
        if not download:
            problem = "isn't in the local cache: without --dry-run it is downloaded first"
    except hub_errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        problem = f"couldn't be fetched: the hub answered with status {status}; try again later"
    raise ModelNotFoundError(f"{repo!r} {problem}")
