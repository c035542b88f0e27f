"""Fixtures of the flow's tests."""

import jax
import pytest

from tests.flow.pipelines import LOG


@pytest.fixture
def log():
    """What the toys saw during this test."""
    LOG.traces, LOG.timesteps = 0, []
    return LOG


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
