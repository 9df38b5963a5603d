"""Compression of any model from MLflow, without an agent: the engine of ``stillhouse compress``."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import onnx
import pandas as pd
from pydantic import BaseModel, ValidationError

from stillhouse.compress.foreign.onnx_graph import read_graph_inputs
from stillhouse.compress.foreign.rows import build_feed
from stillhouse.compress.foreign.target import MIN_ROWS, model_writer, output_names, target_from_file
from stillhouse.compress.search.figures import candidate_metrics, draw_frontier, format_frontier_page, tabulate_frontier
from stillhouse.compress.search.greedy import search
from stillhouse.config import Compression, DynamicInt8, Fp32, Search, StaticInt8, home
from stillhouse.errors import ConfigError, DataError, SchemaError
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.frames import read_numbers
from stillhouse.knowledge.log_files import heading_hint, read_csv
from stillhouse.records import CompressionCandidate, Frontier, SizeLimits
from stillhouse.registry.compressions import Compressions
from stillhouse.registry.foreign import ForeignModel
from stillhouse.registry.names import FRONTIER, FRONTIER_FIGURE, FRONTIER_PAGE

if TYPE_CHECKING:
    from stillhouse.registry.runs import Runs

__all__ = [
    "Rows",
    "compress_model",
    "copy_chosen",
    "log_compression",
    "log_frontier",
    "parse_limits",
    "parse_outputs",
    "parse_settings",
    "read_rows",
]

AnyModel = TypeVar("AnyModel", bound=BaseModel)

_LABELS_ARRAY = "labels"  # in an .npz file


class Rows(NamedTuple):
    """The rows that a model is calibrated and measured on.

    :param rows: an array, arrays by input, or a table.
    :param labels: the class of each row, if known.
    """

    rows: Any
    labels: np.ndarray[Any, Any] | None


# --------------------------------------------------------------------------- settings


def parse_limits(max_bytes: int | None, max_p95_ms: float | None, max_quality_loss: float | None) -> SizeLimits:
    """Limits from the command's options.

    Example:
        >>> parse_limits(max_bytes=200_000, max_p95_ms=None, max_quality_loss=0.01).max_bytes
        200000

    :raises ConfigError: naming the option whose value is invalid.
    """
    options = {"max_bytes": max_bytes, "max_p95_ms": max_p95_ms, "max_quality_loss": max_quality_loss}
    return _validate(SizeLimits, options)


def parse_settings(time: str, candidates: int, steps: str | None, parallel: int, recover_epochs: int) -> Compression:
    """Compression settings from the command's options: float32, int8 if the steps include it, and the search.

    :param time: of the search, for example ``10m``.
    :param steps: names separated by commas; None: all.
    :raises ConfigError: naming the option whose value is invalid.
    """
    names = [name.strip() for name in steps.split(",") if name.strip()] if steps is not None else None
    options = {"time": time, "candidates": candidates, "steps": names, "parallel": parallel}
    search_settings = _validate(Search, options | {"recover_epochs": recover_epochs})
    always = (DynamicInt8(method="int8_dynamic"), StaticInt8(method="int8_static"))
    recipes = ((Fp32(method="fp32"),), *((step,) for step in always if step.method in search_settings.steps))
    return Compression(recipes=recipes, search=search_settings)


def _validate(section: type[AnyModel], options: Mapping[str, Any]) -> AnyModel:
    try:
        return section.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--{option} {first['input']}: {reason[:1].lower()}{reason[1:]}") from None


# --------------------------------------------------------------------------- rows


def read_rows(file: Path | None, labels: str | None, model: ForeignModel) -> Rows:
    """Rows and labels from files, or from the input example that was logged with the model.

    :param file: ``.npy``, ``.npz`` (arrays by input, and optionally ``labels``), ``.parquet`` or ``.csv``.
    :param labels: a column of the table, an array's name in the ``.npz``, or a file of the same kinds.
    :raises DataError: if a file cannot be read, or there is neither a file nor a large enough example.
    """
    rows = _logged_example(model) if file is None else _read_file(file)
    if isinstance(rows, dict) and labels is None and _LABELS_ARRAY in rows:
        labels = _LABELS_ARRAY
    if labels is None:
        return Rows(rows, None)
    if isinstance(rows, dict | pd.DataFrame) and labels in rows:
        features = (
            rows.drop(columns=labels)
            if isinstance(rows, pd.DataFrame)
            else {name: array for name, array in rows.items() if name != labels}
        )
        return Rows(features, np.asarray(rows[labels]))
    if not Path(labels).exists():
        columns = f"; the rows have: {', '.join(map(str, rows))}" if isinstance(rows, dict | pd.DataFrame) else ""
        raise DataError(f"--labels {labels}: the rows have no such column, and there is no such file{columns}")
    return Rows(rows, _single_column(_read_file(Path(labels)), labels))


def _logged_example(model: ForeignModel) -> Any:
    example = model.example
    if isinstance(example, dict):
        example = {name: np.asarray(value) for name, value in example.items()}
    count = 0 if example is None else len(next(iter(example.values()))) if isinstance(example, dict) else len(example)
    if count < MIN_ROWS:
        example_text = f"an input example of {count} rows" if count else "no input example"
        raise DataError(
            f"{model.uri} was logged with {example_text}, and {MIN_ROWS} rows or more are needed, better a thousand: "
            f"name a file of typical rows, --rows rows.npz (arrays by input: numpy.savez('rows.npz', x=…)), .npy, "
            f".parquet or .csv"
        )
    return example


def _read_file(file: Path) -> Any:
    """An array, arrays by name, or a table; nothing in it is unpickled."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    try:
        if file.suffix == ".csv":
            return _read_table(file)
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except DataError:
        raise
    except Exception as error:  # of three libraries without a common base class
        raise DataError(f"{file} cannot be read as {file.suffix}: {type(error).__name__}: {error}") from error
    raise DataError(f"{file}: rows are read from .npy, .npz, .parquet and .csv")


def _read_table(file: Path) -> pd.DataFrame:
    """A CSV file as :func:`read_csv` reads it, with numeric columns where every value is a number."""
    with file.open("rb") as stream:
        texts = read_csv(stream, str(file))
    names = list(texts.columns)
    hints = [heading_hint("", names) if len(names) == 1 else "", *(heading_hint(name.strip(), names) for name in names)]
    if hint := next(filter(None, hints), ""):
        raise SchemaError(f"{file}: {hint}")
    return pd.DataFrame({name: _convert_numbers(texts[name]) for name in texts.columns})


def _convert_numbers(texts: pd.Series[Any]) -> pd.Series[Any]:
    """The column as numbers, or as integers if all values are whole; unchanged if a value is not a number."""
    numbers = read_numbers(texts)
    if numbers.refused or not len(texts):
        return texts
    are_integers = texts.str.fullmatch(r" *[+-]?[0-9]{1,15} *").eq(True)
    return numbers.values.astype("int64") if are_integers.all() else numbers.values


def _single_column(content: Any, name: str) -> np.ndarray[Any, Any]:
    """The only array or column of a file of labels."""
    if isinstance(content, np.ndarray):
        return content
    if len(columns := list(content)) != 1:
        raise SchemaError(
            f"{name} holds {', '.join(map(str, columns)) or 'nothing'}, and labels are one array or column"
        )
    return np.asarray(content[columns[0]])


# --------------------------------------------------------------------------- compressing


def compress_model(
    model: ForeignModel,
    rows: Rows,
    settings: Compression,
    limits: SizeLimits,
    on_candidate: Callable[[CompressionCandidate], None],
    output: str | None = None,
) -> Frontier:
    """Search smaller versions of the model in ``STILLHOUSE_HOME/compress/<model>``; an interrupted search continues.

    :param output: the name of the output with the class scores, if the model has several.
    :raises ExportError: if the model cannot be compressed, naming the input or the layer, or has several such outputs
        and none is named.
    :raises DataError: if the rows do not fit the model.
    """
    return search(
        functools.partial(target_from_file, model.file, rows.rows, rows.labels, _score, output),
        settings,
        limits,
        model_writer(model.uri),
        home() / "compress" / model.key,
        on_candidate=on_candidate,
    )


def _score(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """The score by which students are compared: AUC for two classes, accuracy for more."""
    return measure_quality(probabilities, labels).score


def parse_outputs(values: Sequence[str], model: ForeignModel) -> tuple[Path | None, str | None]:
    """A folder and the name of a model output from the values of ``--output``: an output's name, or else a folder.

    :raises ConfigError: if there are two folders or two outputs.
    """
    names = output_names(model.file) if values else []
    outputs = [value for value in values if value in names]
    folders = [Path(value) for value in values if value not in names]
    if len(outputs) > 1 or len(folders) > 1:
        raise ConfigError(
            f"--output {' --output '.join(values)}: name one folder, and one of the model's outputs "
            f"({', '.join(names)})"
        )
    return next(iter(folders), None), next(iter(outputs), None)


def copy_chosen(frontier: Frontier, folder: Path) -> None:
    """Copy the chosen candidate's artifact to ``folder``, which must not exist."""
    shutil.copytree(frontier.named(frontier.chosen).folder, folder)


def log_compression(
    model: ForeignModel, rows: Rows, settings: Compression, frontier: Frontier, experiment: str | None
) -> str | None:
    """Log the search and its candidates in MLflow; returns the chosen candidate's address there."""
    inputs = read_graph_inputs(onnx.load(Path(frontier.reference.folder) / "model.onnx"))
    example = build_feed(rows.rows, inputs)
    compressions = Compressions(experiment or f"compress-{model.name}")
    assert settings.search is not None  # parse_settings makes one
    params = settings.search.model_dump(mode="json") | frontier.limits.model_dump() | {"stopped": frontier.stopped}
    chosen = None
    with compressions.open_compression(model.uri, frontier, params) as run_id:
        for candidate in frontier.candidates:
            is_chosen = candidate.name == frontier.chosen
            can_serve = candidate.refused is None
            metrics = candidate_metrics(candidate) | {"bytes": float(candidate.bytes)} if can_serve else {}
            logged = compressions.log_candidate(run_id, model.uri, candidate, metrics, example, is_chosen)
            if is_chosen and logged is not None:
                chosen = logged.uri
        log_frontier(compressions.runs, run_id, frontier)
        compressions.runs.set_tags(run_id, chosen_model=chosen)
    return chosen


def log_frontier(runs: Runs, run_id: str, frontier: Frontier) -> None:
    """Log the result of a search in a run: the record, a table, a figure, an interactive page and metrics."""
    runs.log_table(run_id, tabulate_frontier(frontier), "compression/frontier.json")
    runs.log(
        run_id,
        files={
            FRONTIER: frontier,
            FRONTIER_FIGURE: draw_frontier(frontier),
            FRONTIER_PAGE: format_frontier_page(frontier).encode(),
        },
        metrics={
            "compression/hypervolume": frontier.hypervolume,
            "compression/candidates": float(len(frontier.candidates)),
        },
    )
