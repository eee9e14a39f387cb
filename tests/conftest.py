"""Shared fixtures."""

import random

import pytest

from pairformer.data import DATA_VARIABLE, data_folder


@pytest.fixture
def rng():
    return random.Random(2020)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Directory of a small model with random weights."""
    import torch

    from pairformer.config import AggregatorConfig, CheapConfig, ExpensiveConfig, ModelConfig, SelectorConfig
    from pairformer.models import PairFormer

    torch.manual_seed(2020)
    config = ModelConfig(
        ExpensiveConfig(channels=(8, 8, 8), se_reduction=2, pooled_length=4),
        CheapConfig(channels=(8, 8), width=32, hidden=8),
        SelectorConfig(k_max=16),
        AggregatorConfig(width=16, layers=2, hidden=16),
        logit_scale=0.5,
    )
    directory = tmp_path_factory.mktemp("model")
    PairFormer(config).save(directory)
    return directory


@pytest.fixture(scope="session")
def data():
    """The folder of real data, which is not part of the repository."""
    try:
        return data_folder()
    except FileNotFoundError:
        pytest.skip(f"{DATA_VARIABLE} names no folder of data")
