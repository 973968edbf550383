"""Re-measure the claims on the cards: run each method's study, keep the results, render the gallery.

A result is rebuilt only when its inputs change: the claim, the scale, the seed, the device, the code of the method
and of the core, the versions of the numerical packages, or the data files that the study read. Results are written
one by one, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from natwise import _source, registry
from natwise.core.io import check_folder, write_text
from natwise.core.validation import check_integer, check_option, suggest
from natwise.datasets import local
from natwise.registry import Card, Claim
from natwise.result import Result

HOLDS, MISSED, NOT_RUN, FAILED = "holds", "missed", "not run", "failed"


@dataclass(frozen=True)
class Measurement:
    """One claim and what our study found: a verdict, and a result or the reason why there is none."""

    card: Card
    claim: Claim
    verdict: str
    result: Result | None = None
    reason: str = ""

    @property
    def value(self) -> float:
        """The measured metric, NaN without a result."""
        return self.result.scalars[self.claim.metric] if self.result is not None else float("nan")

    def __str__(self) -> str:
        name = f"{self.card.key}/{self.claim.id}"
        if self.result is None:
            return f"{self.verdict:8} {name}: {self.reason}"
        seconds = self.result.provenance["seconds"]
        return f"{self.verdict:8} {name}: {self.claim.metric} = {self.value:.6g} ({self.claim.expect}), {seconds:.1f} s"


def plan(keys: Iterable[str] | None = None, *, claim: str | None = None, scale: str = "ci") -> list[tuple[Card, Claim]]:
    """Return the claims to measure.

    Parameters
    ----------
    keys : iterable of str, optional
        Methods as `room.method`. Default: every method.
    claim : str, optional
        Only the claim of this id.
    scale : {"ci", "small", "paper"}
        Only claims that can be run at this scale.

    Raises
    ------
    ValueError
        If a key, the claim or the scale is unknown, or nothing is left to run.
    """
    check_option("scale", scale, registry.SCALES)
    cards = registry.cards() if keys is None else [registry.card(key) for key in keys]
    claims = [(card, entry) for card in cards for entry in card.claims]
    if claim is not None:
        ids = [entry.id for _, entry in claims]
        if claim not in ids:
            raise ValueError(f"there is no claim {claim!r}; there are: {', '.join(ids)}.{suggest(claim, ids)}")
        claims = [(card, entry) for card, entry in claims if entry.id == claim]
    chosen = [(card, entry) for card, entry in claims if scale in entry.scale]
    if not chosen:
        scales = sorted({s for _, entry in claims for s in entry.scale}, key=registry.SCALES.index)
        raise ValueError(f"nothing to reproduce at scale {scale!r}; the claims run at: {', '.join(scales) or 'none'}")
    return chosen


def measure(
    claims: Iterable[tuple[Card, Claim]],
    *,
    out: str | os.PathLike[str] = "runs",
    scale: str = "ci",
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    raise_errors: bool = False,
) -> Iterator[Measurement]:
    """Measure claims one after another and yield each as it is done.

    A result goes to `out/<room.method>/<claim>.safetensors`.

    Parameters
    ----------
    claims : iterable of (Card, Claim)
        From `plan`.
    out : path
        The folder of the gallery.
    scale, seed, device
        Passed to the studies.
    resume : bool
        Keep every finished result of this scale, seed and device even when the code has changed since.
    data_dir : path, optional
        Folder of local data. Default: ``$NATWISE_DATA``.
    raise_errors : bool
        Let an error in a study pass instead of recording the claim as failed.

    Raises
    ------
    ValueError
        If `seed` is negative, this machine lacks `device`, or a study does not run there.
    OSError
        If `out` cannot be written into.
    """
    check_integer("seed", seed, minimum=0)
    check_folder(out)
    claims = list(claims)
    if device != "cpu":
        for card, _ in claims:
            study(card).STUDY.check_device(device)
    for card, claim in claims:
        path = Path(out) / card.key / f"{claim.id}.safetensors"
        inputs = _inputs(card, claim, scale=scale, seed=seed, device=device)
        result = _kept(path, inputs, resume=resume, data_dir=data_dir)
        if result is not None:
            yield Measurement(card, claim, _verdict(claim, result), result)
            continue
        try:
            result = _run(card, claim, scale=scale, seed=seed, device=device, data_dir=data_dir, inputs=inputs)
            measurement = Measurement(card, claim, _verdict(claim, result), result)
        except (local.DataNotFoundError, ImportError) as error:
            extras = f" (pip install 'natwise[{','.join(card.extras)}]')" if card.extras else ""
            hint = extras if isinstance(error, ImportError) else ""
            measurement = Measurement(card, claim, NOT_RUN, reason=f"{error}{hint}")
        except Exception as error:  # one failing study must not take the others with it
            if raise_errors:
                raise
            measurement = Measurement(card, claim, FAILED, reason=f"{type(error).__name__}: {error}")
        if measurement.result is not None:
            measurement.result.save(path)
        yield measurement


def collect(out: str | os.PathLike[str]) -> list[Measurement]:
    """Return the measurements whose results lie in the folder `out`, in the order of the cards."""
    found = []
    for card in registry.cards():
        for claim in card.claims:
            path = Path(out) / card.key / f"{claim.id}.safetensors"
            if path.is_file():
                result = Result.load(path)
                found.append(Measurement(card, claim, _verdict(claim, result), result))
    return found


def write_table(out: str | os.PathLike[str], measurements: Iterable[Measurement] = ()) -> list[Measurement]:
    """Write `RESULTS.md`, a row per claim, for all results in `out`.

    `measurements` of this run are added where no result lies in the folder (a study that failed or lacked data), so
    that nothing goes unsaid. Returns what was written, in order.
    """
    from natwise.report import gallery

    shown = {(m.card.key, m.claim.id): m for m in collect(out)}
    for measurement in measurements:
        shown.setdefault((measurement.card.key, measurement.claim.id), measurement)
    order = {card.key: position for position, card in enumerate(registry.cards())}
    ordered = sorted(shown.values(), key=lambda m: order[m.card.key])
    write_text(Path(out) / "RESULTS.md", gallery.markdown([_entry(measurement) for measurement in ordered]))
    return ordered


def write_gallery(out: str | os.PathLike[str], measurements: Iterable[Measurement] = ()) -> list[Measurement]:
    """Write `RESULTS.md` and, with a picture of every claim, `index.html`. Arguments and result as `write_table`."""
    from natwise.report import gallery

    ordered = write_table(out, measurements)
    entries = [{**_entry(measurement), **_figure(measurement)} for measurement in ordered]
    write_text(Path(out) / "index.html", gallery.html(entries))
    return ordered


def study(card: Card) -> ModuleType:
    """Import and return the study of a method."""
    return importlib.import_module(f"natwise.{card.key}.study")


def _run(
    card: Card,
    claim: Claim,
    *,
    scale: str,
    seed: int,
    device: str,
    data_dir: str | os.PathLike[str] | None,
    inputs: str,
) -> Result:
    """Run a study and add to the result's provenance what `_kept` needs to recognise it."""
    start = time.perf_counter()
    with local.recording() as files:
        result = study(card).run(claim.id, scale=scale, seed=seed, data_dir=data_dir, device=device)
    record = {
        **result.provenance,
        "seconds": round(time.perf_counter() - start, 3),
        "scale": scale,
        "seed": seed,
        "device": device,
        "inputs": inputs,
        "files": files,
    }
    return dataclasses.replace(result, provenance=record)


def _verdict(claim: Claim, result: Result) -> str:
    return HOLDS if claim.holds(result.scalars[claim.metric]) else MISSED


def _kept(path: Path, inputs: str, *, resume: bool, data_dir: str | os.PathLike[str] | None) -> Result | None:
    """Return the result in `path` when it is still the answer to the same question."""
    if not path.is_file():
        return None
    try:
        result = Result.load(path)
    except ValueError as error:
        print(f"{error}; it is measured again", file=sys.stderr)
        return None
    question, _, code = inputs.partition("|")
    known_question, _, known_code = str(result.provenance.get("inputs")).partition("|")
    if question != known_question or (code != known_code and not resume):
        return None
    unchanged = all(_unchanged(name, digest, data_dir) for name, digest in result.provenance["files"].items())
    return result if unchanged else None


def _unchanged(name: str, digest: str, data_dir: str | os.PathLike[str] | None) -> bool:
    try:
        return local.digest(local.find(name, data_dir)) == digest
    except local.DataNotFoundError:
        return True  # the file that was measured is not here to contradict the result


def _inputs(card: Card, claim: Claim, *, scale: str, seed: int, device: str) -> str:
    """Return `question|code`: digests of what was asked and of the code that answers."""
    question = json.dumps([card.key, claim.id, claim.metric, scale, seed, device])
    return f"{hashlib.sha256(question.encode()).hexdigest()}|{_code_digest(card)}"


def _code_digest(card: Card) -> str:
    """Digest what a measurement depends on: the packages' versions, the method, what its room shares, and the core."""
    root = Path(registry.__file__).parent
    digest = hashlib.sha256(json.dumps(_source.versions()).encode())
    room = card.folder.parent
    folders = [card.folder, root / "core", root / "datasets"]
    shared = [*room.glob("*.py"), root / "study.py"]
    for path in sorted([*shared, *(path for folder in folders for path in folder.rglob("*.py"))]):
        if not path.name.startswith("test_"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _entry(measurement: Measurement) -> dict[str, object]:
    """Return one measurement as the plain values that the gallery shows."""
    card, claim, result = measurement.card, measurement.claim, measurement.result
    record = result.provenance if result is not None else {}
    commit = str(record.get("commit") or "")[:10]
    return {
        "key": card.key,
        "title": card.title,
        "summary": card.summary,
        "paper": dict(card.paper),
        "venue": card.venue,
        "claim": claim.id,
        "source": claim.source,
        "published": claim.published,
        "expect": claim.expect,
        "metric": claim.metric,
        "measured": f"{measurement.value:.6g}" if result is not None else "",
        "verdict": measurement.verdict,
        "reason": measurement.reason,
        "scale": record.get("scale", ""),
        "seed": record.get("seed", ""),
        "seconds": f"{record['seconds']:.1f}" if result is not None else "",
        "commit": f"{commit}{' (changed)' if record.get('dirty') else ''}" if commit else "",
        "machine": f"{record.get('machine', '')}, {record.get('device', '')}" if result is not None else "",
        "scalars": dict(result.scalars) if result is not None else {},
        "warnings": list(result.warnings) if result is not None else [],
    }


def _figure(measurement: Measurement) -> dict[str, object]:
    """Return the picture of one measurement; a result that an older study left may not hold what it draws."""
    from natwise.report import gallery

    result = measurement.result
    if result is None:
        return {"figure": ""}
    try:
        return {"figure": gallery.svg(study(measurement.card).figure(measurement.claim.id, result))}
    except Exception as error:  # one picture must not take the others with it
        reason = f"no picture: {type(error).__name__}: {error}; measure again"
        return {"figure": "", "warnings": [*result.warnings, reason]}
