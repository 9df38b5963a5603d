"""``stillhouse compress``: search for a smaller form of a model from MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.output import console, format_number
from stillhouse.errors import ConfigError
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.records import CompressionCandidate, Frontier, SizeLimits

__all__ = ["compress"]


def compress(
    model_uri: Annotated[
        str,
        typer.Argument(
            help="models:/name/3, models:/name@alias, models:/m-… or runs:/…/path: a torch module "
            "logged as pt2, or an ONNX classifier"
        ),
    ],
    rows: Annotated[
        Path | None,
        typer.Option(
            help="representative rows: .npy, .npz (arrays by input), .parquet or .csv; by default "
            "the input example that was logged with the model"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="the classes 0…K−1 of the rows: a column, an array in the .npz, or a file; "
            "without labels, a decision is right if it equals the float32 model's"
        ),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(help="largest size of the artifact's files")] = None,
    max_p95_ms: Annotated[
        float | None,
        typer.Option(help="largest 95th percentile of the latency of one row, on one core of this machine (ms)"),
    ] = None,
    max_quality_loss: Annotated[
        float | None,
        typer.Option(
            help="largest loss against the float32 model, in AUC (two labelled classes) or else in the share of "
            "right decisions; by default 0.005"
        ),
    ] = None,
    time: Annotated[str, typer.Option(metavar="DURATION", help="time limit of the search: 90s, 5m, 1h")] = "5m",
    candidates: Annotated[int, typer.Option(help="largest number of candidates")] = 40,
    steps: Annotated[
        str | None,
        typer.Option(
            help="steps that may be combined, separated by commas, such as prune_units,int8_dynamic; by default all"
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(help="models distilled in parallel, each in a process of its own")] = 1,
    recover_epochs: Annotated[int, typer.Option(help="epochs of the distillation after a structural step")] = 2,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|NAME",
            help="copy the chosen artifact to this new folder; or, if the "
            "model has several outputs, the name of the one to compress. "
            "May be given twice",
        ),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="experiment in MLflow; by default compress-<model>")] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="log all candidates to MLflow")] = True,
) -> None:
    """Search for the smallest form of a model from MLflow within your limits.

    Torch modules are pruned, factorised and quantised; ONNX graphs are quantised.
    Each candidate is measured on this machine and compared with the float32 model
    on rows that it was not trained on; one that disagrees too much is refused.
    Nothing is unpickled. The chosen candidate goes to MLflow and to --output. If
    no candidate is within the limits, the command says which limit would have to
    change, and the exit code is 1. A search that was killed continues where it
    stopped when it is run again.

    For example:

        stillhouse compress models:/intent/3 --rows rows.npz --max-bytes 200000
        stillhouse compress models:/churn@champion --rows rows.parquet --labels left
          --max-p95-ms 0.2 --max-quality-loss 0.01 --time 10m --output small
    """
    from stillhouse import compressing
    from stillhouse.registry.foreign import ForeignModels

    limits = compressing.parse_limits(max_bytes, max_p95_ms, max_quality_loss)
    settings = compressing.parse_settings(time, candidates, steps, parallel, recover_epochs)
    with console.status("asking MLflow"):
        model = ForeignModels().fetch_classifier(model_uri)
    folder, output_name = compressing.parse_outputs(output or [], model)
    if folder is not None and folder.exists():
        raise ConfigError(f"--output {folder} exists already, and nothing is overwritten: name another folder")
    model_rows = compressing.read_rows(rows, labels, model)
    with _progress_bar(config.parse_duration(time).total_seconds(), limits) as on_candidate:
        frontier = compressing.compress_model(model, model_rows, settings, limits, on_candidate, output_name)
    _show_frontier(frontier)
    if log:
        with console.status("writing to MLflow"):
            address = compressing.log_compression(model, model_rows, settings, frontier, experiment)
        console.print(
            f"in MLflow: {address}, in the experiment {experiment or f'compress-{model.name}'}", soft_wrap=True
        )
    if not frontier.fits:
        raise typer.Exit(1)
    if folder is not None:
        compressing.copy_chosen(frontier, folder)
        console.done(f"{escape_line(folder)}: model.onnx, manifest.json")


@contextmanager
def _progress_bar(seconds: float, limits: SizeLimits) -> Iterator[Callable[[CompressionCandidate], None]]:
    """A progress bar of the search's seconds with the best candidate so far; yields the callback for each candidate."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stillhouse.compress.search.pareto import choose_candidate

    candidates: list[CompressionCandidate] = []
    counter = TextColumn("{task.fields[made]} made, {task.fields[best]}", markup=False)
    with Progress(
        SpinnerColumn(), BarColumn(20), TimeElapsedColumn(), counter, console=console, transient=True
    ) as progress:
        bar = progress.add_task("", total=seconds, made=0, best="the float32 model comes first")

        def on_candidate(candidate: CompressionCandidate) -> None:
            candidates.append(candidate)
            best, fits, _ = choose_candidate(candidates, candidates[0], limits)
            text = f"{'best' if fits else 'nearest'}: {best.name}, {best.bytes:,} bytes"
            progress.update(bar, completed=sum(made.seconds for made in candidates), made=len(candidates), best=text)

        yield on_candidate


def _show_frontier(frontier: Frontier) -> None:
    """Print the Pareto front with the reference, the refused candidates, and why the chosen one was chosen."""
    reference = frontier.reference
    table = Table("candidate", "bytes", "ratio", "quality", "p50 (ms)", "p95 (ms)", "CPU (ms)", "")
    names = dict.fromkeys([*frontier.best, frontier.chosen, reference.name])
    for candidate in sorted(map(frontier.named, names), key=lambda candidate: candidate.bytes):
        latency = candidate.latency
        assert latency is not None  # every candidate that is not refused was measured
        is_chosen = candidate.name == frontier.chosen and frontier.fits
        mark = "chosen" if is_chosen else "float32" if candidate is reference else ""
        times = map(format_number, (latency.p50_ms, latency.p95_ms, candidate.cpu_ms))
        ratio = f"{candidate.bytes / reference.bytes:.1%}"
        table.add_row(candidate.name, f"{candidate.bytes:,}", ratio, format_number(candidate.quality), *times, mark)
    console.print(table)
    if frontier.measure:
        console.print(f"quality is {frontier.measure}", soft_wrap=True, highlight=False, markup=False)
    for note in frontier.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    refused = [candidate for candidate in frontier.candidates if candidate.refused is not None]
    console.print(
        f"{len(frontier.candidates)} candidates, {len(frontier.candidates) - len(names)} of them beaten or refused; "
        f"{frontier.stopped}"
    )
    for candidate in refused:
        console.print(f"refused: {escape_line(candidate.name)}: {escape_line(candidate.refused)}", style="dim")
    console.print(escape_line(frontier.why), style="bold")
