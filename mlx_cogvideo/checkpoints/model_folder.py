"""A model folder: its configurations, and its networks, which are loaded when they are needed."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn

from ..nn.autoencoder import AutoencoderKLCogVideoX
from ..nn.low_rank import add_adapter
from ..nn.quantization import linear_layers
from ..nn.t5 import T5EncoderModel
from ..nn.transformer import CogVideoXTransformer3DModel
from .adapter_scales import check_scale
from .adapter_set import AdapterSet
from .adapters import Adapter, open_adapter
from .compatibility import open_tokenizer, read_configurations
from .components import Dtype, check_component, find_dtype, load_component
from .identity import model_identity
from .model_configurations import ModelConfigurations
from .networks import NETWORKS
from .packing import LoadPlan, find_quantization
from .resolve import Base, check_path, component_folder, resolve_base, resolve_model
from .tensor_files import TensorInfo
from .tokenizer import T5Tokenizer

logger = logging.getLogger(__name__)


class ModelFolder(ModelConfigurations):
    """A CogVideoX model folder.

    ``transformer``, ``vae`` and ``text_encoder`` load on first use, stay until they are freed, and
    load again on the next use.

    Attributes:
        folder: the model folder.
        base: where the components are that the folder lacks, or None.
        tokenizer: turns text into token ids.
        scheduler_config: contents of ``scheduler_config.json``.
        adapter_set: the adapters that ``load_lora`` has added, by name.
        name: what the user called the model.
        download: whether an adapter may be downloaded.
        to_download: bytes of its files that aren't here; 0 unless it is a `PlannedPipeline`.
    """

    to_download = 0

    def __init__(
        self,
        folder: Path,
        dtype: Dtype | None = None,
        base: Base | None = None,
        *,
        download: bool = True,
        quantize: int | None = None,
    ):
        """See `from_pretrained`."""
        self.folder, self.base, self.download = Path(folder), base, download
        self.name: str | Path = folder
        quantization = find_quantization(quantize)
        contents = self._read_configurations()
        self._networks: dict[str, nn.Module] = {}
        self.adapter_set = AdapterSet()
        self._kept: set[str] = set()
        self.scheduler_config = contents["scheduler"]
        self.tokenizer = self._open_tokenizer(contents["text_encoder"])
        super().__init__(contents, dtype, quantization)

    def _read_configurations(self) -> dict[str, dict[str, Any]]:
        return read_configurations(self.folder, self.base)

    def _open_tokenizer(self, text_encoder: Mapping[str, Any]) -> T5Tokenizer:
        return open_tokenizer(self.folder, text_encoder, self.base)

    def _read_headers(self, name: str) -> dict[str, TensorInfo]:
        return check_component(NETWORKS[name][0](self.configs[name]), self.component(name))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: Dtype | None = None,
        *,
        revision: str | None = None,
        download: bool = True,
        base: str | Path | None = None,
        base_revision: str | None = None,
        quantize: int | None = None,
        torch_dtype: Any = None,
    ) -> Self:
        """Opens a model: its configurations and file headers; weights are read when needed.

        Args:
            model: a folder in the official layout, an alias (``demo``, ``2b``, ``5b``, ...) or a
                hub id.
            dtype: float16, bfloat16 or float32, as MLX's dtype or by name. None follows the
                checkpoint, or is float32 on the CPU, where 16-bit is slow.
            revision: commit, branch or tag of a hub repository.
            download: False takes a hub repository, also of an adapter, only from the local cache.
            base: the model that gives the components which `model` lacks, such as a finetune that
                has a ``transformer`` alone.
            base_revision: as `revision`, for the base.
            quantize: bits to which the weights of the transformer and the text encoder are
                quantized while they are read, 2, 3, 4, 5, 6 or 8, to the numbers of a folder that
                the converter makes with its standard recipe. None leaves them as they are stored.
            torch_dtype: ignored, with a warning; scripts for diffusers have it.

        Raises:
            InvalidInputError: an argument is of another kind, there is a base and the model lacks
                nothing, or the model is quantized to other bits already.
            ModelNotFoundError: there is no such model.
            CheckpointError: files or tensors are missing, damaged, unexpected or mis-shaped.
        """
        check_path("model", model)
        dtype = find_dtype(dtype)  # before a download
        find_quantization(quantize)
        folder, rest = resolve_model(model, revision, download=download), None
        if base is not None:
            check_path("base", base)
            rest = resolve_base(base, folder, base_revision, download=download)
        made = cls(folder, dtype, rest, download=download, quantize=quantize)
        made.name = model
        if torch_dtype is not None:
            logger.warning("torch_dtype is ignored: computing in %s; see dtype", made.dtype_name)
        return made

    def identity(self) -> dict[str, Any]:
        """What identifies the model on any machine; see ``model_identity``."""
        return model_identity(self.name, self.folder, self.base)

    def component(self, name: str) -> Path:
        """The folder of a component: a network, ``tokenizer`` or ``scheduler``."""
        return component_folder(self.folder, name, self.base)

    @cached_property
    def load_plan(self) -> LoadPlan:
        """What becomes of the tensors in the files when they are loaded."""
        networks = {name: (config, self.component(name)) for name, config in self.configs.items()}
        in_files = {name: self._read_headers(name) for name in networks}
        return LoadPlan(networks, in_files, self._quantization)

    @property
    def stored(self) -> Mapping[str, Mapping[str, TensorInfo]]:
        """The tensors of each network by name, as they are loaded."""
        return self.load_plan.tensors

    @property
    def quantize(self) -> int | None:
        """Bits to which weights are quantized while they are read, or None."""
        return self.load_plan.bits

    @property
    def precision(self) -> str:
        """``"bfloat16"``, or ``"bfloat16, quantized to 4 bits"`` if that is done while reading."""
        bits = self.quantize
        return self.dtype_name if bits is None else f"{self.dtype_name}, quantized to {bits} bits"

    @property
    def loaded(self) -> frozenset[str]:
        """Names of the networks that are in memory."""
        return frozenset(self._networks)

    @property
    def adapters(self) -> list[tuple[Adapter, float]]:
        """The adapters that are used, with their scales."""
        return self.adapter_set.used

    @property
    def transformer(self) -> CogVideoXTransformer3DModel:
        """The transformer, with the adapters that were loaded."""
        return self._network("transformer")

    @property
    def vae(self) -> AutoencoderKLCogVideoX:
        return self._network("vae")

    @property
    def text_encoder(self) -> T5EncoderModel:
        return self._network("text_encoder")

    def _network(self, name: str) -> nn.Module:
        if name not in self._networks:
            network = NETWORKS[name][0](self.configs[name])
            self._networks[name] = load_component(
                network, self.component(name), self.dtype, self.load_plan.packings[name]
            )
            if name == "transformer":
                for adapter, scale in self.adapters:
                    add_adapter(network, adapter.load(scale), constant=True)
        return self._networks[name]

    def load_lora(self, source: str | Path, scale: float = 1.0, *, name: str | None = None) -> None:
        """Adds a LoRA, DoRA or LoKr adapter to the transformer, beside those that it already has.

        Args:
            source: a safetensors file of diffusers or PEFT, a folder with one, or a hub id.
            scale: weight of the adapter, which multiplies its own alpha / rank.
            name: what ``set_adapters`` calls it; None is ``default_0`` and so on.

        Raises:
            InvalidInputError: `source` isn't a path, `scale` isn't a finite number, or another
                adapter has the name.
            ModelNotFoundError: there is no such adapter.
            CheckpointError: the adapter is damaged, or for another model.
        """
        check_path("an adapter", source)
        check_scale(scale)
        name = self.adapter_set.new_name(name)
        network = CogVideoXTransformer3DModel(self.configs["transformer"])
        adapter = open_adapter(source, linear_layers(network), download=self.download)
        layers = adapter.load(scale)  # now, so that NaN is reported before any other work
        size = sum(array.nbytes for layer in layers.values() for array in layer.arrays())
        self.adapter_set.add(name, adapter, scale, size)
        if "transformer" in self._networks:
            add_adapter(self._networks["transformer"], layers, constant=True)

    def unload_lora(self) -> None:
        """Removes all adapters."""
        self.adapter_set = AdapterSet()
        self.reload_transformer()

    def reload_transformer(self) -> None:
        """Drops a loaded transformer, so that the next use has today's adapters."""
        # Even where it is kept: the loaded one contains them.
        self._networks.pop("transformer", None)
        mx.clear_cache()

    def weight_bytes(self, name: str) -> int:
        """Memory that a network's weights and its adapters take when it is loaded."""
        adapters = self.adapter_set.bytes if name == "transformer" else 0
        return super().weight_bytes(name) + adapters

    def free(self, name: str) -> None:
        """Frees a network's memory, unless it is kept; it loads again on its next use."""
        if name not in self._kept:
            self._networks.pop(name, None)
        mx.clear_cache()

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Keeps a network in memory over several stages and frees it at the end."""
        self._kept.add(name)
        try:
            yield
        finally:
            self._kept.discard(name)
            self.free(name)
