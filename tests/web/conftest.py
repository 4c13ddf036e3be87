"""Servers for the tests of the API, which need the packages of the extra ``ui``."""

import pytest


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A server whose jobs wait, for the tests of a module."""
    from api_server import serving

    with serving(tmp_path_factory.mktemp("idle"), most_queued=10_000) as client:
        yield client


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server that carries its jobs out."""
    from api_server import serving

    with serving(tmp_path_factory.mktemp("busy"), work=True) as client:
        yield client
