"""Files of every kind become the same table; files that are no table are refused in one line."""

import gzip

import numpy as np
import pandas as pd
import pytest

from natwise.datasets import bundled
from natwise.datasets.tables import load_table, make_table

N = 60
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(RNG.normal(size=(N, 3)).round(3), columns=["a", "b", "c"])
FRAME["y"] = np.where(FRAME.a > 0, "u", "v")
NOISE = bytes(RNG.integers(0, 256, 3000, dtype=np.uint8))


def write(path, frame=FRAME, **options):
    frame.to_csv(path, index=False, **options)
    return path


def compress(path):
    path.write_bytes(gzip.compress(FRAME.to_csv(index=False).encode()))
    return path


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


SAME = {
    "t.csv": write,
    "bom.csv": lambda path: write(path, encoding="utf-8-sig"),
    "utf16.csv": lambda path: write(path, encoding="utf-16"),
    "semicolon.csv": lambda path: write(path, sep=";", decimal=","),
    "t.tsv": lambda path: write(path, sep="\t"),
    "pipe.txt": lambda path: write(path, sep="|"),
    "t.csv.gz": compress,
    "nul.csv": lambda path: path.write_bytes(FRAME.to_csv(index=False).replace("u\n", "u\0\n").encode()) and path,
    "t.parquet": lambda path: FRAME.to_parquet(path) or path,
    "t.npz": lambda path: archive(
        path, X=FRAME[["a", "b", "c"]].to_numpy(), y=FRAME.y.to_numpy(str), feature_names=np.array(["a", "b", "c"])
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_table(tmp_path, name):
    table = load_table(SAME[name](tmp_path / name), "y")
    expected = make_table(FRAME[["a", "b", "c"]], FRAME.y)
    np.testing.assert_allclose(table.features.to_numpy(float), expected.features.to_numpy())
    assert list(table.features.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(table.labels, expected.labels)
    assert table.classes == ("u", "v")
    assert table.ids == tuple(range(N))


CONTENT = {  # what is refused: file name, bytes, words of the message
    "empty": ("t.csv", b"", "empty"),
    "ragged": ("t.csv", b"a,b,y\n" + b"1,2,u\n" * 20 + b"1,2,3,4,v\n", "no readable table"),
    "open quote": ("t.csv", b'a,b,y\n"1,2,u\n' + b"1,2,v\n" * 30, "no readable table"),
    "label twice": ("t.csv", b"a,y,y\n" + b"1,u,v\n" * 30, "more than once"),
    "no zip": ("t.npz", NOISE, "no readable .npz"),
    "no parquet": ("t.parquet", NOISE, "no readable Parquet"),
    "cut gzip": ("t.csv.gz", gzip.compress(NOISE)[:100], "no readable gzip"),
    "spreadsheet": ("t.xlsx", NOISE, "must end in"),
}


@pytest.mark.parametrize("case", CONTENT)
def test_damaged_files_are_refused_in_one_line(tmp_path, case):
    name, content, words = CONTENT[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as raised:
        load_table(path, "y")
    assert name in str(raised.value)


TARGETS = {
    "one class": (["u"] * N, "one class only"),
    "a class per row": ([f"k{i}" for i in range(N)], "nearly a class per row"),
    "whole numbers that name rows": (np.arange(N), "is this an id column"),
    "free text": (["M" * 10**6, "v"] * (N // 2), "1,000,000 characters"),
    "no label at all": ([np.nan] * N, "at least 20 rows"),
}


@pytest.mark.parametrize("case", TARGETS)
def test_labels_that_cannot_be_audited(case):
    labels, words = TARGETS[case]
    with pytest.raises(ValueError, match=words):
        make_table(FRAME[["a", "b"]], labels)


@pytest.mark.parametrize(
    ("X", "y", "error", "words"),
    [
        (FRAME[["a"]][:15], FRAME.y[:15], ValueError, "at least 20 rows"),
        (FRAME[[]], FRAME.y, ValueError, "no features"),
        (FRAME[["a"]], FRAME.y[:30], ValueError, "same length"),
        (np.zeros(N), FRAME.y, ValueError, "shape"),
        (np.zeros((N, 2)), np.zeros((N, 2)), ValueError, "y must have shape"),
        (np.zeros((N, 2), dtype=complex), FRAME.y, TypeError, "complex"),
        ({"a": FRAME.a}, FRAME.y, TypeError, "X must be a data frame or a dense array, got dict"),
    ],
)
def test_bad_arrays(X, y, error, words):
    with pytest.raises(error, match=words):
        make_table(X, y)


def test_missing_files_and_columns(tmp_path):
    path = write(tmp_path / "t.csv", FRAME.rename(columns={"y": "outcome"}))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.csv"):
        load_table(tmp_path / "nothing.csv", "y")
    with pytest.raises(ValueError, match="Did you mean 'outcome'"):
        load_table(path, "outcom")
    with pytest.raises(ValueError, match="Did you mean 'outcome'"):
        load_table(path, "OUTCOME ")
    with pytest.raises(ValueError, match="not used: 'labels'"):
        load_table(archive(tmp_path / "t.npz", X=VECTORS, labels=np.arange(N)), "y")
    with pytest.raises(ValueError, match="no column 'site' for the group"):
        load_table(path, "outcome", group="site")
    with pytest.raises(ValueError, match="lacks 1 columns"):
        load_table(path, "outcome", test=write(tmp_path / "test.csv", FRAME[["a", "b", "y"]]))


def test_roles_notes_and_ids(tmp_path):
    frame = FRAME.assign(site=np.where(FRAME.b > 0, "north", "south"), name=[f"00{i}" for i in range(N)])
    frame.loc[3, "y"] = None
    table = load_table(write(tmp_path / "t.csv", frame), "y", group="site", id="name", test=tmp_path / "t.csv")
    assert list(table.features.columns) == ["a", "b", "c"]
    assert table.ids[2:4] == ("002", "004")
    assert "Rows without a label were left out: 1." in table.notes
    assert set(table.group) == {"north", "south"}
    assert table.arguments[1:] == ("--label", "y", "--group", "site", "--id", "name", "--test", table.arguments[0])
    assert len(table.test) == N


def test_hostile_text_is_kept_readable_and_harmless():
    names = ["<script>", "a\x00b", "a\x00b", "x" * 10**6]
    labels = np.where(FRAME.a > 0, "evil \u202egnp", "\ud800")
    table = make_table(FRAME.set_axis(names, axis=1), labels)
    columns = list(table.features.columns)
    assert columns[:3] == ["<script>", "a\ufffdb", "a\ufffdb (2)"]
    assert len(columns[3]) == 200
    assert set(table.classes) == {"?", "evil \ufffdgnp"}


def test_number_labels_are_sorted_as_numbers():
    assert make_table(FRAME[["a"]], np.arange(N) % 12).classes == tuple(map(str, range(12)))
    assert make_table(FRAME[["a"]], np.where(FRAME.a > 0, 1.0, 2.0)).classes == ("1", "2")


def test_number_labels_with_decimal_commas(tmp_path):
    frame = FRAME.assign(price=np.arange(N) + 0.5)
    table = load_table(write(tmp_path / "t.csv", frame, sep=";", decimal=","), "price")
    np.testing.assert_array_equal(table.target, frame.price)


def test_images_are_remembered():
    table = make_table(np.zeros((N, 4, 5, 3)), FRAME.y)
    assert table.image_shape == (4, 5, 3)
    assert table.features.shape == (N, 60)


def test_demo_plants_a_tenth():
    table = bundled.demo(random_state=3)
    again = bundled.demo(random_state=3)
    clean = bundled.demo(random_state=3, noise=0.0)
    assert len(table) == 1797
    assert table.image_shape == (8, 8)
    assert table.planted.sum() == 180
    np.testing.assert_array_equal(table.labels, again.labels)
    np.testing.assert_array_equal(table.labels != clean.labels, table.planted)
    assert not np.array_equal(table.labels, bundled.demo(random_state=4).labels)


VECTORS = RNG.normal(size=(N, 5)).astype(np.float32)


def test_given_vectors_replace_the_columns_and_texts_stand_beside(tmp_path):
    path = write(tmp_path / "t.csv", FRAME.assign(says=[f"text {i}" for i in range(N)]))
    np.save(tmp_path / "v.npy", VECTORS)
    table = load_table(path, "y", text="says", vectors=tmp_path / "v.npy")
    np.testing.assert_array_equal(table.features.to_numpy(), VECTORS)
    assert table.texts[3] == "text 3"
    assert table.arguments[1:5] == ("--label", "y", "--text", "says")
    same = load_table(path, "y", vectors=archive(tmp_path / "v.npz", X=VECTORS))
    np.testing.assert_array_equal(same.features.to_numpy(), VECTORS)


def test_vectors_in_a_parquet_column_are_features(tmp_path):
    frame = FRAME.assign(embedding=list(VECTORS), ragged=[np.ones(1 + i % 2) for i in range(N)])
    frame.to_parquet(tmp_path / "t.parquet")
    table = load_table(tmp_path / "t.parquet", "y")
    assert list(table.features.columns)[3:8] == [f"embedding_{i}" for i in range(5)]
    np.testing.assert_array_equal(table.features.iloc[:, 3:8].to_numpy(np.float32), VECTORS)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [(VECTORS[:9], "9 vectors, but .* 60 rows"), (VECTORS[:, 0], "shape"), (np.full((N, 2), "a"), "numbers of shape")],
)
def test_vectors_that_do_not_fit(tmp_path, vectors, words):
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(ValueError, match=words):
        load_table(write(tmp_path / "t.csv"), "y", vectors=tmp_path / "v.npy")


def test_vectors_are_not_unpickled_and_exclude_a_test_file(tmp_path):
    path = write(tmp_path / "t.csv")
    np.save(tmp_path / "v.npy", np.array([{}] * N), allow_pickle=True)
    with pytest.raises(ValueError, match=r"no readable \.npy"):
        load_table(path, "y", vectors=tmp_path / "v.npy")
    with pytest.raises(ValueError, match="cannot be given together"):
        load_table(path, "y", vectors=tmp_path / "v.npy", test=path)
    with pytest.raises(ValueError, match="--label is needed"):
        load_table(path)
    with pytest.raises(ValueError, match="task must be one of"):
        load_table(path, "y", task="ranking")
