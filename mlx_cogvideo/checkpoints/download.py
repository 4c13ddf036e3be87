"""The size of a download, known before it begins."""

from collections.abc import Collection
from pathlib import Path

from ..device import Need
from .official import cached_folder, is_whole, not_downloaded
from .resolve import (
    COMPONENTS,
    DOWNLOADED,
    base_patterns,
    download_bytes,
    hub_cache,
    hub_id,
    missing_components,
)


def pending_bytes(
    model: str | Path,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
) -> int:
    """Bytes that opening a model downloads; the hub is asked only if its cache lacks files.

    Args:
        model, revision, base, base_revision: as for ``CogVideoXPipeline.from_pretrained``.

    Returns:
        0 if all files are there, and for a base if its model must be downloaded first.

    Raises:
        ModelNotFoundError: there is no such model, or the hub refuses it.
        InvalidInputError: there is a base and the model lacks nothing.
    """
    if base is None:
        return _pending(model, revision)
    folder = cached_folder(model, revision)
    if folder is None:
        return _pending(model, revision)
    return _pending(base, base_revision, missing_components(folder), base_patterns(folder))


def _pending(
    model: str | Path,
    revision: str | None,
    needed: Collection[str] = COMPONENTS,
    patterns: Collection[str] = DOWNLOADED,
) -> int:
    if hub_id(model) is None:
        return 0
    folder = cached_folder(model, revision)
    if folder is not None and all(is_whole(folder, name) for name in needed):
        return 0
    if asked := download_bytes(model, revision, patterns):
        return asked
    known = not_downloaded(model, revision, needed)
    return sum(known.bytes.values()) if known else 0


def download_need(count: int) -> list[Need]:
    """The room that a download of so many bytes needs in the hub's cache."""
    where = Need(hub_cache(), count, "the download", "set HF_HOME to another disk")
    return [where] if count else []
