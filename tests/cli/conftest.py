"""Fixtures of the tests that call ``lora.py``."""

from pathlib import Path

import pytest
from trainings import make_data


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder of three clips, which the tests of a file encode once."""
    return make_data(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def adapter(tmp_path) -> Path:
    """A folder for an adapter, which isn't there yet."""
    return tmp_path / "adapter"
