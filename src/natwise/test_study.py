"""The frame of every study."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from natwise.study import Found, Setting, Study, mean_interval


def _mean(setting):
    values = setting.streams.numpy("values").random(5)
    return Found({"values": values}, {"mean": values.mean()}, {"n": 5}, warnings=["few values"])


STUDY = Study("demo.mean", {"mean": _mean, "nothing": lambda setting: Found()})


def test_a_claim_is_measured_and_signed():
    result = STUDY.run("mean", scale="ci", seed=3)
    assert result.kind == "demo.mean/mean"
    assert result.params == {"scale": "ci", "n": 5}
    assert result.scalars["mean"] == result.arrays["values"].mean()
    assert list(result.warnings) == ["few values"]
    assert (result.provenance["seed"], result.provenance["device"]) == (3, "cpu")
    assert np.array_equal(STUDY.run("mean", scale="small", seed=3).arrays["values"], result.arrays["values"])
    assert not np.array_equal(STUDY.run("mean", scale="ci", seed=4).arrays["values"], result.arrays["values"])
    assert not STUDY.run("nothing", scale="ci", seed=0).arrays


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"claim": "median"}, ValueError, "claim must be one of .*'median'"),
        ({"scale": "paper"}, ValueError, "scale must be one of .*'paper'"),
        ({"seed": -1}, ValueError, "seed .*-1"),
        ({"seed": 0.5}, TypeError, "seed must be an integer"),
        ({"data_dir": 3}, TypeError, "data_dir must be a path, got 3"),
        ({"device": "abacus"}, ValueError, "device must be like 'cpu'.*'abacus'"),
        ({"device": "cpu:0"}, ValueError, "device must be 'cpu' for demo.mean, got 'cpu:0'"),
    ],
)
def test_bad_calls(change, error, words):
    arguments = {"claim": "mean", "scale": "ci", "seed": 0, **change}
    with pytest.raises(error, match=words):
        STUDY.run(arguments.pop("claim"), **arguments)


def test_networks_may_be_elsewhere(tmp_path):
    seen = []
    study = dataclasses.replace(STUDY, measurements={"mean": lambda setting: seen.append(setting) or Found()}, gpu=True)
    study.run("mean", scale="ci", seed=0, data_dir=tmp_path, device="cpu:0")
    assert seen == [Setting("ci", 0, str(tmp_path), "cpu:0")]


def test_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0])
    mean, half = mean_interval(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-12)
