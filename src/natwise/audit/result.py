"""`run` audits a table; `AuditResult` holds the answers and writes the report."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from natwise.audit.context import Context, Deadline, one_thread
from natwise.audit.gates import Gate, judge
from natwise.audit.network import linearise
from natwise.audit.own_model import own_factory, try_model
from natwise.audit.plan import answers, combine
from natwise.core.io import write_text
from natwise.core.random import RandomState, Streams
from natwise.core.validation import check_integer, check_real
from natwise.datasets.encoding import encode
from natwise.datasets.tables import Table, make_table
from natwise.result import Result, provenance

RESERVED_SECONDS = 3.0  # for start-up before, and writing the report after
SAFETY = 0.85
CSV_COLUMNS = {  # in audit.csv: question, array; labels are written by name
    "label": ("label_issues", "label"),
    "label_issue_score": ("label_issues", "label_issue_score"),
    "planted": ("label_issues", "planted"),
    "functional_information": ("sample_information", "functional_information"),
    "weight_information": ("sample_information", "weight_information"),
    "redundancy_rank": ("sample_information", "redundancy_rank"),
    "suggested_label": ("label_issues", "suggested_label"),
    "given_label_probability": ("label_issues", "given_label_probability"),
    "wrong_probability": ("label_issues", "wrong_probability"),
}
NUMERIC = {"label": "target", "suggested_label": "suggested_value"}  # arrays of regression that take these columns


@dataclass(frozen=True, eq=False)
class AuditResult:
    """The answers of an audit.

    Parameters
    ----------
    answers : tuple of Result
        One per question, in the order in which the reader should act on them.
    combined : Result
        The same in one result, with provenance: what ``audit.safetensors`` holds.
    """

    answers: tuple[Result, ...]
    combined: Result

    @property
    def summary(self) -> tuple[str, ...]:
        """At most five plain sentences."""
        from natwise.report import audit_page

        return audit_page.summary(self.answers)

    def to_frame(self) -> pd.DataFrame:
        """Return a row per sample, in the order of the file: what ``audit.csv`` holds."""
        columns: dict[str, Any] = {"id": list(self.combined.rows)}
        by_name = {answer.kind.removeprefix("audit/"): answer for answer in self.answers}
        for column, (question, array) in CSV_COLUMNS.items():
            answer = by_name[question]
            array = NUMERIC.get(array, array) if NUMERIC.get(array) in answer.arrays else array
            if array not in answer.arrays:
                continue
            values = answer.arrays[array]
            if column in ("label", "suggested_label") and array in ("label", "suggested_label"):
                values = np.array(answer.params["classes"], dtype=object)[values]
            columns[column] = values.astype(int) if values.dtype == bool else values
        return pd.DataFrame(columns)

    def label_issues(self) -> pd.DataFrame:
        """Return `to_frame` sorted by ``label_issue_score``, the most suspicious rows first."""
        return self.to_frame().sort_values("label_issue_score", ascending=False, kind="stable", ignore_index=True)

    def html(self) -> str:
        """Return the report as one self-contained page."""
        from natwise.report import audit_page

        return audit_page.html(self.answers, self.combined)

    def gates(self, conditions: Sequence[str]) -> list[Gate]:
        """Judge conditions such as ``"label_noise_low > 0.05"``; see `natwise.audit.gates`."""
        return judge(conditions, self.combined)

    def save(self, out_dir: str | os.PathLike[str]) -> None:
        """Write ``report.html``, ``audit.csv`` and ``audit.safetensors`` into a folder, each whole or not at all."""
        from natwise.report import spreadsheet

        folder = Path(out_dir)
        page, table = self.html(), spreadsheet.csv_text(self.to_frame())  # what can fail, fails before the first file
        self.combined.save(folder / "audit.safetensors")
        write_text(folder / "audit.csv", table)
        write_text(folder / "report.html", page)


def run(
    X: Table | Any,
    y: Any = None,
    *,
    group: Any = None,
    ids: Any = None,
    time: Any = None,
    task: str = "auto",
    target: float | None = None,
    model: Any = None,
    minutes: float = 10.0,
    random_state: RandomState = 0,
    verbose: int = 1,
) -> AuditResult:
    """Audit a labelled data set.

    Parameters
    ----------
    X : DataFrame, array of shape (n, p), images of shape (n, h, w[, c]), or Table
        Features, or all in one: a table from `natwise.datasets.tables.load_table` (files, folders of images),
        `natwise.datasets.tables.make_table` (texts, a test set) or `natwise.datasets.bundled.demo`.
    y : array-like of shape (n,), optional
        The labels, when `X` holds features: classes of any type, or numbers to be predicted.
    group, ids, time : array-like of shape (n,), optional
        Site, name and date of each row.
    task : {"auto", "classification", "regression"}
        What the labels are; auto takes many different numbers for regression.
    target : float, optional
        The accuracy (for regression the R²) aimed for, between 0 and 1.
    model : estimator, callable or str, optional
        Your own model: with ``fit`` and ``predict_proba`` (regression: ``predict``), a callable without arguments that
        returns one, or the name ``"package:factory"`` of one. It gets numbers, scaled, categories as 0/1, no gaps.
    minutes : float
        Time to stay within; when it is short, models see fewer rows and checks are fewer, and the report says so.
    random_state : int, Generator or None
        The same seed gives the same answers, as long as the time does not bind.
    verbose : int
        0 says nothing; else a line on stderr comes before long work of known cost, and a progress bar on a terminal.

    Raises
    ------
    ValueError, TypeError
        One line naming what is wrong with the table or an argument.

    Examples
    --------
    >>> import natwise.audit
    >>> from natwise.datasets import bundled
    >>> result = natwise.audit.run(bundled.demo(), minutes=0.3)  # doctest: +SKIP
    >>> result.label_issues().head()  # doctest: +SKIP
    """
    minutes = check_real("minutes", minutes, minimum=0.0, exclusive=True)
    verbose = check_integer("verbose", verbose, minimum=0)
    if target is not None:
        target = check_real("target", target, minimum=0.0, maximum=1.0, exclusive=True)
    table = _as_table(X, y, group=group, ids=ids, time=time, task=task)
    deadline = Deadline(60 * minutes * SAFETY - table.seconds - RESERVED_SECONDS)
    streams = Streams.of(random_state)
    seed = random_state if isinstance(random_state, int) else None
    with provenance(seed=seed, data={"labels": table.labels}) as record:
        context = _prepare(table, model, target, streams, deadline)
        if verbose:
            context = replace(context, announce=functools.partial(print, file=sys.stderr, flush=True))
        record["fingerprint"] = f"{context.row_hashes.sum():016x}"
        with one_thread():
            answered = tuple(answers(context, deadline, progress=bool(verbose)))
    record |= {"minutes": minutes, "arguments": list(table.arguments), "table": table.name, "target": target}
    record["model"] = None if context.own is None else context.own[0]
    return AuditResult(answered, combine(answered, table.ids, record))


def _as_table(X: Any, y: Any, *, task: str, **columns: Any) -> Table:
    if isinstance(X, Table) != (y is None):
        raise TypeError("run takes a Table alone, or features and labels (X, y)")
    if not isinstance(X, Table):
        return make_table(X, y, task=task, **columns)
    given = [name for name, value in columns.items() if value is not None] + ["task"] * (task != "auto")
    if given:
        raise TypeError(f"{' and '.join(given)} must be given when the Table is made, not with it")
    return X


def _prepare(table: Table, model: Any, target: float | None, streams: Streams, deadline: Deadline) -> Context:
    """Encode the table, try the user's model, and linearise the network."""
    encoded = encode(table.features, is_image=table.image_shape is not None)
    context = Context(table, encoded, streams.child("audit"), target)
    if model is not None:
        own = own_factory(model, context.n_classes)
        try_model(own[1], encoded.X, context.labels, context.n_classes)
        context = replace(context, own=own)
    return replace(context, network=linearise(table, encoded.X, streams.child("network"), deadline))
