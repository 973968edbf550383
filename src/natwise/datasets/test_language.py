import numpy as np
import pytest
import torch

from natwise.datasets import language, local

STREAM = np.arange(50, dtype=np.uint8)


def test_windows_are_consecutive():
    cut = language.windows(STREAM, 8)
    assert cut.shape == (6, 8)
    assert cut.dtype == torch.int64
    np.testing.assert_array_equal(cut.flatten(), STREAM[:48])


def test_draws_are_windows_of_the_stream_and_repeat():
    draw = language.draw_windows(STREAM, 8)
    first, second = (draw(1000, np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert (first.diff(dim=1) == 1).all()
    assert set(first[:, 0].tolist()) == set(range(43))


def test_corpus_is_cut_in_order(tmp_path):
    text = "To be, or not to be: that is the question. " * 10
    (tmp_path / "play.txt").write_bytes(text.encode())
    corpus = language.load_corpus("play.txt", tmp_path, validation_fraction=0.25)
    assert bytes(corpus.train) + bytes(corpus.validation) == text.encode()
    assert len(corpus.validation) == round(len(text) * 0.25)
    with pytest.raises(local.DataNotFoundError, match=r"other\.txt"):
        language.load_corpus("other.txt", tmp_path)


@pytest.mark.parametrize("length", [0, 51])
def test_length_must_fit(length):
    with pytest.raises(ValueError, match="length"):
        language.windows(STREAM, length)
