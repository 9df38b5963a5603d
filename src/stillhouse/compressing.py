"""A model from MLflow, compressed outside the loop: what ``stillhouse compress`` does."""

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

from stillhouse.compress.adopt import graph_inputs
from stillhouse.compress.figures import frontier_figure, frontier_table, measured
from stillhouse.compress.outside import FEWEST_ROWS, model_pack, outputs_of, outside_subject
from stillhouse.compress.rows import feed_of
from stillhouse.compress.search import search
from stillhouse.config import Compression, DynamicInt8, Fp32, Search, StaticInt8, home
from stillhouse.errors import ConfigError, DataError, SchemaError
from stillhouse.evaluate.scorecard import quality
from stillhouse.frames import numbers_in
from stillhouse.knowledge.files import heading_hint, read_csv
from stillhouse.records import CompressionCandidate, Frontier, SizeLimits
from stillhouse.registry.compressions import Compressions
from stillhouse.registry.foreign import ForeignModel
from stillhouse.registry.names import FRONTIER, FRONTIER_FIGURE

if TYPE_CHECKING:
    from stillhouse.registry.runs import Runs

__all__ = [
    "Rows",
    "compress_model",
    "destinations",
    "keep",
    "limits_of",
    "log_compression",
    "log_frontier",
    "rows_of",
    "settings_of",
]

AnyModel = TypeVar("AnyModel", bound=BaseModel)

_LABELS = "labels"


class Rows(NamedTuple):
    """What a model is measured on.

    :param rows: an array, arrays by input, or a table.
    :param labels: the class of each row, where that is known.
    """

    rows: Any
    labels: np.ndarray[Any, Any] | None


# --------------------------------------------------------------------------- settings


def limits_of(max_bytes: int | None, max_p95_ms: float | None, max_quality_loss: float | None) -> SizeLimits:
    """Limits from a command's options.

    :raises ConfigError: naming the option that cannot be.
    """
    given = {"max_bytes": max_bytes, "max_p95_ms": max_p95_ms, "max_quality_loss": max_quality_loss}
    return _valid(SizeLimits, given)


def settings_of(time: str, candidates: int, steps: str | None, parallel: int, recover_epochs: int) -> Compression:
    """A search from a command's options, and what is made in any case: float32, and int8 where that is a step.

    :param steps: names separated by commas; None: all.
    :raises ConfigError: naming the option that cannot be.
    """
    names = [name.strip() for name in steps.split(",") if name.strip()] if steps is not None else None
    options = {"time": time, "candidates": candidates, "steps": names, "parallel": parallel}
    searched = _valid(Search, options | {"recover_epochs": recover_epochs})
    always = (DynamicInt8(method="int8_dynamic"), StaticInt8(method="int8_static"))
    recipes = ((Fp32(method="fp32"),), *((each,) for each in always if each.method in searched.steps))
    return Compression(recipes=recipes, search=searched)


def _valid(kind: type[AnyModel], options: Mapping[str, Any]) -> AnyModel:
    try:
        return kind.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--{option} {first['input']}: {why[:1].lower()}{why[1:]}") from None


# --------------------------------------------------------------------------- rows


def rows_of(file: Path | None, labels: str | None, model: ForeignModel) -> Rows:
    """Rows and labels from files, or from the input example that was logged with the model.

    :param file: ``.npy``, ``.npz`` (arrays by input, ``labels`` perhaps among them), ``.parquet`` or ``.csv``.
    :param labels: a column of the table, an array's name in the ``.npz``, or a file of the same kinds.
    :raises DataError: if a file cannot be read, or there are neither rows nor an example that is large enough.
    """
    rows = _logged_example(model) if file is None else _read(file)
    if isinstance(rows, dict) and labels is None and _LABELS in rows:
        labels = _LABELS
    if labels is None:
        return Rows(rows, None)
    if isinstance(rows, dict | pd.DataFrame) and labels in rows:
        found = np.asarray(rows[labels])
        others = (
            rows.drop(columns=labels)
            if isinstance(rows, pd.DataFrame)
            else {name: array for name, array in rows.items() if name != labels}
        )
        return Rows(others, found)
    if not Path(labels).exists():
        there = f"; the rows have: {', '.join(map(str, rows))}" if isinstance(rows, dict | pd.DataFrame) else ""
        raise DataError(f"--labels {labels}: there is neither such a column of the rows nor such a file{there}")
    return Rows(rows, _only(_read(Path(labels)), labels))


def _logged_example(model: ForeignModel) -> Any:
    example = model.example
    if isinstance(example, dict):
        example = {name: np.asarray(value) for name, value in example.items()}
    count = 0 if example is None else len(next(iter(example.values()))) if isinstance(example, dict) else len(example)
    if count < FEWEST_ROWS:
        logged = f"an input example of {count} rows" if count else "no input example"
        raise DataError(
            f"{model.uri} was logged with {logged}, and {FEWEST_ROWS} rows or more are needed, better a thousand: name "
            f"a file of rows as they occur, --rows rows.npz (arrays by input: numpy.savez('rows.npz', x=…)), .npy, "
            f".parquet or .csv"
        )
    return example


def _read(file: Path) -> Any:
    """An array, arrays by name, or a table; nothing in it is unpickled."""
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    try:
        if file.suffix == ".csv":
            return _table(file)
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except DataError:
        raise
    except Exception as error:  # three libraries, and each has errors of its own
        raise DataError(f"{file} cannot be read as {file.suffix}: {type(error).__name__}: {error}") from error
    raise DataError(f"{file}: rows are read from .npy, .npz, .parquet and .csv")


def _table(file: Path) -> pd.DataFrame:
    """A CSV as :func:`read_csv` has it; columns in which every value writes a number are numbers."""
    with file.open("rb") as stream:
        texts = read_csv(stream, str(file))
    names = list(texts.columns)
    hints = [heading_hint("", names) if len(names) == 1 else "", *(heading_hint(name.strip(), names) for name in names)]
    if hint := next(filter(None, hints), ""):
        raise SchemaError(f"{file}: {hint}")
    return pd.DataFrame({name: _numbers(texts[name]) for name in texts.columns})


def _numbers(texts: pd.Series[Any]) -> pd.Series[Any]:
    """The column as numbers, whole ones as integers; as texts where one of its values is none."""
    read = numbers_in(texts)
    if read.refused or not len(texts):
        return texts
    whole = texts.str.fullmatch(r" *[+-]?[0-9]{1,15} *").eq(True)
    return read.values.astype("int64") if whole.all() else read.values


def _only(found: Any, name: str) -> np.ndarray[Any, Any]:
    """The one array or column in a file of labels."""
    if isinstance(found, np.ndarray):
        return found
    if len(columns := list(found)) != 1:
        raise SchemaError(
            f"{name} holds {', '.join(map(str, columns)) or 'nothing'}, and labels are one array or column"
        )
    return np.asarray(found[columns[0]])


# --------------------------------------------------------------------------- compressing


def compress_model(
    model: ForeignModel,
    rows: Rows,
    settings: Compression,
    limits: SizeLimits,
    on_candidate: Callable[[CompressionCandidate], None],
    output: str | None = None,
) -> Frontier:
    """Search smaller forms of the model in ``STILLHOUSE_HOME/compress/<model>``: one that was killed goes on.

    :param output: the name of the output that decides, where the model has several.
    :raises ExportError: if the model cannot be compressed, naming the input or the layer, or has several outputs and
        none is named.
    :raises DataError: if the rows do not fit the model.
    """
    return search(
        functools.partial(outside_subject, model.file, rows.rows, rows.labels, _score, output),
        settings,
        limits,
        model_pack(model.uri),
        home() / "compress" / model.key,
        on_candidate=on_candidate,
    )


def _score(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """As models are compared in the loop: AUC for two classes, accuracy for more."""
    return quality(probabilities, labels).score


def destinations(given: Sequence[str], model: ForeignModel) -> tuple[Path | None, str | None]:
    """A folder and an output's name from what ``--output`` was given: what names an output of the model is one.

    :raises ConfigError: if there are two of a kind.
    """
    names = outputs_of(model.file) if given else []
    wanted = [each for each in given if each in names]
    folders = [Path(each) for each in given if each not in names]
    if len(wanted) > 1 or len(folders) > 1:
        raise ConfigError(
            f"--output {' --output '.join(given)}: name one folder, and one of the model's outputs ({', '.join(names)})"
        )
    return next(iter(folders), None), next(iter(wanted), None)


def keep(frontier: Frontier, folder: Path) -> None:
    """Copy the chosen artifact to ``folder``, which must not be there yet."""
    shutil.copytree(frontier.named(frontier.chosen).folder, folder)


def log_compression(
    model: ForeignModel, rows: Rows, settings: Compression, frontier: Frontier, experiment: str | None
) -> str | None:
    """Everything in MLflow; the chosen candidate's address there."""
    reads = graph_inputs(onnx.load(Path(frontier.reference.folder) / "model.onnx"))
    example = feed_of(rows.rows, reads)
    compressions = Compressions(experiment or f"compress-{model.name}")
    assert settings.search is not None  # settings_of gives one
    params = settings.search.model_dump(mode="json") | frontier.limits.model_dump() | {"stopped": frontier.stopped}
    chosen = None
    with compressions.open_compression(model.uri, frontier, params) as run_id:
        for candidate in frontier.candidates:
            is_chosen = candidate.name == frontier.chosen
            figures = measured(candidate) | {"bytes": float(candidate.bytes)} if candidate.refused is None else {}
            logged = compressions.log_candidate(run_id, model.uri, candidate, figures, example, is_chosen)
            if is_chosen and logged is not None:
                chosen = logged.uri
        log_frontier(compressions.runs, run_id, frontier)
        compressions.runs.set_tags(run_id, chosen_model=chosen)
    return chosen


def log_frontier(runs: Runs, run_id: str, frontier: Frontier) -> None:
    """The frontier as record, table, figure and metrics of a run."""
    runs.log_table(run_id, frontier_table(frontier), "compression/frontier.json")
    runs.log(
        run_id,
        files={FRONTIER: frontier, FRONTIER_FIGURE: frontier_figure(frontier)},
        metrics={
            "compression/hypervolume": frontier.hypervolume,
            "compression/candidates": float(len(frontier.candidates)),
        },
    )
