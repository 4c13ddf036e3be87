"""Opens the adapters that a conversion fuses into the transformer."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..checkpoints import Adapter, open_adapter
from ..checkpoints.adapters import NOT_CHECKED
from ..errors import NotDownloadedError

logger = logging.getLogger(__name__)


def open_adapters(
    sources: Iterable[tuple[str | Path, float]],
    layers: Mapping[str, tuple[int, int]],
    *,
    download: bool = True,
) -> Iterator[tuple[Adapter, float]]:
    """Opens adapters, which are given with their scales, and checks what they contain.

    Args:
        layers: as for `open_adapter`.
        download: False leaves out those of the hub that aren't in the local cache, with a warning.
    """
    for source, scale in sources:
        try:
            adapter = open_adapter(source, layers, download=download)
        except NotDownloadedError:
            logger.warning(NOT_CHECKED, source)
            continue
        adapter.load(scale)  # so that NaN is reported before anything is written
        yield adapter, scale
