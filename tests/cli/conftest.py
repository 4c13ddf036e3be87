"""Fixtures of the tests that call ``lora.py``."""

from collections.abc import Callable
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


@pytest.fixture
def in_call(monkeypatch) -> Callable:
    """Returns a function that has an action happen at the n-th call of a method or function."""

    def patch(owner, name: str, number: int, action: Callable) -> None:
        whole, calls = getattr(owner, name), []

        def patched(*arguments, **options):
            calls.append(1)
            result = whole(*arguments, **options)
            return action(result) if len(calls) == number else result

        monkeypatch.setattr(owner, name, patched)

    return patch
