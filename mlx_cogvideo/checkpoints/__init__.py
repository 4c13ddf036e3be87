"""Models on disk and on the hub: folders in the official layout, adapters, SAT files."""

from .adapters import Adapter, holds_adapter, open_adapter, save_adapter
from .component_files import COMPONENT_STEMS
from .components import check_component, load_component, save_component
from .identity import model_identity
from .json_files import read_config, write_config
from .resolve import (
    BUNDLED,
    DEMO_PATH,
    SHARED_KEY,
    component_folder,
    default_model,
    download_bytes,
    hub_cache,
    hub_id,
    resolve_configuration,
    resolve_model,
    resolve_text_encoder,
)
from .tensor_files import read_header, save_arrays

__all__ = [
    "BUNDLED",
    "COMPONENT_STEMS",
    "DEMO_PATH",
    "SHARED_KEY",
    "Adapter",
    "check_component",
    "component_folder",
    "default_model",
    "download_bytes",
    "holds_adapter",
    "hub_cache",
    "hub_id",
    "load_component",
    "model_identity",
    "open_adapter",
    "read_config",
    "read_header",
    "resolve_configuration",
    "resolve_model",
    "resolve_text_encoder",
    "save_adapter",
    "save_arrays",
    "save_component",
    "write_config",
]
