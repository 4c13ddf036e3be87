"""Resolves the name that a user gives to a model: a folder, an alias or a hub id."""

import os
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors

from ..called import command
from ..errors import (
    InvalidInputError,
    ModelNotFoundError,
    NotDownloadedError,
    did_you_mean,
    first_line,
)
from .json_files import read_config
from .variants import ALIASES, NAMES, OWNERS, VARIANTS, Variant

DEMO_PATH = Path(__file__).parents[1] / "demo"
"""The bundled checkpoint: tiny, trained from scratch on moving shapes."""

BUNDLED = {"demo": DEMO_PATH, "demo-i2v": DEMO_PATH.with_name("demo_i2v")}
"""The demo, and its image-to-video version."""

SHARED_KEY = "_components_from"
"""Key of ``model_index.json``: a relative path to the folder that holds the missing components."""

COMPONENTS = ("text_encoder", "tokenizer", "transformer", "vae", "scheduler")

CONFIGURATIONS = ["*.json", "*/*.json", "tokenizer/spiece.model"]
DOWNLOADED = [*CONFIGURATIONS, "*/*.safetensors"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = (".safetensors", ".pt", ".bin", ".ckpt", ".gguf", ".pth")
"""Endings of names that are meant for files."""


@dataclass(frozen=True)
class Base:
    """The model from which the components come that a folder lacks.

    Attributes:
        name: as the user gave it.
        folder: where it is.
    """

    name: str
    folder: Path


def check_path(name: str, value: Any) -> None:
    """Raises InvalidInputError unless a value is a path, or a text that may be one."""
    if not isinstance(value, str | Path):
        raise InvalidInputError(f"{name} must be a text or a path; got {type(value).__name__}")


def expanded(path: str | Path) -> Path:
    """A path with a home folder for its ``~``; that of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def default_model() -> Path:
    """The model when none is given: the folder ``mlx_model`` if there is one, else the demo."""
    converted = Path("mlx_model")
    return converted if converted.is_dir() else DEMO_PATH


def resolve_model(
    model: str | Path,
    revision: str | None = None,
    *,
    download: bool = True,
    patterns: list[str] = DOWNLOADED,
) -> Path:
    """The folder of a model.

    Args:
        model: a folder, an alias (of `BUNDLED` or `ALIASES`), or a hub id such as
            ``me/my-model``, which is downloaded unless it is in the local hub cache. An official
            model has all of `NAMES`.
        revision: commit, branch or tag of a hub repository; None is its main branch.
        download: False takes a hub repository only from the cache.
        patterns: the files to download.

    Raises:
        InvalidInputError: a folder or a bundled model is given a revision.
        ModelNotFoundError: it is none of these, or the hub refuses it.
        NotDownloadedError: it isn't in the cache, and `download` is False.
    """
    repo = hub_id(model)
    if repo is None and revision is not None:
        raise InvalidInputError(f"{model} isn't of the hub and has no revision {revision}")
    if repo is not None:
        return Path(_fetch(repo, revision, patterns, download))
    folder = expanded(model)
    return folder if folder.is_dir() else BUNDLED[str(model)]


def resolve_base(
    base: str | Path,
    folder: Path,
    revision: str | None = None,
    *,
    download: bool = True,
) -> Base:
    """Finds the components that a model's folder lacks; of a hub repository only they are fetched.

    Args:
        base: a name as for `resolve_model`.
        folder: the model's folder.

    Raises:
        InvalidInputError: the folder lacks nothing.
        ModelNotFoundError: as `resolve_model`.
    """
    patterns = base_patterns(folder)
    found = resolve_model(base, revision, download=download, patterns=patterns)
    return Base(str(base), found)


def base_patterns(folder: Path) -> list[str]:
    """The files of a base that a model's folder needs, as patterns.

    Raises:
        InvalidInputError: it needs none.
    """
    missing = missing_components(folder)
    files = ("*.json", "*.safetensors", "spiece.model")
    return ["*.json", *(f"{name}/{file}" for name in missing for file in files)]


def missing_components(folder: Path) -> list[str]:
    """The components that a model's folder lacks, which a base is to give.

    Raises:
        InvalidInputError: it lacks none.
    """
    missing = [name for name in COMPONENTS if not component_folder(folder, name).is_dir()]
    if not missing:
        raise InvalidInputError(f"{folder} holds all parts of a model: leave out the base")
    return missing


def download_bytes(
    model: str | Path, revision: str | None = None, patterns: Collection[str] = DOWNLOADED
) -> int:
    """Bytes of the files of `patterns` that aren't in the cache; 0 if the hub can't be reached.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    repo = hub_id(model)
    try:
        files = _fetch(repo, revision, list(patterns), dry_run=True) if repo else []
    except hub_errors.DryRunError:
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def component_folder(folder: Path, name: str, base: Base | None = None) -> Path:
    """The folder of a component: in the model's folder, the one that its index names, or a base."""
    inside, index = folder / name, folder / "model_index.json"
    if inside.is_dir():
        return inside
    if index.is_file():
        shared = read_config(index).get(SHARED_KEY)
        if isinstance(shared, str) and (folder / shared / name).is_dir():
            return folder / shared / name
    return component_folder(base.folder, name) if base is not None else inside


def resolve_configuration(model: str | Path, revision: str | None = None) -> Path:
    """The folder of a model whose configurations and tokenizer are needed, but not its weights.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    return resolve_model(model, revision, patterns=CONFIGURATIONS)


def resolve_text_encoder(model: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model whose tokenizer and text encoder are needed, but nothing else.

    Args:
        weights: False needs only the tokenizer and the encoder's configuration.

    Raises:
        ModelNotFoundError: as `resolve_model`.
    """
    patterns = ["text_encoder/*.json", "tokenizer/*"]
    if weights:
        patterns.append("text_encoder/*.safetensors")
    return resolve_model(model, patterns=patterns)


def fetch_file(
    repo: str, names: Sequence[str], also: Sequence[str] = (), download: bool = True
) -> Path:
    """The first of `names` that a hub repository has; the files `also` are fetched if present.

    Args:
        download: False takes them only from the local cache.

    Raises:
        ModelNotFoundError: it has none of them, or the hub refuses it.
    """
    folder = Path(_fetch(repo, None, [*names, *also], download))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ModelNotFoundError(f"{repo!r} holds neither {' nor '.join(names)}")


def hub_id(model: str | Path) -> str | None:
    """The hub repository that a name refers to, or None for a folder or a demo."""
    name = str(model)
    known = f"give a folder, a hub id or one of {', '.join([*BUNDLED, *ALIASES])}"
    if not name.strip():
        raise ModelNotFoundError(f"the name of the model is empty: {known}")
    if name in BUNDLED or expanded(model).is_dir():
        return None
    if expanded(model).is_file():
        raise ModelNotFoundError(
            f"{name} is a file: give the folder of a model in the official layout, or convert a "
            f"file of the SAT code (.pt) first ({command('convert')})"
        )
    if variant := NAMES.get(name.lower()):
        return _official(variant)
    if not _HUB_ID.fullmatch(name) or name.endswith(_FILES):
        near = did_you_mean(name, [*BUNDLED, *ALIASES, *(variant.name for variant in VARIANTS)])
        raise ModelNotFoundError(f"no model {name!r}{near or f': {known}'}")
    return name


def _official(variant: Variant) -> str:
    """The repository of an official model, under the owner's name that is in the cache already."""
    repos = [variant.repo, *(f"{owner}/{variant.name}" for owner in OWNERS)]
    cached = (repo for repo in repos if cached_repository(repo).is_dir())
    return next(cached, variant.repo)


def hub_cache() -> Path:
    """The folder that downloads go to."""
    return Path(hub_constants.HF_HUB_CACHE)


def cached_repository(repo: str) -> Path:
    """The folder of a hub repository in the cache, whether or not it is there."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


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
    except hub_errors.HFValidationError:
        problem = "is no folder here, and can't be the name of a hub repository"
    except hub_errors.GatedRepoError:
        problem = "asks you to accept its licence first, on its page, and to log in (hf auth login)"
    except hub_errors.RepositoryNotFoundError:
        problem = "is neither a folder here nor a repository on the hub"
    except hub_errors.RevisionNotFoundError:
        problem = f"has no revision {revision}"
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled):
        problem = "is no folder here, isn't in the local cache, and the hub can't be reached"
        if not download:
            raise NotDownloadedError(
                f"{repo!r} is no folder here and isn't in the local cache: without --dry-run it is "
                "downloaded first"
            ) from None
    except hub_errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "no")
        problem = f"couldn't be fetched: the hub answered with status {status}; try again later"
    except hub_errors.DryRunError:
        raise
    except (*network_errors(), UnicodeDecodeError) as error:  # the last of a damaged cache
        reason = first_line(error)
        problem = f"couldn't be fetched ({reason}): run this again to continue the download"
    raise ModelNotFoundError(f"{repo!r} {problem}")
