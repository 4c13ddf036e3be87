"""Runs before any test imports MLX: exact float32 products, so that tolerances can be tight."""

import os
from pathlib import Path
from secrets import token_hex

os.environ["MLX_ENABLE_TF32"] = "0"
# Tests run in parallel: with more threads each, they would mostly wait for each other. Workers
# start after this and inherit it.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")

import mlx.core as mx
import pytest
from fast_blas import BLAS
from support import write_spiece_model

TESTS = Path(__file__).parent
SLOW = ("web", "cli/test_fresh_process.py", "cli/test_tune.py", "test_together.py")
"""Tests that start many processes: they run with --slow, or if they are named."""


def pytest_addoption(parser) -> None:
    words = "run the slow tests as well (also), or no others (only)"
    parser.addoption("--slow", choices=["also", "only"], help=words)


def pytest_collection_modifyitems(config, items) -> None:
    slow, wanted = config.getoption("--slow"), [Path(each).resolve() for each in config.args]
    if slow == "also" or (slow is None and wanted not in ([], [TESTS])):
        return
    left_out = [item for item in items if is_slow(item) != (slow == "only")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if is_slow(item) == (slow == "only")]


def is_slow(item) -> bool:
    return any(item.path.is_relative_to(TESTS / each) for each in SLOW)


def pytest_report_header() -> str:
    return BLAS


@pytest.fixture(autouse=True)
def compilation():
    """Switches compilation on again after a test whose settings switched it off."""
    yield
    mx.enable_compile()


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory, monkeypatch):
    """Keeps what a check measures and what a tuning finds out of the user's folders.

    The latter changes what a preset means, so that each test has a folder of its own.
    """
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(base / "data" / token_hex(8)))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """Makes a checkpoint's tokenizer folder with a small spiece.model of T5's conventions."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_spiece_model(folder)
    return folder
