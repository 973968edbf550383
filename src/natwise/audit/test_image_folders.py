"""Folders of images become tables: one size, the sub-folder for a label, damaged files counted and left out."""

import numpy as np
import pytest
from PIL import Image

from natwise.audit.context import Context
from natwise.core.random import Streams
from natwise.datasets import images
from natwise.datasets.encoding import encode
from natwise.datasets.tables import load_table

RNG = np.random.default_rng(0)


def paint(folder, n=12, size=(20, 10), mode="RGB"):
    for name in ("cat", "dog"):
        (folder / name / "deeper").mkdir(parents=True)
        for i in range(n):
            pixels = RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            ending = ("png", "JPG", "bmp")[i % 3]
            Image.fromarray(pixels).convert(mode).save(folder / name / ("deeper" if i % 2 else "") / f"{i}.{ending}")
    return folder


def test_a_folder_is_a_table(tmp_path):
    folder = paint(tmp_path / "pets")
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a class")
    table = load_table(folder)
    assert table.name == "pets"
    assert table.classes == ("cat", "dog")
    assert len(table) == 24
    assert table.image_shape == (10, 20, 3)
    assert table.ids[0] == "cat/0.png"
    assert any("left out: 1, such as 'cat/broken.png'" in note for note in table.notes)
    assert table.arguments == (str(folder),)
    thumbnails = Context(table, encode(table.features, is_image=True), Streams(0)).thumbnails(np.array([0, 3]))
    assert thumbnails.shape == (2, 40, 80, 3)
    (folder / "cat" / "0.png").unlink()  # gone since: black instead of an error
    assert Context(table, encode(table.features, is_image=True), Streams(0)).thumbnails(np.array([0])).max() == 0


def test_sizes_and_colours_are_brought_together(tmp_path):
    folder = paint(tmp_path / "grey", size=(64, 128), mode="L")
    Image.new("L", (30, 30), 200).save(folder / "cat" / "odd.png")
    read = images.read_image_folder(folder)
    assert read.pixels.shape[1:] in {(32, 16), (32, 20), (32, 19)}
    assert read.pixels.dtype == np.uint8
    assert images.read_image_folder(folder, shape=(4, 5, 3)).pixels.shape == (25, 4, 5, 3)


def test_a_test_folder_is_checked_for_overlap(tmp_path):
    folder = paint(tmp_path / "train")
    other = paint(tmp_path / "test", n=3)
    copied = other / "dog" / "copy.png"
    copied.write_bytes((folder / "dog" / "0.png").read_bytes())
    table = load_table(folder, test=other)
    from natwise.audit.context import Deadline
    from natwise.audit.questions import data_card

    card = data_card.answer(Context(table, encode(table.features, is_image=True), Streams(0)), Deadline(5))
    assert card.scalars["test_overlap"] == 1
    assert card.scalars["test_rows"] == 7


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        load_table(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="no readable image"):
        load_table(tmp_path)
    with pytest.raises(ValueError, match="leave out --label and --group"):
        load_table(tmp_path, "y", group="site")
