"""``stillhouse drift``: compare the columns of two tables, without an agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse import config
from stillhouse.commands.arguments import AsJson
from stillhouse.commands.output import console, print_json
from stillhouse.errors import SchemaError
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.drift.profile import Profile
    from stillhouse.records import ColumnDrift

__all__ = ["drift"]


def drift(
    reference: Annotated[
        Path, typer.Argument(exists=True, help="reference rows: Parquet file or folder, Delta table, or saved profile")
    ],
    current: Annotated[Path, typer.Argument(exists=True, help="current rows, in the same forms")],
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="measure only this column; may be repeated")
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option("--text", help="a column of free text, measured by its characters and words")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="save the profile of the reference here, to pass it as the reference next time")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the drift of each column between two tables, largest first. Tables may be larger than memory."""
    from stillhouse.drift.distances import compare_profiles
    from stillhouse.drift.explain import rank_columns
    from stillhouse.records import TableDrift

    before = _load_profile(reference, columns, None, texts or ())
    now = _load_profile(current, columns, before, texts or ())
    if keep is not None:
        keep.write_bytes(before.to_bytes())
    columns_by_drift = rank_columns(compare_profiles(before, now))
    if as_json:
        print_json(TableDrift(reference_rows=before.rows, current_rows=now.rows, columns=tuple(columns_by_drift)))
        return
    _show(columns_by_drift)
    console.print(f"{before.rows:,} rows before, {now.rows:,} now; PSI on the reference's deciles or values")


def _show(columns: Sequence[ColumnDrift]) -> None:
    """The distances as a table that fits 80 columns, and below it the values that the reference does not have."""
    from stillhouse.records import COLUMN_DISTANCES

    headings = [distance.heading for distance in COLUMN_DISTANCES]
    table = Table("column", *headings, "missing before", "now", padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for drift in columns:
        missing = (f"{share:.1%}" for share in (drift.missing_reference, drift.missing_current))
        table.add_row(drift.column, *(distance.format(drift) for distance in COLUMN_DISTANCES), *missing)
    console.print(table)
    for drift in columns:
        if drift.unseen:
            more = f" and {len(drift.unseen) - 3} more" if len(drift.unseen) > 3 else ""
            console.print(escape_line(f"new values of {drift.column}: {', '.join(drift.unseen[:3])}{more}"))


def _load_profile(path: Path, columns: list[str] | None, like: Profile | None, texts: Sequence[str]) -> Profile:
    """Compute the profile of a table, with a progress bar, or load a saved one.

    :param like: profile whose histogram cells are used; None for the reference.
    """
    from pyarrow import ArrowException
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from stillhouse.drift.profile import Profile
    from stillhouse.drift.scan import ParquetRows, scan
    from stillhouse.drift.texts import measure_text_batches

    if path.suffix == ".profile":
        try:
            saved = Profile.from_bytes(path.read_bytes())
        except SchemaError as error:
            raise SchemaError(f"{path}: {error}") from error
        if absent := [name for name in columns or () if name not in saved.columns]:
            raise SchemaError(f"{path} lacks the columns {absent}; it has {list(saved.columns)}")
        return Profile(saved.rows, {name: saved.columns[name] for name in columns or saved.columns})
    source: Any = path
    if (path / "_delta_log").is_dir():
        from deltalake import DeltaTable

        if characters := config.unsafe_path_characters(path.resolve()):
            raise SchemaError(
                f"Delta Lake cannot open a path with {', '.join(map(repr, characters))} in it: move {path}"
            )
        source = DeltaTable(path).to_pyarrow_dataset()
    row_count = TextColumn("{task.fields[file]}: {task.completed:,.0f} rows", markup=False)
    with Progress(SpinnerColumn(), row_count, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("", total=None, file=escape_line(path.name))
        try:
            if texts:
                batches = ParquetRows.from_path(path).by_row() if source is path else source.to_batches()
                source = measure_text_batches(batches, texts)
            return scan(source, columns or None, like, on_rows=lambda rows: progress.advance(bar, rows))
        except (ArrowException, OSError) as error:
            raise SchemaError(f"{path} cannot be read as Parquet: {error}") from error
