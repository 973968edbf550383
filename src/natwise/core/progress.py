"""A progress bar on standard error for long work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Report: TypeAlias = Callable[[float, str], None]


@contextmanager
def progress(total: float | None, *, wanted: bool = True, done: int = 0) -> Iterator[Report]:
    """Yield ``report(done, text)``, which draws a bar when it is wanted and standard error is a terminal.

    Parameters
    ----------
    total : float or None
        What `done` is when the work is finished; None when that is not known.
    wanted : bool
        Draw nothing when false: a method's ``verbose``.
    done : int
        What was done before, as in a resumed run.

    Examples
    --------
    >>> with progress(10) as report:
    ...     for i in range(10):
    ...         report(i + 1, f"item {i}")
    """
    if not (wanted and sys.stderr.isatty()):
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda done, text: bar.update(task, completed=done, description=text)
