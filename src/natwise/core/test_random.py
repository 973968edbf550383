import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from natwise.core.random import Streams, global_generators_kept
from natwise.testing import check_bad_input, same_bits, unchanged

NAMES = st.text(max_size=5) | st.integers()


@given(st.integers(0, 2**70), NAMES, NAMES)
def test_streams_depend_on_seed_and_name_only(seed, name, other):
    streams = Streams(seed)
    first = streams.numpy(name).random(4)
    assert same_bits(first, Streams(seed).numpy(name).random(4))
    assert same_bits(streams.torch(name).initial_seed(), streams.seed(name))
    different = [streams.numpy(other), streams.child(name).numpy(name), Streams(seed + 1).numpy(name)]
    for generator in different[name == other :]:
        assert not same_bits(first, generator.random(4))


def test_the_same_in_another_process():
    code = "from natwise.core.random import Streams; print(Streams(5).child('fold').seed('init'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert int(printed) == Streams(5).child("fold").seed("init")


def test_every_kind_of_random_state():
    assert Streams(np.int64(3)).entropy == Streams(3).entropy == (3,)
    assert Streams(None).entropy != Streams(None).entropy
    for make in (np.random.default_rng, np.random.RandomState):
        generator = make(0)
        first, second = Streams(generator), Streams(generator)
        assert first.entropy == Streams(make(0)).entropy != second.entropy
    streams = Streams(0)
    assert Streams.of(streams) is streams
    assert streams.seed(np.int64(4)) == streams.seed(4) != streams.seed("4")


def test_streams_are_independent():
    draws = np.array([Streams(0).numpy(i).standard_normal(200) for i in range(100)])
    correlations = np.corrcoef(draws)[np.triu_indices(100, 1)]
    assert abs(correlations.mean()) < 0.005
    assert correlations.std() == pytest.approx(200**-0.5, rel=0.05)


def test_global_generators_are_put_back():
    with unchanged():
        with Streams(0).torch_global("init"):
            first = torch.nn.Linear(3, 3).weight
        torch_draw = Streams(0).torch("init")
        with Streams(0).torch_global("init"):
            second = torch.nn.Linear(3, 3).weight
        assert torch_draw.initial_seed() == Streams(0).seed("init")
    assert same_bits(first, second)


def test_bad_input():
    cases = [
        ({"random_state": -1}, ValueError, "random_state must be >= 0, got -1"),
        ({"random_state": 1.0}, TypeError, "random_state must be an int, a numpy Generator"),
        ({"random_state": True}, TypeError, "got True (bool)"),
        ({"random_state": np.timedelta64(3)}, TypeError, "timedelta64"),
        ({"random_state": "seed"}, TypeError, "got 'seed' (str)"),
    ]
    check_bad_input(Streams, cases)


def test_code_that_seeds_everything_leaves_no_trace():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    with global_generators_kept():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
