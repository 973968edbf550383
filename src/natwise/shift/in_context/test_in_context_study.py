"""The study, with trainings of a few steps: every claim gives its metric and a figure; the data of the claims."""

import numpy as np
import pytest

from natwise import registry
from natwise.shift.in_context import study
from natwise.testing import check_result

CARD = registry.card("shift.in_context")
FILES = {"digitbirds": study.DIGITBIRDS, "omniglot": study.OMNIGLOT}


@pytest.fixture
def short(monkeypatch):
    """Shorten every training and test, and forget its results afterwards."""
    monkeypatch.setattr(study, "N_TEST_TASKS", 20)
    for scale, model in list(study.MODELS.items()):
        quick = {"n_layer": 1, "d_model": 8, "n_head": 2, "n_steps": 2, "batch_size": 4, "mixed_precision": "no"}
        monkeypatch.setitem(study.MODELS, scale, {**model, **quick})
    yield
    for measure in (study._synthetic, study._single, study._embeddings):
        measure.cache_clear()


@pytest.mark.parametrize("claim", CARD.claims, ids=[claim.id for claim in CARD.claims])
def test_every_claim_is_measured(claim, short, local_data):
    for name, file in FILES.items():
        if claim.id.startswith(name):
            local_data(file)
    result = study.run(claim.id, scale=claim.scale[0], seed=0)
    assert 0 <= abs(result.scalars[claim.metric]) <= 1
    assert {f"{method}_accuracy" for method in study.METHODS} <= set(result.scalars)
    assert all(np.isfinite(losses).all() for losses in result.arrays.values())
    check_result(result)
    axes = study.figure(claim.id, result).axes
    assert len(axes) == 2
    assert all(part.get_xlabel() and part.get_ylabel() for part in axes)


def test_refuses_what_cannot_be_run():
    for options, message in (
        ({"claim": "nothing", "scale": "ci"}, "claim must be one of"),
        ({"claim": "synthetic-flip", "scale": "large"}, "scale must be one of 'ci', 'small', 'paper'"),
    ):
        with pytest.raises(ValueError, match=message):
            study.run(**options, seed=0)


def test_missing_data_are_named(tmp_path):
    for claim, file in (("digitbirds-remedy", study.DIGITBIRDS), ("omniglot-pairs", study.OMNIGLOT)):
        with pytest.raises(FileNotFoundError, match=file):
            study.run(claim, scale="small", seed=0, data_dir=tmp_path)
