"""A pipeline without files: runs of an official model can be planned before its download."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.adapters import NOT_CHECKED
from ..checkpoints.compatibility import SCHEDULER
from ..checkpoints.components import Dtype
from ..checkpoints.json_files import read_config
from ..checkpoints.networks import NETWORKS
from ..checkpoints.official import (
    NotDownloaded,
    find_parts,
    official_config,
    official_tensors,
)
from ..checkpoints.resolve import Base
from ..checkpoints.tensor_files import TensorInfo
from ..checkpoints.tokenizer import T5Tokenizer, TextReport
from ..errors import NotDownloadedError
from .pipeline import CogVideoXPipeline


class PlannedPipeline(CogVideoXPipeline):
    """A model of which official parts aren't downloaded. It gives estimates, and makes no video."""

    def __init__(
        self,
        missing: NotDownloaded,
        folder: Path,
        dtype: Dtype | None = None,
        base: Base | None = None,
        quantize: int | None = None,
    ):
        """Opens what is here of a model; the rest is as in the official one.

        Args:
            missing: the official model, whose built-in configurations stand in for its files.
            folder, dtype, base, quantize: as for `ModelFolder`; components that neither folder
                has are those of the official model.

        Raises:
            CheckpointError: a component that is here can't be used, or doesn't fit the others.
        """
        self._variant = missing.variant
        super().__init__(folder, dtype, base, download=False, quantize=quantize)
        self.to_download = sum(missing.bytes.values())

    def _is_here(self, component: str) -> bool:
        return self.component(component).is_dir()

    def _read_configurations(self) -> dict[str, dict[str, Any]]:
        files = {**dict.fromkeys(NETWORKS, "config.json"), "scheduler": Path(SCHEDULER).name}
        return {
            name: read_config(self.component(name) / file)
            if self._is_here(name)
            else official_config(self._variant, name)
            for name, file in files.items()
        }

    def _open_tokenizer(self, text_encoder: Mapping[str, Any]) -> Any:
        here = self._is_here("tokenizer")
        return super()._open_tokenizer(text_encoder) if here else _NoTokenizer()

    def _read_headers(self, name: str) -> dict[str, TensorInfo]:
        if self._is_here(name):
            return super()._read_headers(name)
        return official_tensors(self._variant, name)


class _NoTokenizer(T5Tokenizer):
    """Takes the place of a tokenizer without its vocabulary: it finds no problem in a text."""

    def __init__(self) -> None:
        pass

    def report(self, text: str, max_length: int = 226) -> TextReport:
        return TextReport(max_length, "", ())


def open_to_plan(
    model: str | Path,
    dtype: Dtype | None = None,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
    quantize: int | None = None,
) -> CogVideoXPipeline:
    """Opens a model to plan runs with it; nothing is downloaded, and no server is asked.

    Args:
        model, dtype, revision, base, base_revision, quantize: as for ``from_pretrained``.

    Returns:
        A `PlannedPipeline` if an official model, given as the model or as its base, isn't wholly in
        the hub's cache.

    Raises:
        NotDownloadedError: another model of the hub isn't in the cache.
        ModelNotFoundError, CheckpointError, InvalidInputError: as ``from_pretrained``.
    """
    folder, rest, missing = find_parts(model, revision, base, base_revision)
    planned: CogVideoXPipeline
    if missing is not None:
        planned = PlannedPipeline(missing, folder, dtype, rest, quantize)
    else:
        planned = CogVideoXPipeline(folder, dtype, rest, download=False, quantize=quantize)
    planned.name = model
    return planned


def load_adapters(pipe: CogVideoXPipeline, adapters: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Adds adapters, which are given with their scales, to a model or a plan.

    Yields:
        A warning for each that isn't here, where nothing is downloaded.

    Raises:
        InvalidInputError, ModelNotFoundError, CheckpointError: as ``load_lora``.
    """
    for source, scale in adapters:
        try:
            pipe.load_lora(source, scale)
        except NotDownloadedError:
            yield NOT_CHECKED % source
