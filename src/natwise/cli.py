"""The command line: parse, call, print. Data goes to stdout, progress and errors to stderr.

Exit codes: 0 fine; 1 a claim missed its tolerance, or a gate of an audit failed; 2 bad input. Errors
are one line; `--debug` shows the traceback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from natwise.lm.mixture_of_recursions._command import serve_bench
from natwise.lm.relaxed_recursive._command import uptrain
from natwise.timeseries.mimic._command import app as mimic

INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__base__  # typer does not export it by name

app = typer.Typer(
    name="natwise",
    help="What does a model learn from its data? Audits a labelled data set; re-measures published methods.",
    epilog="--debug, anywhere, shows the traceback of an error.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(mimic, name="mimic")
lm = typer.Typer(help="Language models: smaller by recursion, and serving them.", rich_markup_mode=None)
lm.command()(uptrain)
lm.command("serve-bench")(serve_bench)
app.add_typer(lm, name="lm", no_args_is_help=True)


@app.command()
def audit(
    data: Annotated[
        Path | None,
        typer.Argument(help="A CSV, Parquet or NPZ file, or a folder with images per class.", show_default=False),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column with the labels.")] = None,
    group: Annotated[str | None, typer.Option(help="A column with the site or group of each row.")] = None,
    id: Annotated[str | None, typer.Option(help="A column with the name of each row.")] = None,
    time: Annotated[str | None, typer.Option(help="A column with the date of each row.")] = None,
    text: Annotated[str | None, typer.Option(help="A column to show beside suspicious rows; not a feature.")] = None,
    vectors: Annotated[Path | None, typer.Option(help="A .npy file (n, p): features instead of the columns.")] = None,
    test: Annotated[Path | None, typer.Option(help="A second file, checked for overlap with the first.")] = None,
    task: Annotated[str, typer.Option(help="auto, classification or regression (the label is a number).")] = "auto",
    target: Annotated[float | None, typer.Option(help="The accuracy (or R²) to aim for, such as 0.95.")] = None,
    model: Annotated[str | None, typer.Option(help="Your own model, as package:factory.")] = None,
    minutes: Annotated[
        float, typer.Option(help="Time to stay within, such as 0.7; below ten seconds it takes what it must.")
    ] = 10.0,
    fail_on: Annotated[
        list[str] | None, typer.Option(help="Exit with 1 when this holds, such as label_noise_low>0.05; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for report.html, audit.csv and audit.safetensors.")] = Path(
        "audit"
    ),
    seed: Annotated[int, typer.Option(help="The same seed gives the same audit.")] = 0,
    demo: Annotated[bool, typer.Option("--demo", help="Audit digits with 10 % planted wrong labels.")] = False,
) -> None:
    """Say what is wrong with a labelled data set: one report, one table."""
    from natwise import audit as audits
    from natwise.audit.gates import check_conditions
    from natwise.core.io import check_folder
    from natwise.datasets import bundled, tables

    if demo == (data is not None):
        raise ValueError("give either a data file with --label, or --demo")
    check_folder(out)
    check_conditions(fail_on or [])
    if data is None:
        table = bundled.demo(random_state=seed)
    else:
        table = tables.load_table(
            data, label, group=group, id=id, time=time, text=text, vectors=vectors, test=test, task=task
        )
    answer = audits.run(table, minutes=minutes, random_state=seed, target=target, model=model)
    answer.save(out)
    for line in answer.summary:
        print(line)
    print(f"report: {out / 'report.html'}")
    gates = answer.gates(fail_on or [])
    for gate in gates:
        print(gate)
    raise typer.Exit(int(any(gate.failed for gate in gates)))


@app.command()
def reproduce(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(help="A method, as room.method.", show_default=False)] = None,
    all_methods: Annotated[bool, typer.Option("--all", help="Every method.")] = False,
    claim: Annotated[str | None, typer.Option(help="Only this claim.")] = None,
    scale: Annotated[str, typer.Option(help="ci (a minute), small (ten minutes) or paper (a GPU).")] = "ci",
    seed: Annotated[int, typer.Option(help="The seed of every study.")] = 0,
    device: Annotated[str, typer.Option(help="Where to run: cpu, or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Keep finished results though the code changed.")] = False,
    out: Annotated[Path, typer.Option(help="The folder of the gallery.")] = Path("runs"),
) -> None:
    """Re-measure the claims of a method's paper and write the gallery."""
    from natwise import reproduce as reproduction
    from natwise.core.progress import progress

    if all_methods == (key is not None):
        raise ValueError("give either a method as room.method, or --all")
    claims = reproduction.plan(None if all_methods else [str(key)], claim=claim, scale=scale)
    measured = []
    runs = reproduction.measure(
        claims, out=out, scale=scale, seed=seed, device=device, resume=resume, raise_errors=context.obj
    )
    try:
        with progress(len(claims)) as report:
            report(0, "measuring")
            for measurement in runs:
                print(measurement, flush=True)
                measured.append(measurement)
                reproduction.write_table(out, measured)
                report(len(measured), measurement.claim.id)
    finally:
        if measured:
            reproduction.write_gallery(out, measured)
    print(f"gallery: {out / 'index.html'}")
    verdicts = {measurement.verdict for measurement in measured}
    if verdicts == {reproduction.NOT_RUN}:
        raise ValueError("no claim could be run; see the reasons above")
    raise typer.Exit(int(bool(verdicts & {reproduction.MISSED, reproduction.FAILED})))


@app.command("list")
def list_methods(
    room: Annotated[str | None, typer.Option(help="Only the methods of this room.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list of objects.")] = False,
) -> None:
    """List the methods and their state."""
    from natwise import registry

    if room is not None:
        from natwise.core.validation import check_option  # imports numpy: only when needed

        check_option("--room", room, registry.ROOMS)
    cards = [card for card in registry.cards() if room in (None, card.room)]
    if as_json:
        print(json.dumps([card.to_dict() for card in cards], indent=2, ensure_ascii=False))
        return
    width = max(len(card.key) for card in cards)
    for card in cards:
        print(f"{card.key:{width}}  {card.state:7}  {card.summary}")


@app.command()
def show(
    key: Annotated[str, typer.Argument(help="A method, as room.method.")],
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Only the paper's BibTeX entry.")] = False,
) -> None:
    """Show one method: what it answers, its paper, its public names and its claims."""
    from natwise import registry

    card = registry.card(key)
    if bibtex:
        print(card.paper["bibtex"].strip())
        return
    print(f"{card.title} ({card.key}, {card.state})\n{card.summary}\n")
    print(_citation(card.paper))
    print(f"\nfrom natwise.{card.room} import {', '.join(card.exports)}")
    for claim in card.claims:
        print(f"\n{claim.id}: {claim.metric} {claim.expect}")
        print(f"  {claim.source}; published: {claim.published}; scales: {', '.join(claim.scale)}")
    print(f"\npage: {card.folder / 'page.md'}")


def main() -> None:
    """Run the command line and exit with its code; every error is one line on stderr."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments or ["--help"], prog_name="natwise", standalone_mode=False, obj=debug)
    except (_UsageError, ValueError, TypeError, OSError) as error:
        if debug:
            raise
        text = error.format_message() if isinstance(error, _UsageError) else str(error)
        print(f"natwise: {' '.join(text.split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns an interrupt within a command into this code
        print("natwise: interrupted; finished results are kept", file=sys.stderr)
    sys.exit(code)


def _citation(paper: Any) -> str:
    authors = ", ".join(paper.get("authors", []))
    parts = [authors, paper.get("title"), paper.get("year")]
    if paper.get("arxiv"):
        parts.append(f"arXiv:{paper['arxiv']}")
    if paper.get("doi"):
        parts.append(f"doi:{paper['doi']}")
    return ". ".join(str(part) for part in parts if part)
