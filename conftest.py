"""Test-wide settings: one thread per worker, so that parallel tests do not fight for cores."""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pytest  # noqa: E402


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
