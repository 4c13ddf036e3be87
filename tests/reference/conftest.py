"""Tiny model folders, each made once."""

import pytest
from torch_reference import save_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Returns a function that gives the model folder of a variant."""
    made = {}

    def get(variant):
        if variant not in made:
            made[variant] = save_model(tmp_path_factory.mktemp(variant), variant)
        return made[variant]

    return get
