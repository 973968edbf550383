"""What `natwise audit` costs on large tables: minutes, CPU seconds and peak memory, and what it finds there.

    python benchmarks/audit.py [CASE ...]

Each case is a table that is made here, written as Parquet, and audited by the command in a process of its own. A column
in ten tells the class, 3 % of the labels are wrong, and the last group has a fifth of the rows of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from natwise.result import Result


class Case(NamedTuple):
    """Rows, columns, classes, and the minutes that the audit may take."""

    n_rows: int
    n_columns: int
    n_classes: int
    minutes: float


CASES = {
    "classes": Case(6_000, 30, 100, 2.5),
    "wide": Case(50_000, 500, 10, 10.0),
    "long": Case(1_000_000, 20, 5, 8.0),
}
NOISE = 0.03


def table(case: Case, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Return a table with the columns of features, ``site`` and ``label``, and which labels are wrong (n,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(case.n_classes, size=case.n_rows)
    telling = max(case.n_columns // 10, 10)
    X = rng.standard_normal((case.n_rows, case.n_columns), dtype=np.float32)
    X[:, :telling] += 2 * rng.standard_normal((case.n_classes, telling), dtype=np.float32)[y]
    wrong = rng.random(case.n_rows) < NOISE
    given = np.where(wrong, (y + rng.integers(1, case.n_classes, case.n_rows)) % case.n_classes, y)
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(case.n_columns)])
    frame["site"] = rng.choice(list("ABC"), case.n_rows, p=[5 / 11, 5 / 11, 1 / 11])
    return frame.assign(label=given), wrong


def measure(name: str, folder: Path) -> str:
    """Audit one case and return a line."""
    case = CASES[name]
    frame, wrong = table(case)
    frame.to_parquet(folder / "table.parquet")
    words = ["audit", "table.parquet", "--label", "label", "--group", "site", "--minutes", f"{case.minutes:g}"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "natwise", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    minutes, cpu = (time.perf_counter() - start) / 60, used.ru_utime + used.ru_stime
    if status:
        raise RuntimeError(f"the audit of {name} ended with status {status}")
    found = Result.load(folder / "audit" / "audit.safetensors")
    auroc = roc_auc_score(wrong, found.arrays["label_issues/label_issue_score"])
    low, high = (found.scalars[f"label_issues/estimated_noise_{end}"] for end in ("low", "high"))
    unanswered = [question for question, params in found.params.items() if "unanswered" in params]
    cells = (
        f"{case.n_rows:,} x {case.n_columns}, {case.n_classes} classes",
        f"{case.minutes:g}",
        f"{minutes:.1f}",
        f"{cpu:.0f}",
        f"{used.ru_maxrss / 1024**2:.1f}",
        f"{auroc:.4f}",
        f"{100 * wrong.mean():.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f} %",
        ", ".join(unanswered) or "none",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a row per case, each measured in a process of its own."""
    columns = ("table", "--minutes", "minutes", "CPU s", "GB", "AUROC", "wrong", "stated", "unanswered")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
