"""The synthetic tables that the tests share, and what is built from them."""

import pytest


@pytest.fixture(scope="session")
def tables(tmp_path_factory):
    """Sixty synthetic patients with every irregularity: those on which the published code was run."""
    from natwise.datasets.clinical import write_mimic3_tables

    folder = tmp_path_factory.mktemp("tables")
    write_mimic3_tables(folder, 60, seed=1)
    return folder


@pytest.fixture(scope="session")
def built(tables, tmp_path_factory):
    """The folder of a complete build, and its result."""
    pytest.importorskip("polars")
    from natwise.timeseries import MimicBenchmark

    out = tmp_path_factory.mktemp("built")
    return out, MimicBenchmark.from_csv(tables).build(out)
