"""``natwise mimic build`` and ``natwise mimic train``: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from natwise.result import Result

app = typer.Typer(
    help="Build the MIMIC-III clinical benchmark on this machine, and train its baselines.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command()
def build(
    tables: Annotated[Path, typer.Argument(help="The folder of the MIMIC tables, CSV or Parquet.")],
    out: Annotated[Path, typer.Argument(help="The folder to build into.")],
    tasks: Annotated[
        list[str] | None, typer.Option(help="A task, or several with commas between. Default: all.")
    ] = None,
    compat: Annotated[str, typer.Option(help="2019: the published data to the last bit. clean: corrected.")] = "2019",
    resume: Annotated[bool, typer.Option("--resume", help="Keep the stages that an earlier call finished.")] = False,
    export: Annotated[bool, typer.Option(help="Write the original folder layout beside the Parquet files.")] = True,
) -> None:
    """Build the benchmark's data sets from the tables of a hospital."""
    from natwise.timeseries.mimic import MimicBenchmark
    from natwise.timeseries.mimic._benchmark import TASKS

    chosen = [name for text in tasks or [",".join(TASKS)] for name in text.split(",")]
    result = MimicBenchmark.from_csv(tables).build(out, chosen, compat, resume=resume, export=export, verbose=1)
    width = max(map(len, result.scalars))
    for name, value in result.scalars.items():
        print(f"{name:{width}}  {value:,.0f}")
    print(f"built in {result.provenance['seconds']:.1f} s: {out / 'counters.json'}")


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="in_hospital_mortality, decompensation, length_of_stay, ...")],
    data: Annotated[Path, typer.Option(help="What natwise mimic build wrote.")] = Path("out"),
    model: Annotated[str, typer.Option(help="lstm, channel_wise or logistic_regression.")] = "lstm",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training stays. Default: as published.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Units per layer. Default: as published.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Stays per step. Default: as published.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same network.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu, or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was interrupted.")] = False,
) -> None:
    """Train a baseline on a built task and print its metrics on the test patients."""
    from dataclasses import replace

    from natwise.timeseries.mimic._training import MODELS, published_settings, train_task

    settings = None
    if model in MODELS[:2]:
        published = published_settings(task, model)
        settings = replace(
            published,
            max_epochs=epochs or published.max_epochs,
            hidden=hidden or published.hidden,
            batch_size=batch_size or published.batch_size,
        )
    state = data / f"training/{task}-{model}.pt"
    if not resume:
        state.unlink(missing_ok=True)
    result = train_task(
        data, task, model=model, settings=settings, checkpoint=state, device=device, random_state=seed, verbose=1
    )
    _print_metrics(result)
    path = data / f"training/{task}-{model}.safetensors"
    path.parent.mkdir(exist_ok=True)
    result.save(path)
    print(f"saved: {path}")


def _print_metrics(result: Result) -> None:
    width = max(map(len, result.scalars))
    for name, value in result.scalars.items():
        text = "not defined" if value != value else f"{value:.4f}"
        print(f"{name:{width}}  {text}")
