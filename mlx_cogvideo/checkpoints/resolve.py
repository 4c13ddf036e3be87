"""Resolves the name that a user gives to a model: a folder, an alias or a hub id."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors

from ..errors import InvalidInputError, ModelNotFoundError, first_line
from .components import read_config
from .variants import ALIASES

DEMO_PATH = Path(__file__).parents[1] / "demo"
"""The bundled checkpoint: tiny, trained from scratch on moving shapes."""

BUNDLED = {"demo": DEMO_PATH, "demo-i2v": DEMO_PATH.with_name("demo_i2v")}
"""The demo, and its image-to-video version."""

SHARED_KEY = "_components_from"
"""Key of ``model_index.json``: a relative path to the folder that holds the missing components."""

CONFIGURATIONS = ["*.json", "*/*.json"]
DOWNLOADED = [*CONFIGURATIONS, "*/*.safetensors", "tokenizer/spiece.model"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def default_model() -> Path:
    """The model when none is given: the folder ``mlx_model`` if there is one, else the demo."""
    converted = Path("mlx_model")
    return converted if converted.is_dir() else DEMO_PATH


def resolve_model(model: str | Path, revision: str | None = None, *, download: bool = True) -> Path:
    """The folder of a model.

    Args:
        model: a folder, an alias (of `BUNDLED` or `ALIASES`), or a hub id such as
            ``THUDM/CogVideoX-5b``, which is downloaded unless it is in the local hub cache.
        revision: commit, branch or tag of a hub repository; None is its main branch.
        download: False takes a hub repository only from the cache.

    Raises:
        InvalidInputError: a folder or a bundled model is given a revision.
        ModelNotFoundError: it is none of these, or the hub refuses it.
    """
    repo = hub_id(model)
    if repo is None and revision is not None:
        raise InvalidInputError(f"{model} isn't of the hub and has no revision {revision}")
    if repo is not None:
        return Path(_fetch(repo, revision, download=download))
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else BUNDLED[str(model)]


def download_bytes(model: str | Path, revision: str | None = None) -> int:
    """Bytes that `resolve_model` would download; 0 if the hub can't be reached.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    repo = hub_id(model)
    try:
        files = _fetch(repo, revision, dry_run=True) if repo else []
    except hub_errors.DryRunError:
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def component_folder(folder: Path, name: str) -> Path:
    """The folder of a component: inside the model folder, or in the one that its index names."""
    inside, index = folder / name, folder / "model_index.json"
    if not inside.is_dir() and index.is_file():
        shared = read_config(index).get(SHARED_KEY)
        if isinstance(shared, str) and (folder / shared / name).is_dir():
            return folder / shared / name
    return inside


def resolve_configuration(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model whose configurations are needed, but not its weights.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    repo = hub_id(model)
    return Path(_fetch(repo, revision, CONFIGURATIONS)) if repo else resolve_model(model)


def resolve_text_encoder(model: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model whose tokenizer and text encoder are needed, but nothing else.

    Args:
        weights: False needs only the tokenizer and the encoder's configuration.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    repo = hub_id(model)
    patterns = ["text_encoder/*.json", "tokenizer/*"]
    if weights:
        patterns.append("text_encoder/*.safetensors")
    return Path(_fetch(repo, None, patterns)) if repo else resolve_model(model)


def fetch_file(repo: str, names: Sequence[str], also: Sequence[str] = ()) -> Path:
    """Downloads the first of `names` that a hub repository has, and the files `also` if present.

    Raises:
        ModelNotFoundError: it has none of them, or the hub refuses it.
    """
    folder = Path(_fetch(repo, None, [*names, *also]))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelNotFoundError(f"{repo!r} holds neither {' nor '.join(names)}")


def hub_id(model: str | Path) -> str | None:
    """The hub repository that a name refers to, or None for a folder or a demo."""
    name = str(model)
    if name in BUNDLED or (name and Path(model).expanduser().is_dir()):
        return None
    repo = ALIASES.get(name.lower(), name)
    if not _HUB_ID.fullmatch(repo):
        known = ", ".join([*BUNDLED, *ALIASES])
        raise ModelNotFoundError(f"no model {name!r}: give a folder, a hub id or one of {known}")
    return repo


def hub_cache() -> Path:
    """The folder that downloads go to."""
    return Path(hub_constants.HF_HUB_CACHE)


def network_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the hub's HTTP client, and of the disk."""
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (OSError, *(client.HTTPError for client in clients))


def _fetch(
    repo: str,
    revision: str | None,
    patterns: list[str] = DOWNLOADED,
    download: bool = True,
    **options: Any,
) -> Any:
    """The result of ``snapshot_download``; turns each of its errors into one line."""
    try:
        return huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=patterns,
            local_files_only=not download,
            **options,
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
    except hub_errors.DryRunError:
        raise
    except network_errors() as error:
        reason = first_line(error)
        problem = f"couldn't be fetched ({reason}): run this again to continue the download"
    raise ModelNotFoundError(f"{repo!r} {problem}")
