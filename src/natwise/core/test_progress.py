import contextlib
import os

import pytest

from natwise.core.progress import progress


@pytest.mark.parametrize("total", [3, None])
@pytest.mark.parametrize("wanted", [True, False])
def test_drawn_only_when_wanted_and_on_a_terminal(total, wanted, capsys):
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal, contextlib.redirect_stderr(terminal):
        _work(total, wanted)
    drawn = b""
    with contextlib.suppress(OSError):  # raised when everything was read, since the other end is closed
        while chunk := os.read(master, 100_000):
            drawn += chunk
    os.close(master)
    assert (b"item 2" in drawn) == wanted
    _work(total, wanted)
    assert capsys.readouterr() == ("", "")


def _work(total, wanted):
    with progress(total, wanted=wanted) as report:
        for i in range(3):
            report(i + 1, f"item {i}")
