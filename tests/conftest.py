"""Shared fixtures."""

import random

import pytest

from pairformer.data import DATA_VARIABLE, data_folder


@pytest.fixture
def rng():
    return random.Random(2020)


@pytest.fixture(scope="session")
def data():
    """The folder of real data, which is not part of the repository."""
    try:
        return data_folder()
    except FileNotFoundError:
        pytest.skip(f"{DATA_VARIABLE} names no folder of data")
