"""Labels of every kind that is taken, and of every kind that is refused."""

import datetime

import numpy as np
import pandas as pd
import pytest
import torch

from natwise.core.labels import check_labels, check_same_kind
from natwise.testing import check_bad_input

LABELS = np.array([0, 1, 1, 2])
TEXT = np.array(["a", "b", "b", "c"])
NUMBERS = (
    LABELS.tolist(),
    LABELS.astype("u1"),
    LABELS * 1.0,
    LABELS.astype(object),
    torch.tensor(LABELS),
    torch.tensor(LABELS * 1.0, requires_grad=True),
    pd.array(LABELS, dtype="Int64"),
    pd.Series(LABELS),
)
TEXTS = (TEXT.tolist(), TEXT.astype("S"), TEXT.astype(object), pd.Series(TEXT, dtype="string"), pd.Categorical(TEXT))


@pytest.mark.parametrize(("value", "kinds"), [*((v, "iuf") for v in NUMBERS), *((v, "US") for v in TEXTS)])
def test_labels_of_every_container(value, kinds):
    found = check_labels("y", value)
    assert found.dtype.kind in kinds
    assert np.unique(found, return_inverse=True)[1].tolist() == LABELS.tolist()


def test_refused_labels():
    day = datetime.date(2020, 1, 1)
    cases = [
        (LABELS + 0j, TypeError, "complex128"),
        (LABELS.astype("datetime64[D]"), TypeError, "datetime64"),
        ([day] * 4, TypeError, "of type date"),
        (pd.Series([day] * 4).astype("datetime64[s]"), TypeError, "datetime64"),
        (np.array([np.timedelta64(1, "s")] * 4, dtype=object), TypeError, "timedelta64"),
        (np.zeros(4, dtype=[("a", int)]), TypeError, "dtype"),
        ([{}] * 4, TypeError, "of type dict"),
        ([2**70, 1, 1, 0], TypeError, "object"),
        (np.array([True, 1, 1, 0], dtype=object), TypeError, "of type bool, int"),
        (np.array(["a", 1, 1, 0], dtype=object), TypeError, "of type int, str"),
        (torch.tensor(LABELS).to(torch.bfloat16), TypeError, "bfloat16"),
        (torch.tensor(LABELS).to_sparse(), TypeError, "sparse"),
        ("0112", ValueError, "got shape ()"),
        (LABELS[:, None], ValueError, "got shape (4, 1)"),
        ([[0], [1, 2]], ValueError, "regular"),
        ([], ValueError, "empty"),
        (LABELS[1:], ValueError, "4 entries, one per row, got 3"),
        (LABELS / 2, ValueError, "not continuous"),
        (np.array([0, np.nan, 1, 1]), ValueError, "missing"),
        (["a", None, "b", "b"], ValueError, "missing"),
        (pd.array([0, None, 1, 1], dtype="Int64"), ValueError, "no masked values"),
        (np.array(["a", np.nan, "b", "b"], dtype=object), ValueError, "missing"),
        (np.ma.masked_equal(LABELS, 1), ValueError, "no masked values"),
    ]
    check_bad_input(lambda y: check_labels("y", y, 4), [({"y": v}, kind, text) for v, kind, text in cases])
    with pytest.raises(TypeError, match="domain must hold integers or text, got dtype bool"):
        check_labels("domain", [True, False], kinds="iuUS")
    for labels in (TEXT, TEXT.astype("S")):
        with pytest.raises(TypeError, match="labels like those of y"):
            check_same_kind("y_pred", labels, "y", LABELS)
