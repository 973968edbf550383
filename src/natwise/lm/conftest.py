"""Tests of this room train many tiny models with transformers, whose every run begins by collecting garbage."""

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage():
    """Leave out of every collection what has been imported by now: to look through it takes longer than to train."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
