"""A model folder: its configurations, and its networks, which are loaded when they are needed."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import mlx.core as mx
import mlx.nn as nn

from ..device import Machine, this_machine
from ..errors import InvalidInputError
from ..nn.autoencoder import AutoencoderKLCogVideoX
from ..nn.backend import on_gpu
from ..nn.low_rank import add_adapter
from ..nn.quantization import linear_layers
from ..nn.t5 import T5EncoderModel
from ..nn.transformer import CogVideoXTransformer3DModel
from .adapters import Adapter, open_adapter
from .components import check_component, load_component, read_config
from .networks import NETWORKS
from .resolve import component_folder, resolve_model
from .tokenizer import T5Tokenizer
from .variants import match_variant


class ModelFolder:
    """A CogVideoX model folder.

    ``transformer``, ``vae`` and ``text_encoder`` load when first asked for, stay until they are
    freed, and load again when asked for again.

    Attributes:
        folder: the model folder.
        variant: the official variant that the transformer's configuration matches, or None.
        dtype: of the weights and activations.
        tokenizer: text to token ids.
        machine: what estimates of memory are for; this one unless it is set.
        memory_limit: bytes that a run may be foretold to need, by an estimate within some per cent;
            None is what there is.
        adapters: what ``load_lora`` has added, with its scales.
    """

    def __init__(self, folder: Path, dtype: mx.Dtype | None = None):
        self.folder = Path(folder)
        self.configs = {
            name: config_class.from_dict(read_config(self.component(name) / "config.json"))
            for name, (_, config_class) in NETWORKS.items()
        }
        self._networks: dict[str, nn.Module] = {}
        self.adapters: list[tuple[Adapter, float]] = []
        self._adapter_bytes = 0
        self.memory_limit: int | None = None
        self._kept: set[str] = set()
        self.variant = match_variant(self.configs["transformer"])
        self.tokenizer = T5Tokenizer.from_pretrained(self.component("tokenizer"))
        self.scheduler_config = read_config(self.component("scheduler") / "scheduler_config.json")
        self._stored = {
            name: check_component(network(self.configs[name]), self.component(name))
            for name, (network, _) in NETWORKS.items()
        }
        self.dtype = dtype or _default_dtype(self._stored["transformer"])
        self.machine: Machine = this_machine()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: mx.Dtype | None = None,
        *,
        revision: str | None = None,
        download: bool = True,
    ) -> Self:
        """Opens a model: its configurations and file headers; weights are read when needed.

        Args:
            model: a folder in the official layout, an alias (``demo``, ``2b``, ``5b``, ...) or a
                hub id.
            dtype: None follows the checkpoint, or is float32 on the CPU, where 16-bit is slow.
            revision: commit, branch or tag of a hub repository.
            download: False takes a hub repository only from the local cache.

        Raises:
            ModelNotFoundError: there is no such model.
            CheckpointError: files or tensors are missing, damaged, unexpected or mis-shaped.
        """
        return cls(resolve_model(model, revision, download=download), dtype)

    def component(self, name: str) -> Path:
        """Where a component lies: a network, ``tokenizer`` or ``scheduler``."""
        return component_folder(self.folder, name)

    @property
    def transformer(self) -> CogVideoXTransformer3DModel:
        """With the adapters that were loaded."""
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
            self._networks[name] = load_component(network, self.component(name), self.dtype)
            if name == "transformer":
                for adapter, scale in self.adapters:
                    add_adapter(network, adapter.load(scale))
        return self._networks[name]

    def load_lora(self, source: str | Path, scale: float = 1.0) -> None:
        """Adds a LoRA adapter to the transformer, beside those that it has.

        Args:
            source: a safetensors file of diffusers or PEFT, a folder with one, or a hub id.
            scale: weight of the adapter, on top of its own alpha / rank.

        Raises:
            InvalidInputError: `scale` is no finite number.
            ModelNotFoundError: there is no such adapter.
            CheckpointError: it is damaged, or for another model.
        """
        if not math.isfinite(scale):
            raise InvalidInputError(f"an adapter's scale must be a finite number; got {scale}")
        network = CogVideoXTransformer3DModel(self.configs["transformer"])
        adapter = open_adapter(source, linear_layers(network))
        layers = adapter.load(scale)  # now, so that NaN in it is told of before all else
        self.adapters.append((adapter, scale))
        self._adapter_bytes += sum(low.lora_A.nbytes + low.lora_B.nbytes for low in layers.values())
        if "transformer" in self._networks:
            add_adapter(self._networks["transformer"], layers)

    def unload_lora(self) -> None:
        """Takes all adapters off again."""
        self.adapters.clear()
        self._adapter_bytes = 0
        # Even one that is kept, which would have them still.
        self._networks.pop("transformer", None)
        mx.clear_cache()

    def weight_bytes(self, name: str) -> int:
        """Memory that a network's weights take when it is loaded, with its adapters."""
        integers = {"U32": 4, "U8": 1}
        stored = sum(
            tensor.size * integers.get(tensor.dtype, self.dtype.size)
            for tensor in self._stored[name].values()
        )
        return stored + self._adapter_bytes * (name == "transformer")

    def is_packed(self, name: str) -> bool:
        """Whether weights of a network are quantized."""
        return any(tensor.dtype == "U32" for tensor in self._stored[name].values())

    def free(self, name: str) -> None:
        """Lets go of a network's memory, unless it is kept; it loads again when it is asked for."""
        if name not in self._kept:
            self._networks.pop(name, None)
        mx.clear_cache()

    @contextmanager
    def keeping(self, name: str) -> Iterator[None]:
        """Holds a network in memory over several stages, and frees it in the end."""
        self._kept.add(name)
        try:
            yield
        finally:
            self._kept.discard(name)
            self.free(name)

    @property
    def takes_image(self) -> bool:
        """Whether it is an image-to-video model."""
        return self.configs["transformer"].takes_image

    @property
    def dtype_name(self) -> str:
        """``"float16"``, ``"bfloat16"`` or ``"float32"``."""
        return str(self.dtype).split(".")[-1]

    @property
    def fps(self) -> int:
        """Frames per second the model was trained at."""
        return self.variant.fps if self.variant else 8


def _default_dtype(stored: dict) -> mx.Dtype:
    if not on_gpu():
        return mx.float32
    floating = {"F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32}
    # The large tensors decide: some checkpoints keep a few small ones in float32.
    largest = max(
        (tensor for tensor in stored.values() if tensor.dtype in floating), key=lambda t: t.size
    )
    return floating[largest.dtype]
