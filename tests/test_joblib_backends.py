"""Many trainings on other machines: joblib's backends Dask and Ray give the bits of one process.

Neither is a dependency: `pip install "dask[distributed]" ray` to run these tests.
"""

import os
import warnings
from contextlib import contextmanager

import joblib
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from natwise.generalization import run_supersample_experiment
from natwise.samples import measure_learning_curve
from natwise.testing import same_bits


@contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        yield


@contextmanager
def ray():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.util.joblib").register_ray()
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with joblib.parallel_config("ray"):
            yield
    finally:
        ray.shutdown()


@contextmanager
def processes():
    with joblib.parallel_config("loky"):
        yield


def results(n_jobs):
    """Return all numbers of a supersample experiment and a learning curve."""
    X, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=300)
    bounds = run_supersample_experiment(model, X, y, 20, n_splits=4, n_jobs=n_jobs)
    curve = measure_learning_curve(model, X, y, sizes=[20, 40, 80], random_state=0, n_jobs=n_jobs)
    return dict(bounds.arrays), dict(bounds.scalars), dict(curve.arrays)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [processes, dask, ray])
def test_same_bits_as_one_process(backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs: of ports in use and arguments they do not know
        with backend():
            assert same_bits(results(n_jobs=2), results(n_jobs=1))
