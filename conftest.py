"""Test-wide settings: one thread per worker, so that parallel tests do not fight for cores, and little garbage."""

import gc
import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def imports_are_no_garbage():
    """Leave what has been imported by now out of every collection, with which accelerate begins every training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def local_data():
    """Return a function that finds a file under $NATWISE_DATA, or skips naming it."""
    from natwise.datasets import local

    def find(name):
        try:
            return local.find(name)
        except local.DataNotFoundError as error:
            pytest.skip(str(error))

    return find
