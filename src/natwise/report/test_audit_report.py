"""What a spreadsheet or a browser would run is defused; pictures are deterministic and described."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from natwise.report import spreadsheet, svg


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@SUM(A1)", "\tx", "\rx", "  =1", "＝1", "\n=1"])
def test_formulas_get_an_apostrophe(text):
    assert spreadsheet.defuse(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-1", "+1.5", "-1e-5", ".5", "plain", "a=b", "", "-0"])
def test_numbers_and_plain_text_stay(text):
    assert spreadsheet.defuse(text) == text


def test_csv_round_trip():
    frame = pd.DataFrame({"id": ["a,b", 'say "hi"', "two\nlines"], "score": [0.123456789, 1e-12, -3.0], "n": [1, 2, 3]})
    import io

    read = pd.read_csv(io.StringIO(spreadsheet.csv_text(frame)))
    assert list(read["id"]) == list(frame["id"])
    np.testing.assert_allclose(read["score"], frame["score"], rtol=1e-5)


def figure():
    made = Figure(figsize=(2, 1))
    axes = made.add_subplot()
    axes.plot([0, 1], [0, 1], color=svg.INK)
    axes.set_title("a < b $x^{ 漢字 --> </svg>")
    return made


def test_svg_is_deterministic_described_and_inert():
    text = svg.inline(figure(), 'a "rising" <line>')
    assert text == svg.inline(figure(), 'a "rising" <line>')
    assert text.startswith("<svg")
    assert 'role="img" aria-label="a &quot;rising&quot; &lt;line&gt;"' in text
    assert "currentColor" in text
    assert svg.INK not in text
    assert text.count("</svg>") == 1
    assert "a &lt; b" in text
