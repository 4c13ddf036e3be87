"""Runs before any test imports MLX: exact float32 products, so that tolerances can be tight."""

import os

os.environ["MLX_ENABLE_TF32"] = "0"

import pytest
from support import write_spiece_model


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A checkpoint's tokenizer folder with a small spiece.model of T5's conventions."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_spiece_model(folder)
    return folder
