"""The clinical benchmark's speed, side by side with plain loops in one run; prints ratios.

``--demo TABLES`` measures the stages on the tables of the open demo. ``--scale 1250 2500 5000`` builds synthetic
tables of so many patients, each in a process of its own, prints rows per second and memory, and continues the line
to the 330 million rows of MIMIC-III.
"""

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl

from natwise.datasets import mimic3
from natwise.datasets.clinical import write_mimic3_tables
from natwise.timeseries import Discretizer, MimicBenchmark, WindowFeatures, bootstrap_ci, read_series
from natwise.timeseries.mimic._series import read_table
from natwise.timeseries.mimic.study import build_cost

sys.path.insert(0, str(Path(__file__).parent))
import naive_mimic as naive

FULL_ROWS = 330_000_000


def build(tables):
    """Return events, CPU seconds and peak megabytes of a build in a fresh process, interpreter and imports included."""
    with tempfile.TemporaryDirectory() as out:
        seconds, megabytes = build_cost(tables, Path(out))
        events = json.loads((Path(out) / "counters.json").read_text("utf-8"))["validate_events"]["n_events"]
    return events, seconds, megabytes


def cpu_seconds(function, repeats=3):
    """Return the least CPU time of a call, and what it gave."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        value = function()
        times.append(time.process_time() - begin)
    return min(times), value


def in_memory(n_patients):
    """Print the ratios of discretiser, features and bootstrap."""
    with tempfile.TemporaryDirectory() as folder:
        write_mimic3_tables(f"{folder}/tables", n_patients, seed=1, unmapped=0.0)
        MimicBenchmark(f"{folder}/tables").build(f"{folder}/out", ["phenotyping"], export=False)
        table = pl.read_parquet(f"{folder}/out/timeseries/part-0000.parquet").filter(pl.col("Hours") > -1e-6)
        ends = pl.read_parquet(f"{folder}/out/episodes.parquet").select("ICUSTAY_ID", END=24.0 * pl.col("LOS"))
    table = table.join(ends, on="ICUSTAY_ID", maintain_order="left").filter(pl.col("Hours") <= pl.col("END") + 1e-6)
    stays = [group for _, group in table.group_by("ICUSTAY_ID", maintain_order=True)]
    rows = [stay.drop("SUBJECT_ID", "EPISODE", "ICUSTAY_ID", "END") for stay in stays]
    rows = [stay.with_columns(pl.all().cast(pl.String).fill_null("")).rows() for stay in rows]
    ends = [stay["END"][0] for stay in stays]
    pairs = list(zip(rows, ends, strict=True))
    name = f"discretiser, {len(stays)} stays"
    compare(name, lambda: [naive.discretize(*p) for p in pairs], lambda: Discretizer().transform_many(table, ends))
    frames = [read_frame(stay) for stay in rows]
    compare(
        "of these, as pandas frames one by one",
        lambda: [naive.discretize(*p) for p in pairs],
        lambda: [Discretizer().transform(*p) for p in zip(frames, ends, strict=True)],
    )
    compare("features", lambda: np.array([naive.features(r) for r in rows]), lambda: WindowFeatures().transform(table))
    series = read_table(table)
    seconds, _ = cpu_seconds(lambda: Discretizer().discretize(series, ends))
    print(f"  of these, our discretiser without reading the texts: {1e3 * seconds:.1f} ms")
    rng = np.random.default_rng(0)
    y, score = (rng.random(50_000) < 0.1).astype(int), rng.random(50_000)
    slow, _ = cpu_seconds(lambda: naive.bootstrap(y, score, 10, rng), 1)
    fast, _ = cpu_seconds(lambda: bootstrap_ci(y, score, n_resamples=200, random_state=0), 1)
    print(f"bootstrap of the AUROC, n=50,000: loop {100 * slow:.1f} ms, natwise {5 * fast:.2f} ms per resample, "
          f"{20 * slow / fast:.0f}x")  # fmt: skip


def read_frame(rows):
    """Return the frame that `read_series` gives for a stay: columns of numbers, and of texts where one is no number."""
    names = ["Hours", *(variable.name for variable in mimic3.variables())]
    text = io.StringIO()
    pl.DataFrame(rows, schema=names, orient="row").write_csv(text)
    text.seek(0)
    return read_series(text)


def compare(name, slow, fast):
    """Print the CPU times of two functions, their ratio and the largest difference of what they return."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's skewness of constant values
        slow_seconds, expected = cpu_seconds(slow, 1)
    fast_seconds, found = cpu_seconds(fast)
    difference = np.nanmax(np.abs(np.concatenate(list(expected)) - np.concatenate(list(found))))
    print(f"{name}: loop {1e3 * slow_seconds:.0f} ms, natwise {1e3 * fast_seconds:.1f} ms, "
          f"{slow_seconds / fast_seconds:.0f}x, largest difference {difference:.1e}")  # fmt: skip


def scale(sizes):
    """Print what builds of several sizes cost, and the line through them at the size of MIMIC-III."""
    measured = []
    for n_patients in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_mimic3_tables(folder, n_patients, seed=0)
            begin = time.perf_counter()
            events, seconds, megabytes = build(folder)
            wall = time.perf_counter() - begin
        measured.append((events, seconds, megabytes))
        print(f"{n_patients} patients: {events:,.0f} events, {seconds:.1f} CPU s ({wall:.1f} s), "
              f"{events / seconds:,.0f} events per CPU s, peak {megabytes:.0f} MB", flush=True)  # fmt: skip
    events, seconds, _ = np.array(measured).T
    slope, offset = np.polyfit(events, seconds, 1)
    print(f"continued to {FULL_ROWS:,} rows: {(offset + slope * FULL_ROWS) / 60:.0f} CPU minutes")


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="TABLES")
    parser.add_argument("--scale", type=int, nargs="+", metavar="PATIENTS")
    parser.add_argument("--patients", type=int, default=100)
    arguments = parser.parse_args()
    if arguments.demo:
        events, seconds, megabytes = min((build(arguments.demo) for _ in range(3)), key=lambda cost: cost[1])
        print(f"demo: {events:,.0f} events in {seconds:.2f} CPU s, peak {megabytes:.0f} MB; "
              f"the published code takes 21.7 CPU s for all 100 patients")  # fmt: skip
    elif arguments.scale:
        scale(arguments.scale)
    else:
        in_memory(arguments.patients)


if __name__ == "__main__":
    main()
