"""Reproduce is idempotent, goes on after SIGKILL, and says what it could not run."""

import dataclasses
import signal
import subprocess
import sys
import time

import pytest

from natwise import registry, reproduce
from natwise.result import Result

KEY, CLAIM = "structure.linear_corex", "modular-recovery"


@pytest.fixture
def claims():
    return reproduce.plan([KEY], claim=CLAIM)


def measure(claims, out, **options):
    measured = list(reproduce.measure(claims, out=out, raise_errors=True, **options))
    return measured, (out / KEY / f"{claims[0][1].id}.safetensors")


def test_a_claim_is_measured_and_kept(claims, tmp_path):
    (first,), path = measure(claims, tmp_path)
    assert first.verdict == reproduce.HOLDS
    assert {"scale", "seed", "seconds", "versions", "files", "inputs"} <= set(first.result.provenance)
    written = path.stat().st_mtime_ns
    (again,), _ = measure(claims, tmp_path)
    assert path.stat().st_mtime_ns == written
    assert again.result == first.result


@pytest.mark.parametrize("options", [{"seed": 1}, {"seed": 1, "resume": True}])
def test_another_question_is_measured_anew(claims, tmp_path, options):
    _, path = measure(claims, tmp_path)
    written = path.stat().st_mtime_ns
    measure(claims, tmp_path, **options)
    assert path.stat().st_mtime_ns != written


@pytest.mark.parametrize(("resume", "kept"), [(False, False), (True, True)])
def test_changed_code_is_measured_anew_unless_resuming(claims, tmp_path, resume, kept):
    (measured,), path = measure(claims, tmp_path)
    record = {**measured.result.provenance, "inputs": measured.result.provenance["inputs"][:-1] + "?"}
    dataclasses.replace(measured.result, provenance=record).save(path)
    written = path.stat().st_mtime_ns
    measure(claims, tmp_path, resume=resume)
    assert (path.stat().st_mtime_ns == written) is kept


def test_a_damaged_result_is_measured_anew(claims, tmp_path, capsys):
    _, path = measure(claims, tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    (measured,), _ = measure(claims, tmp_path)
    assert measured.verdict == reproduce.HOLDS
    assert "measured again" in capsys.readouterr().err
    Result.load(path)


def test_gallery_tells_what_was_missed_and_what_was_not_run(claims, tmp_path):
    (measured,), _ = measure(claims, tmp_path)
    card, claim = claims[0]
    impossible = dataclasses.replace(claim, expect="< -1")
    missed = dataclasses.replace(measured, claim=impossible, verdict=reproduce.MISSED)
    other = dataclasses.replace(claim, id="other")
    not_run = reproduce.Measurement(card, other, reproduce.NOT_RUN, reason="needs <a file> | here")
    assert [entry.verdict for entry in reproduce.write_gallery(tmp_path)] == ["holds"]
    assert f"| {KEY} | {CLAIM} |" in (tmp_path / "RESULTS.md").read_text("utf-8")
    shown = reproduce.write_gallery(tmp_path, [not_run])
    assert [entry.verdict for entry in shown] == ["holds", "not run"]
    tmp_path = tmp_path / "another"
    shown = reproduce.write_gallery(tmp_path, [missed, not_run])
    assert [entry.verdict for entry in shown] == ["missed", "not run"]
    table = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "needs <a file> \\| here" in table
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<svg" in page
    assert "needs &lt;a file&gt;" in page
    assert "<script" not in page
    assert "Claims: 2, of methods: 1. 1 missed, 1 not run." in page
    assert page.count("<article") == 1
    assert 'data-verdict="not run"' in page
    assert card.venue in page


def test_a_result_that_cannot_be_drawn_is_shown_without_its_picture(claims, tmp_path):
    (measured,), path = measure(claims, tmp_path)
    dataclasses.replace(measured.result, arrays={}).save(path)  # as an older study may have left it
    reproduce.write_gallery(tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "no picture: KeyError" in page
    assert "<svg" not in page


def test_a_missing_data_file_is_said(tmp_path):
    claims = [(card, claim) for card, claim in reproduce.plan([KEY], scale="small") if "big5" in claim.id]
    (first, *_) = reproduce.measure(claims, out=tmp_path / "runs", scale="small", data_dir=tmp_path)
    assert first.verdict == reproduce.NOT_RUN
    assert "big5_first1000.npz" in first.reason


def test_a_failing_study_does_not_stop_the_others(claims, tmp_path):
    card, claim = claims[0]
    broken = dataclasses.replace(claim, id="broken")
    verdicts = [m.verdict for m in reproduce.measure([(card, broken), (card, claim)], out=tmp_path)]
    assert verdicts == ["failed", "holds"]


def test_a_device_that_the_study_does_not_know_is_refused(claims, tmp_path):
    with pytest.raises(ValueError, match=f"device must be 'cpu' for {KEY}"):
        measure(claims * 2, tmp_path, device="cpu:0")


@pytest.mark.parametrize(
    ("expect", "good", "bad"),
    [
        (">= 0.95", 0.95, 0.9),
        ("<= 178.0", 178, 179),
        ("> 0", 1e-9, 0),
        ("< 1", 0, 1),
        ("1.286 +- 0.001", 1.2865, 1.288),
    ],
)
def test_expectations(claims, expect, good, bad):
    claim = dataclasses.replace(claims[0][1], expect=expect)
    assert claim.holds(good)
    assert not claim.holds(bad)
    assert not claim.holds(float("nan"))


def test_an_unreadable_expectation_is_refused(claims):
    with pytest.raises(ValueError, match="expect must be like"):
        dataclasses.replace(claims[0][1], expect="about 3").holds(3)


def test_kill_and_resume(tmp_path):
    """SIGKILL after the first result: the second run keeps it and finishes the rest."""
    key = "generalization.samplewise_limits"  # its claims take a second each
    ids = [claim.id for claim in registry.card(key).claims if "ci" in claim.scale]
    command = [sys.executable, "-m", "natwise", "reproduce", key, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / key / f"{ids[0]}.safetensors"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = first.read_bytes()
    subprocess.run([*command, "--resume"], stdout=subprocess.DEVNULL, check=False)
    assert first.read_bytes() == kept
    table = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert all(claim in table for claim in ids)
