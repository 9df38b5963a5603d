"""The agent file: one YAML per agent, every field with its unit and range, unknown keys refused.

``load("flights")`` reads ``agents/flights.yaml`` (``STILLHOUSE_AGENTS`` names another folder);
``load_file(path)`` reads a given file. Both raise :class:`~stillhouse.errors.ConfigError` with file, line,
key and remedy. Where things are kept is decided here too: ``home()`` and the embedded defaults.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AwareDatetime,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from stillhouse.config.base import Action, Duration, Length, Name, Section, Target, parse_duration
from stillhouse.config.compression import (
    Compression,
    DynamicInt8,
    Fp32,
    HashedRows,
    LowRank,
    NumberFormat,
    PruneColumns,
    PruneHeads,
    PruneLayers,
    PruneUnits,
    Recipe,
    Search,
    ShortTexts,
    StaticInt8,
    Step,
    StructuralStep,
    Vocabulary,
    WeightOnly,
    number_format,
    recipe_name,
    structure,
)
from stillhouse.config.importing import ImportedDecision, ImportedOutcome, ImportedTime, Importing
from stillhouse.config.reading import read_yaml
from stillhouse.config.runtime import Cascade, Runtime, Upkeep
from stillhouse.config.store import open_store
from stillhouse.config.windows import NewestRows, SincePromotion, Windows
from stillhouse.errors import ConfigError
from stillhouse.records import Mode
from stillhouse.shown import shown

__all__ = [
    "TEXT_MEASURES",
    "AgentConfig",
    "AnyEncoder",
    "AnyStudent",
    "AnyTeacher",
    "Asking",
    "BagEncoder",
    "Cascade",
    "CategoryColumn",
    "Compression",
    "ConvolutionEncoder",
    "DynamicInt8",
    "EndpointTeacher",
    "EnsembleTeacher",
    "Fp32",
    "HashedRows",
    "ImportedDecision",
    "ImportedOutcome",
    "ImportedTime",
    "Importing",
    "KnowledgeLoss",
    "Leaf",
    "LeafTeacher",
    "LossSection",
    "LowRank",
    "MlflowTeacher",
    "ModuleStudent",
    "ModuleTeacher",
    "NewestRows",
    "NumberColumn",
    "NumberFormat",
    "PruneColumns",
    "PruneHeads",
    "PruneLayers",
    "PruneUnits",
    "PythonTeacher",
    "Recipe",
    "Runtime",
    "Search",
    "ShortTexts",
    "SincePromotion",
    "StaticInt8",
    "Step",
    "StructuralStep",
    "StudentSection",
    "TabularStudent",
    "TeacherSection",
    "TextColumn",
    "TextStudent",
    "TransformerEncoder",
    "Unit",
    "Upkeep",
    "Vocabulary",
    "WeightOnly",
    "Windows",
    "agents_folder",
    "embedded_environment",
    "home",
    "leaves",
    "load",
    "load_file",
    "number_format",
    "parse_duration",
    "recipe_name",
    "structure",
    "unfit_in_path",
    "units",
    "use_embedded_defaults",
]

# --------------------------------------------------------------------------- where things are kept


def home() -> Path:
    """The folder that everything is kept in: ``STILLHOUSE_HOME``, by default ``./.stillhouse``.

    :raises ConfigError: if it cannot be a folder that SQLite, MLflow, Prefect and Delta Lake all find again.
    :raises StoreError: if it holds what this version cannot read; see :mod:`stillhouse.config.store`.
    """
    folder = _home()
    open_store(folder)
    return folder


def _home() -> Path:
    """Where :func:`home` is to be; nothing is made or looked at there."""
    folder = _folder("STILLHOUSE_HOME", ".stillhouse")
    if strange := unfit_in_path(folder):
        raise ConfigError(
            f"STILLHOUSE_HOME is the folder {str(folder)!r}, and Delta Lake, SQLite and MLflow do not all find a path "
            f"again that has {', '.join(map(repr, strange))} in it: name another folder"
        )
    return folder


def agents_folder() -> Path:
    """The folder of reviewed agent files: ``STILLHOUSE_AGENTS``, by default ``./agents``.

    :raises ConfigError: if it cannot be a folder.
    """
    return _folder("STILLHOUSE_AGENTS", "agents")


def _folder(variable: str, otherwise: str) -> Path:
    given = os.environ.get(variable) or otherwise
    try:
        folder = Path(given).resolve()
        str(folder).encode("utf-8")
        there = next(each for each in (folder, *folder.parents) if each.exists())
        if not there.is_dir():
            raise ConfigError(f"{variable} names {given!r}, and {str(there)!r} is a file: name a folder")
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "its name is no UTF-8"
        raise ConfigError(f"{variable} names {given!r}, which cannot be a folder ({reason}): name another") from error
    return folder


def unfit_in_path(path: Path) -> list[str]:
    """Characters of ``path`` that end an address (``sqlite:///…?…``), are decoded in one, or Delta Lake refuses."""
    return sorted({one for one in str(path) if one in "?%[]|^`\\" or not one.isprintable()})


def embedded_environment() -> dict[str, str]:
    """Environment of the embedded default: SQLite under :func:`home`, telemetry off, no pickle.

    Only defaults: a caller sets what is not yet set (``os.environ.setdefault``).
    """
    store = _home()
    environment = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow' / 'mlflow.db'}",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        # OpenMP threads that wait by spinning take the core from the thread they wait for, once cores are shared:
        # fits that take 4 s then take 80.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
    }
    if not (Path.home() / ".prefect" / "profiles.toml").exists():  # a user's own profile wins
        environment["PREFECT_HOME"] = str(store / "prefect")
    return environment


def use_embedded_defaults() -> None:
    """Set what is unset of :func:`embedded_environment` and make its folder; before Prefect or MLflow is imported."""
    for name, value in embedded_environment().items():
        os.environ.setdefault(name, value)
    Path(os.environ.get("PREFECT_HOME", home())).mkdir(parents=True, exist_ok=True)  # Prefect needs it to be there


_Value = TypeVar("_Value")


# --------------------------------------------------------------------------- observations and outcomes


class NumberColumn(Section):
    """A numeric feature."""

    type: Literal["number"]
    min: float | None = Field(default=None, description="smallest allowed value, in the column's unit")
    max: float | None = Field(default=None, description="largest allowed value, in the column's unit")
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing")
    drift: bool = Field(default=True, description="false: not watched (a calendar column moves by itself)")

    @model_validator(mode="after")
    def _ordered(self) -> NumberColumn:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class CategoryColumn(Section):
    """A feature with a finite set of values."""

    type: Literal["category"]
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="allowed values; absent: any")
    max_unknown: float = Field(
        default=0.0, ge=0, le=1, description="share of a window outside `values`; above it the window is refused"
    )
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing")
    drift: bool = Field(default=True, description="false: not watched")

    @model_validator(mode="after")
    def _unknown_to_what(self) -> CategoryColumn:
        if self.max_unknown and self.values is None:
            raise ValueError("max_unknown says how many rows may lie outside `values`, and there are no `values`")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> CategoryColumn:
        if twice := _repeated(self.values or ()):
            raise ValueError(f"values names {', '.join(map(repr, twice))} more than once")
        return self


class TextColumn(Section):
    """Words as somebody wrote them; a text without any visible character is missing."""

    type: Literal["text"]
    max_length: int | None = Field(default=None, ge=1, description="longest allowed text (characters); absent: any")
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing or empty")
    drift: bool = Field(default=True, description="false: neither its length nor its words are watched")


TEXT_MEASURES = ("characters", "words", "new words")
"""What of a text is watched, each as a number of its own: ``said: words``."""

Column = Annotated[NumberColumn | CategoryColumn | TextColumn, Field(discriminator="type")]


class When(Section):
    """A condition on one column, for a rule that holds on some rows only."""

    column: str
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="a category is one of these")
    min: float | None = Field(default=None, description="a number is at least this")
    max: float | None = Field(default=None, description="a number is at most this")

    @model_validator(mode="after")
    def _says_something(self) -> When:
        if self.values is not None and (self.min is not None or self.max is not None):
            raise ValueError("`values` are for a category, `min` and `max` for a number: give one or the other")
        if self.values is None:
            _check_range(self.min, self.max, nothing="says nothing: give `values` of a category, or `min` or `max`")
        if twice := _repeated(self.values or ()):
            raise ValueError(f"values: names {', '.join(map(repr, twice))} more than once")
        return self


class Ordered(Section):
    """One number never exceeds another."""

    type: Literal["ordered"]
    low: str
    high: str
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _two_columns(self) -> Ordered:
        if self.low == self.high:
            raise ValueError(f"high: must be another column than `low`, {self.low!r}")
        return self


class Pairs(Section):
    """Two categories come only in these combinations."""

    type: Literal["pairs"]
    columns: tuple[str, str]
    allowed: tuple[tuple[str, str], ...] = Field(min_length=1)
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _two_columns(self) -> Pairs:
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"columns: must be two different ones, and {self.columns[0]!r} comes twice")
        if twice := _repeated(self.allowed):
            raise ValueError(f"allowed: {', '.join(str(list(pair)) for pair in twice)} comes more than once")
        return self


class RangeWhen(Section):
    """A narrower range of a number on rows that meet a condition."""

    type: Literal["range_when"]
    column: str
    min: float | None = Field(default=None, description="smallest value allowed on those rows")
    max: float | None = Field(default=None, description="largest value allowed on those rows")
    when: When
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _says_something(self) -> RangeWhen:
        _check_range(self.min, self.max, nothing="can never be broken: give `min`, `max` or both")
        return self


class PresentWhen(Section):
    """A value may not be missing on rows that meet a condition."""

    type: Literal["present_when"]
    column: str
    when: When
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")


Rule = Annotated[Ordered | Pairs | RangeWhen | PresentWhen, Field(discriminator="type")]


class Volume(Section):
    """How many rows a day of a window may hold, on average."""

    min_per_day: float | None = Field(default=None, ge=0, description="rows, on average over the window's length")
    max_per_day: float | None = Field(default=None, gt=0, description="the same")

    @model_validator(mode="after")
    def _says_something(self) -> Volume:
        if not self.min_per_day and self.max_per_day is None:
            raise ValueError("can never be broken: give `min_per_day` above 0, `max_per_day` or both")
        if self.max_per_day is not None and (self.min_per_day or 0) > self.max_per_day:
            raise ValueError(f"min_per_day {_shown(self.min_per_day)} is larger than max_per_day "
                             f"{_shown(self.max_per_day)}")  # fmt: skip
        return self


class Observations(Section):
    """What the agent perceives, and the contract that it must keep."""

    source: Target = Field(description="'module:function' (start, end) → rows with observation_id, observed_at")
    columns: dict[str, Column] = Field(min_length=1, description="features, in the order the student reads them")
    since: AwareDatetime = Field(description="a moment from which the source has rows; where a history begins")
    min_rows: int = Field(default=100, ge=1, description="a window with fewer rows is not judged")
    max_bad_rows: float = Field(
        default=0.05, ge=0, le=1, description="share of rows in quarantine above which the window is refused"
    )
    freshness: Length | None = Field(
        default=None, description="the newest row is at most this old at a window's end; else the window is refused"
    )
    volume: Volume | None = Field(default=None, description="rows per day; outside it the window is refused")
    unique: tuple[tuple[str, ...], ...] = Field(
        default=(), description="lists of columns whose values together differ from row to row of a window"
    )
    rules: tuple[Rule, ...] = Field(default=(), description="what columns promise about one another")

    @model_validator(mode="after")
    def _no_reserved_names(self) -> Observations:
        reserved = {"observation_id", "observed_at", "content_key"} & self.columns.keys()
        if reserved:
            raise ValueError(f"column names {sorted(reserved)} are reserved for the knowledge base")
        measures = {f"{name}: {measure}" for name in self.texts for measure in TEXT_MEASURES}
        if reserved := measures & self.columns.keys():
            raise ValueError(f"column names {sorted(reserved)} are reserved for what is watched of a text")
        return self

    @model_validator(mode="after")
    def _promises_that_can_be_kept_and_broken(self) -> Observations:
        mistakes = [*_mistakes_of_unique(self)]
        for place, rule in enumerate(self.rules):
            if rule in self.rules[:place]:
                mistakes.append(f"rules.{place}: is the same as rules.{self.rules.index(rule)}")
            mistakes += [f"rules.{place}{mistake}" for mistake in _mistakes_of_rule(rule, self.columns)]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numeric columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "number")

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categorical columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "category")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "text")


def _check_range(low: float | None, high: float | None, *, nothing: str) -> None:
    if low is None and high is None:
        raise ValueError(nothing)
    if low is not None and high is not None and low > high:
        raise ValueError(f"min {_shown(low)} is larger than max {_shown(high)}")


def _mistakes_of_unique(observations: Observations) -> Iterator[str]:
    """``key: what is wrong`` of each list in ``unique``; keys as from ``observations`` on."""
    known = [*observations.columns, "observed_at"]
    for place, names in enumerate(observations.unique):
        key = f"unique.{place}"
        if not names:
            yield f"{key}: must name at least one column"
        elif "observation_id" in names:
            yield f"{key}: observation_id is unique by itself; leave this list out"
        elif strange := [name for name in names if name not in known]:
            yield f"{key}: no column is called {strange[0]!r}; {_nearest(strange[0], known, 'there are')}"
        elif twice := _repeated(names):
            yield f"{key}: names {', '.join(map(repr, twice))} more than once"
        else:
            for other, fewer in enumerate(observations.unique):
                if fewer and (set(fewer) < set(names) or (set(fewer) == set(names) and other < place)):
                    yield f"{key}: follows from unique.{other}; leave it out"


def _mistakes_of_rule(rule: Rule, columns: Mapping[str, Column]) -> Iterator[str]:
    """``.key: what is wrong`` of one rule: columns that are not there, what can never be broken, what never holds."""
    absent = [f".{key}: {wrong}" for key, name, kind in _columns_of(rule)
              if (wrong := _wrong_column(name, kind, columns))]  # fmt: skip
    if absent:
        yield from absent
        return
    if isinstance(rule, Ordered):
        (least, most), (floor, ceiling) = _bounds(columns[rule.low]), _bounds(columns[rule.high])
        if most <= floor:
            yield f": can never be broken: {rule.low} is at most {most:g}, {rule.high} at least {floor:g}"
        if least > ceiling:
            yield f": can never hold: {rule.low} is at least {least:g}, {rule.high} at most {ceiling:g}"
    elif isinstance(rule, Pairs):
        for side, name in enumerate(rule.columns):
            yield from _strange_values(".allowed", [pair[side] for pair in rule.allowed], name, columns)
        first, second = (getattr(columns[name], "values", None) for name in rule.columns)
        if first and second and set(rule.allowed) >= {(a, b) for a in first for b in second}:
            yield f".allowed: can never be broken: it has every pair of {rule.columns[0]} and {rule.columns[1]}"
    else:
        yield from _mistakes_where(rule, columns)


def _mistakes_where(rule: RangeWhen | PresentWhen, columns: Mapping[str, Column]) -> Iterator[str]:
    """The same for a rule with a condition."""
    column, when = columns[rule.column], rule.when
    if rule.column == when.column:
        yield ".when.column: must be another column than `column`"
    if isinstance(rule, RangeWhen):
        (low, high), (least, most) = _bounds(rule), _bounds(column)
        if low <= least and most <= high:
            yield f": can never be broken: {rule.column} is between {least:g} and {most:g} on all rows"
        if low > most or high < least:
            yield f": can never hold: {rule.column} is between {least:g} and {most:g} on all rows"
    elif not column.max_missing:
        yield f".column: can never be broken: {rule.column} may be missing on no row (max_missing 0)"
    yield from _strange_values(".when.values", when.values or (), when.column, columns)
    (low, high), (least, most) = _bounds(when), _bounds(columns[when.column])
    if low > most or high < least:
        yield f".when: is never met: {when.column} is between {least:g} and {most:g} on all rows"


def _columns_of(rule: Rule) -> list[tuple[str, str, str | None]]:
    """Key, name and wanted type (None: any) of each column that a rule speaks of."""
    if isinstance(rule, Ordered):
        return [("low", rule.low, "number"), ("high", rule.high, "number")]
    if isinstance(rule, Pairs):
        return [("columns", name, "category") for name in rule.columns]
    condition = ("when.column", rule.when.column, "category" if rule.when.values else "number")
    return [("column", rule.column, "number" if isinstance(rule, RangeWhen) else None), condition]


def _wrong_column(name: str, kind: str | None, columns: Mapping[str, Column]) -> str | None:
    if name not in columns:
        return f"no column is called {name!r}; {_nearest(name, columns, 'there are')}"
    if kind and columns[name].type != kind:
        return f"{name!r} is a {columns[name].type} column; it must be a {kind}"
    return None


def _strange_values(key: str, given: Iterable[str], name: str, columns: Mapping[str, Column]) -> Iterator[str]:
    known = getattr(columns[name], "values", None)
    for value in dict.fromkeys(given):
        if known is not None and value not in known:
            yield f"{key}: {value!r} is not among the values of {name}; {_nearest(value, known, 'those are')}"


def _bounds(ranged: Column | RangeWhen | When) -> tuple[float, float]:
    """Smallest and largest value that a column or condition admits."""
    low, high = getattr(ranged, "min", None), getattr(ranged, "max", None)
    return (-math.inf if low is None else low, math.inf if high is None else high)


class Outcomes(Section):
    """What turned out to be true, later."""

    source: Target = Field(description="'module:function' (start, end) → observation_id, observed_at, known_at, action")
    delay: Duration = Field(description="time until an outcome is known")


# --------------------------------------------------------------------------- teachers, students


_TIMEOUT = timedelta(minutes=15)  # of a teacher in this process; a task of the flows has half an hour


class TeacherSection(Section):
    """What every teacher has; what a kind does otherwise than this stands in its own section.

    A kind that may be a member of an ensemble is listed in :data:`LeafTeacher`, and ``teachers/<kind>.py`` registers
    how it is described, opened and asked; see :mod:`stillhouse.teachers.kinds`.
    """

    name: Name
    weight: float = Field(default=1.0, gt=0, description="share in the teachers' mean, relative to the others")

    non_identity_fields: ClassVar[frozenset[str]] = frozenset({"name", "weight", "timeout"})
    """Keys that do not decide what the teacher answers: with other values of these its knowledge stays valid."""

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted on outcomes, and so may not be asked about rows whose outcomes it has seen."""
        return False

    @property
    def is_remote(self) -> bool:
        """Whether it is asked over a network, and each question may cost money."""
        return False

    @property
    def costs_money(self) -> bool:
        """Whether its answers have a price."""
        return False

    @property
    def gives_features(self) -> bool:
        """Whether its hidden representation of a row is stored with its answer."""
        return False

    @property
    def may_offer_text_encoder(self) -> bool:
        """Whether a text student may begin with an encoder of this kind of teacher."""
        return False

    @property
    def call_timeout(self) -> timedelta | None:
        """Limit of one call to a teacher in this process; None for a kind that limits its own requests."""
        raise NotImplementedError(f"{type(self).__name__} does not define `call_timeout`")

    def column_mistakes(self, columns: Mapping[str, Column]) -> Iterator[str]:
        """``key: what is wrong`` of the columns that this section names; keys are relative to the section."""
        yield from ()


class PythonTeacher(TeacherSection):
    """Any class that meets :class:`stillhouse.parts.Teacher`; fitted on the outcomes of the training window."""

    kind: Literal["python"]
    target: Target = Field(description="'module:Class'")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    learns: bool = Field(
        default=True, description="false: rules or a ready model (:class:`stillhouse.parts.ReadyTeacher`), never fitted"
    )
    features: bool = Field(
        default=False, description="keep what its `features(rows)` gives, float32 [n, D]; only with `learns: false`"
    )
    timeout: Length = Field(default=_TIMEOUT, description="of one call: a fit, or answers to at most 5000 rows")

    @model_validator(mode="after")
    def _features_that_last(self) -> PythonTeacher:
        if self.features and self.learns:
            raise ValueError(
                "features: those of a teacher that learns would be others after each fit: write `learns: false`, or "
                "give the part that does not change as a teacher of its own"
            )
        return self

    @property
    def is_fitted(self) -> bool:
        return self.learns

    @property
    def gives_features(self) -> bool:
        return self.features

    @property
    def may_offer_text_encoder(self) -> bool:
        return True

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout


class ModuleTeacher(TeacherSection):
    """A torch module as it is; not fitted here."""

    kind: Literal["module"]
    target: Target = Field(description="'module:factory' → torch.nn.Module")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    weights: str | None = Field(default=None, description="safetensors file with the module's state, by path")
    encode: Target | None = Field(default=None, description="'module:function' rows → float32 array or tensor [n, …]")
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="instead of `encode`: number columns as they are, float32 [n, D]"
    )
    answers: Literal["logits", "probabilities"] = Field(description="what the module gives, [n, K]")
    batch_size: int = Field(default=1024, ge=1, description="rows per forward pass")
    features: bool = Field(
        default=False, description="keep what the module's `features(encoded)` gives, float32 [n, D]"
    )
    timeout: Length = Field(default=_TIMEOUT, description="of one call: answers to at most 5000 rows")

    @model_validator(mode="after")
    def _one_way_in(self) -> ModuleTeacher:
        if (self.encode is None) == (self.columns is None):
            raise ValueError("give either `encode`, a function, or `columns`, numbers to be fed as they are")
        return self

    @property
    def gives_features(self) -> bool:
        return self.features

    @property
    def may_offer_text_encoder(self) -> bool:
        return True

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_mistakes(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _mistakes_of_columns(self.columns, "number", columns)


class MlflowTeacher(TeacherSection):
    """A model from MLflow; not fitted here. An ONNX graph, a torch program or an agent's variant is read as data.

    Any other model brings code or pickles of its author, which run when it is loaded.
    """

    kind: Literal["mlflow"]
    uri: str = Field(description="'models:/name@alias', 'models:/name/7', 'models:/m-…' or 'runs:/id/path'")
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="columns that it is given; absent: all of the agent's"
    )
    answers: Literal["logits", "probabilities"] = Field(
        default="probabilities",
        description="what it gives: [n, K], or columns named after the actions, or `p_<action>`",
    )
    timeout: Length = Field(default=_TIMEOUT, description="of one call: answers to at most 5000 rows")
    trusts_code: bool = Field(
        default=False, description="let code and pickles that it brings run here; only with a version and `digest`"
    )
    digest: str | None = Field(
        default=None, pattern=r"^sha256:[0-9a-f]{64}$",
        description="of the model's files; others are refused. Where it is needed, the message says what it is",
    )  # fmt: skip

    @model_validator(mode="after")
    def _trusts_what_is_pinned(self) -> MlflowTeacher:
        if self.trusts_code and "@" in self.uri:
            raise ValueError(
                f"trusts_code: {self.uri} may be another model tomorrow: name a version, such as "
                f"'{self.uri.partition('@')[0]}/7', and the `digest` of its files"
            )
        if self.trusts_code and self.digest is None:
            raise ValueError(
                "trusts_code: needs the `digest` of the files that were looked at: leave trusts_code out once, and the "
                "message says what it is"
            )
        return self

    @field_validator("uri")
    @classmethod
    def _a_version(cls, uri: str) -> str:
        if not re.fullmatch(r"models:/([^/@\s]+@[^/@\s]+|[^/@\s]+/\d+|m-\w+)|runs:/\S+/\S+", uri):
            raise ValueError(
                f"{uri!r} must be 'models:/name@alias', 'models:/name/7', 'models:/m-…' or 'runs:/id/path'"
            )
        return uri

    non_identity_fields = TeacherSection.non_identity_fields | {"uri", "trusts_code", "digest"}  # the pinned uri counts

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_mistakes(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _mistakes_of_columns(self.columns, None, columns)


class EndpointTeacher(TeacherSection):
    """A language model behind the OpenAI protocol (chat completions)."""

    kind: Literal["endpoint"]
    base_url: str = Field(description="address of the API, such as 'http://127.0.0.1:8080/v1'")
    model: str = Field(min_length=1, description="the model's name at that address")
    system: str = Field(default="", description="system message")
    prompt: str = Field(
        description="user message; {column} stands for the row's value, {actions} for the list of actions"
    )
    structured: bool = Field(
        default=True, description="hold the answer to a JSON schema; a server that refuses it is asked without"
    )
    probabilities: Literal["auto", "logprobs", "votes"] = Field(
        default="auto",
        description="from log-probabilities of the answer's tokens, or from votes; auto: as it is offered",
    )
    votes: int = Field(default=5, ge=1, le=100, description="answers drawn for one row, where there are no logprobs")
    smoothing: float = Field(default=1.0, gt=0, description="votes added to each action (Laplace)")
    temperature: float = Field(default=1.0, ge=0, le=2, description="of the votes; logprobs are asked for at 0")
    max_output_tokens: int = Field(default=32, ge=1, description="of one answer")
    concurrency: int = Field(default=4, ge=1, le=256, description="requests under way at once")
    timeout: Length = Field(default=timedelta(seconds=30), description="of one request, from sending to the last byte")
    retries: int = Field(default=4, ge=0, le=20, description="after 408, 409, 429, 5xx, time-outs and cut connections")
    key_variable: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="environment variable that holds the key"
    )
    price_per_million_input: float = Field(default=0.0, ge=0, description="money per million tokens sent")
    price_per_million_output: float = Field(default=0.0, ge=0, description="money per million tokens answered")

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, address: str) -> str:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "must hold no user, password or query: put the key into the variable that `key_variable` names"
            )
        return address

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names between braces in the prompt.

        :raises ValueError: if the braces do not match, or hold more than a name.
        """
        found = [field for _, field, _, _ in Formatter().parse(self.prompt) if field is not None]
        if strange := [field for field in found if not re.fullmatch(r"[^.\[\]{}]+", field)]:
            raise ValueError(f"{{{strange[0]}}} must be a column's name alone; write {{{{ and }}}} for braces")
        return tuple(found)

    @model_validator(mode="after")
    def _votes_that_differ(self) -> EndpointTeacher:
        if self.probabilities == "votes" and self.votes > 1 and not self.temperature:
            raise ValueError("temperature: at 0 all votes are the same: raise it, or set `votes` to 1")
        return self

    non_identity_fields = TeacherSection.non_identity_fields | {
        "concurrency", "retries", "key_variable", "price_per_million_input", "price_per_million_output"
    }  # fmt: skip

    @property
    def is_remote(self) -> bool:
        return True

    @property
    def costs_money(self) -> bool:
        return self.price_per_million_input + self.price_per_million_output > 0

    @property
    def call_timeout(self) -> timedelta | None:
        return None  # `timeout` is of one request; a call sends many

    def column_mistakes(self, columns: Mapping[str, Column]) -> Iterator[str]:
        try:
            named = self.placeholders
        except ValueError as error:
            yield f"prompt: {error}"
            return
        known = [*columns, "actions"]
        for name in named:
            if name not in known:
                yield f"prompt: no column is called {name!r}; {_nearest(name, known, 'there are')}"
        if not set(named) & set(columns):
            yield "prompt: names no column in braces: every row would be the same question"


class Follow(Section):
    """Whether weights follow evidence."""

    follow: Literal["outcomes", "fixed"] = Field(
        default="outcomes", description="outcomes: `weight` is where they start; fixed: they stay, within members too"
    )


class Weighing(Follow):
    """How the weights of several teachers follow evidence."""

    rows: int = Field(
        default=1000, ge=50, description="training rows that teachers which are asked are weighed on, a uniform sample"
    )
    min_outcomes: int = Field(
        default=100, ge=1, description="with fewer, three or more teachers start at weights by their agreement"
    )


class EnsembleTeacher(TeacherSection):
    """Several teachers, weighted among themselves."""

    kind: Literal["ensemble"]
    members: tuple[AnyTeacher, ...] = Field(min_length=1)
    weights: Follow = Follow()


LeafTeacher = PythonTeacher | ModuleTeacher | MlflowTeacher | EndpointTeacher
AnyTeacher = Annotated[
    PythonTeacher | ModuleTeacher | MlflowTeacher | EndpointTeacher | EnsembleTeacher, Field(discriminator="kind")
]
EnsembleTeacher.model_rebuild()


class Leaf(NamedTuple):
    """A teacher that is no ensemble, where it stands and what it counts for."""

    name: str  # "outer.inner" inside an ensemble
    share: float  # of the whole mean, in 0…1
    teacher: LeafTeacher

    @property
    def learns(self) -> bool:
        """Whether it is fitted on outcomes, and so may not be asked about rows whose outcomes it has seen."""
        return self.teacher.is_fitted

    @property
    def features(self) -> bool:
        """Whether what it makes of a row inside is kept with what it says."""
        return self.teacher.gives_features


def leaves(teachers: Iterable[AnyTeacher], share: float = 1.0, above: str = "") -> tuple[Leaf, ...]:
    """Nested ensembles as one flat list: a weighted mean of weighted means is a weighted mean."""
    teachers = tuple(teachers)
    total = sum(teacher.weight for teacher in teachers)
    found: list[Leaf] = []
    for teacher in teachers:
        part, name = share * teacher.weight / total, f"{above}{teacher.name}"
        if isinstance(teacher, EnsembleTeacher):
            found += leaves(teacher.members, part, f"{name}.")
        else:
            found.append(Leaf(name, part, teacher))
    return tuple(found)


class Unit(NamedTuple):
    """What one learned weight is for: a teacher, or an ensemble whose own weights are fixed."""

    name: str
    share: float  # of the whole mean at the start, in 0…1
    leaves: tuple[Leaf, ...]  # with their shares of the whole mean at the start


def units(config: AgentConfig) -> tuple[Unit, ...]:
    """The teachers whose weights follow evidence; only one where nothing is to be followed."""
    if config.weights.follow == "fixed":
        return (Unit("teachers", 1.0, leaves(config.teachers)),)
    fixed = [f"{name}." for name in _fixed_ensembles(config.teachers)]
    found: dict[str, list[Leaf]] = {}
    for leaf in leaves(config.teachers):
        above = next((name for name in fixed if leaf.name.startswith(name)), None)
        found.setdefault(above.rstrip(".") if above else leaf.name, []).append(leaf)
    return tuple(Unit(name, sum(leaf.share for leaf in inside), tuple(inside)) for name, inside in found.items())


def _fixed_ensembles(teachers: Iterable[AnyTeacher], above: str = "") -> Iterator[str]:
    """Names of the outermost ensembles with fixed weights."""
    for teacher in teachers:
        if isinstance(teacher, EnsembleTeacher):
            name = f"{above}{teacher.name}"
            if teacher.weights.follow == "fixed":
                yield name
            else:
                yield from _fixed_ensembles(teacher.members, f"{name}.")


class Teaching(Section):
    """What a teacher must show before it may teach."""

    rows: int = Field(default=500, ge=20, description="test rows that teachers which are asked are tried on")
    margin: float = Field(
        default=0.01, ge=0, lt=0.5, description="AUC (accuracy, for more than two actions) above the base rate's"
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="one-sided")
    min_answered: float = Field(default=0.8, ge=0, le=1, description="share of those rows with a usable answer")
    min_agreement: float = Field(
        default=0.8, ge=0, le=1,
        description="with the champion's teacher (1 − total variation), where outcomes are too few to judge by",
    )  # fmt: skip


class Asking(Section):
    """Which rows of a training window the teachers are asked about; the others teach by their outcomes alone."""

    share: float = Field(default=1.0, gt=0, le=1, description="of the training rows, those that are known included")
    by: tuple[Literal["margin", "committee", "diversity"], ...] = Field(
        default=("margin", "committee", "diversity"),
        description="where to ask: the champion is unsure; it and its predecessor disagree; spread over unlike rows",
    )
    uniform_share: float = Field(
        default=0.25, gt=0, le=1, description="of the questions; it heeds neither margin nor committee"
    )
    without_outcomes: bool = Field(
        default=True, description="ask about rows too whose outcome is not known; students learn from them by knowledge"
    )

    @model_validator(mode="after")
    def _each_once(self) -> Asking:
        if len(set(self.by)) < len(self.by):
            raise ValueError("by: names something more than once")
        return self


class StudentSection(Section):
    """What a kind of student can do; ``distill/students/<kind>.py`` registers how it is made and read back."""

    @property
    def reads_text(self) -> bool:
        """Whether it has an input for text columns."""
        return False

    @property
    def initialised_by_teacher(self) -> bool:
        """Whether it begins with a teacher's text encoder."""
        return False

    @property
    def can_be_updated(self) -> bool:
        """Whether a champion of this kind can be grown and fine-tuned; else every refresh trains from the beginning."""
        return False


class TabularStudent(StudentSection):
    """Category embeddings and piecewise-linear numbers into a small MLP; preprocessing inside."""

    kind: Literal["tabular"]
    widths: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(64, 32), min_length=1, description="hidden units per layer"
    )
    bins: int = Field(default=12, ge=2, le=256, description="quantile bins of the piecewise-linear encoding")
    embedding: int = Field(default=8, ge=1, le=256, description="largest embedding width")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def can_be_updated(self) -> bool:
        return True


class BagEncoder(Section):
    """The mean of the tokens' embeddings, wherever they stand."""

    type: Literal["bag"]
    width: int = Field(default=128, ge=2, le=4096, description="values of an embedding")
    bigrams: int = Field(
        default=0, ge=0, le=1 << 20,
        description="embeddings that pairs of neighbours share by hashing; 0: pairs are not looked at",
    )  # fmt: skip


class ConvolutionEncoder(Section):
    """Filters over neighbouring tokens, each at the place where it answers most."""

    type: Literal["convolution"]
    width: int = Field(default=64, ge=2, le=4096, description="values of an embedding")
    filters: int = Field(default=64, ge=1, le=4096, description="filters of each size")
    sizes: tuple[Annotated[int, Field(ge=1, le=16)], ...] = Field(
        default=(1, 2, 3), min_length=1, description="neighbouring tokens that a filter sees"
    )

    @model_validator(mode="after")
    def _distinct(self) -> ConvolutionEncoder:
        if twice := _repeated(self.sizes):
            raise ValueError(f"sizes: names {', '.join(map(str, twice))} more than once")
        return self


class TransformerEncoder(Section):
    """A few layers of self-attention, built like BERT's, and the mean of what they give."""

    type: Literal["transformer"]
    width: int = Field(default=64, ge=2, le=4096, description="values of an embedding, and between layers")
    layers: int = Field(default=2, ge=1, le=24)
    heads: int = Field(default=4, ge=1, le=64, description="of attention; divides `width`")
    feedforward: int = Field(default=256, ge=2, le=16_384, description="hidden units between two layers")

    @model_validator(mode="after")
    def _whole_heads(self) -> TransformerEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        return self


AnyEncoder = Annotated[BagEncoder | ConvolutionEncoder | TransformerEncoder, Field(discriminator="type")]


class TextStudent(StudentSection):
    """Texts by an encoder of their tokens, beside numbers and categories, into a small MLP; tokeniser inside."""

    kind: Literal["text"]
    encoder: AnyEncoder = Field(default=BagEncoder(type="bag"), description="what makes one vector of a text's tokens")
    vocabulary: int = Field(default=4000, ge=16, le=1 << 20, description="tokens, at most")
    length: int = Field(default=32, ge=1, le=512, description="tokens of a text that are read; the rest is cut off")
    initialise: Literal["none", "teacher"] = Field(
        default="none", description="teacher: tokens, embeddings and, where they fit, layers come from a teacher's"
    )
    widths: tuple[Annotated[int, Field(ge=2, le=4096)], ...] = Field(
        default=(128,), description="hidden units per layer; []: logits are linear in the text's vector"
    )
    bins: int = Field(default=12, ge=2, le=256, description="quantile bins of the numbers' piecewise-linear encoding")
    embedding: int = Field(default=8, ge=1, le=256, description="largest embedding width of a category")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @property
    def reads_text(self) -> bool:
        return True

    @property
    def initialised_by_teacher(self) -> bool:
        return self.initialise == "teacher"

    @property
    def can_be_updated(self) -> bool:
        return True


class ModuleStudent(StudentSection):
    """A torch module of the user's own, trained from what its factory gives."""

    kind: Literal["module"]
    target: Target = Field(description="'module:factory' (columns, actions, **settings) → torch.nn.Module")
    settings: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments of the factory")


AnyStudent = Annotated[TabularStudent | TextStudent | ModuleStudent, Field(discriminator="kind")]


class LossSection(Section):
    """What every loss of knowledge has; ``distill/losses/<type>.py`` registers its term."""

    weight: float = Field(default=1.0, gt=0, description="share in the pull of knowledge, relative to the others")

    needs_features: ClassVar[bool] = False
    """Whether it compares hidden layers, and so needs a teacher that gives features."""
    min_actions: ClassVar[int] = 2
    """With fewer actions it has nothing to add."""


class Hinton(LossSection):
    """KL divergence of the softened probabilities."""

    type: Literal["hinton"]


class Decoupled(LossSection):
    """Decoupled distillation: what the outcome's action gets, and how the rest is spread over the others."""

    min_actions = 3

    type: Literal["decoupled"]
    others: float = Field(default=4.0, gt=0, description="weight of the other actions' spread against the outcome's")


class Standardised(LossSection):
    """KL divergence of logits brought to mean 0 and standard deviation 1 in each row."""

    min_actions = 3

    type: Literal["standardised"]


class Relational(LossSection):
    """Distances and angles between rows, the teacher's against the student's."""

    type: Literal["relational"]
    angles: float = Field(default=2.0, ge=0, description="weight of the angles against the distances")
    rows: int = Field(default=64, ge=3, le=512, description="rows of a batch that are compared: time grows with rows³")


class Hints(LossSection):
    """The student's last hidden layer, projected, against the teacher's features."""

    needs_features = True

    type: Literal["hints"]


KnowledgeLoss = Annotated[Hinton | Decoupled | Standardised | Relational | Hints, Field(discriminator="type")]


class Augment(Section):
    """Rows made up near the observed ones, about which the teachers are asked too."""

    copies: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="made-up rows per observed one; null: 3 where asking is free (no endpoint, no budget), else 0",
    )
    fill_to: int = Field(default=20_000, ge=0, description="rows, observed and made up, beyond which none are made up")
    mix: float = Field(default=0.5, gt=0, le=1, description="probability that a value is taken from the nearest row")
    closeness: float = Field(
        default=1.0, gt=0, description="a number is drawn around the nearest row's, at (their difference) / closeness"
    )
    reworded: float = Field(
        default=0.2, gt=0, le=1, description="share of the words changed, in half of the texts; the others are crossed"
    )


class Distillation(Section):
    """How the student learns from knowledge and outcomes."""

    controller: Literal["adaptive", "fixed"] = Field(
        default="adaptive", description="adaptive: temperature and outcome_weight are where it begins; fixed: they stay"
    )
    control: bool = Field(
        default=True, description="train a student at the fixed settings too, to show what adapting has earned"
    )
    losses: tuple[KnowledgeLoss, ...] = Field(
        default=(Hinton(type="hinton"),), min_length=1, description="what pulls the student towards the teacher"
    )
    augment: Augment = Field(default=Augment(), description="rows made up for the teachers to speak about")
    patience: int | None = Field(
        default=None, ge=1, description="epochs without a better held-out loss until the training stops; null: never"
    )
    temperature: float = Field(default=2.0, gt=0, le=20, description="softens teacher and student alike")
    outcome_weight: float = Field(
        default=0.3, ge=0, le=1, description="of a row's outcome; 1 − it goes to its knowledge"
    )
    epochs: int = Field(default=8, ge=1, le=1000)
    batch_size: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=4e-3, gt=0, lt=1)
    weight_decay: float = Field(default=1e-2, ge=0, lt=1)
    averaging: float = Field(
        default=0.995, ge=0, lt=1, description="decay of the moving average of the weights, per step"
    )
    unknown_rate: float = Field(
        default=0.02, ge=0, lt=1, description="share of category codes and tokens hidden while learning"
    )
    validation_every: int = Field(
        default=10, ge=2, description="every n-th day of the training window is kept to choose among variants"
    )
    folds: int = Field(default=4, ge=2, le=20, description="time blocks of the teacher's cross-fitting")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _each_loss_once(self) -> Distillation:
        types = [loss.type for loss in self.losses]
        if twice := sorted({repr(name) for name in types if types.count(name) > 1}):
            raise ValueError(f"losses: {', '.join(twice)} comes more than once; give it one entry and a weight")
        return self


class Update(Section):
    """How a champion's student takes in what is new, instead of a new student."""

    steps: int = Field(default=200, ge=1, le=100_000, description="of the optimiser")
    memory: int = Field(default=2000, ge=1, description="rows ever learned that are kept with what the student said")
    least_old_share: float = Field(default=0.2, ge=0, le=1, description="what the memory counts at least in each step")
    min_rows: int = Field(default=200, ge=20, description="new rows with knowledge; fewer: the refresh redistils")


# --------------------------------------------------------------------------- watching, proving


class Thresholds(Section):
    """A measure that exceeds its threshold calls for a refresh; absent: the measure is only reported."""

    psi: float | None = Field(default=None, gt=0, description="of any watched column")
    ks: float | None = Field(default=None, gt=0, lt=1, description="Kolmogorov–Smirnov distance of any watched number")
    output_psi: float | None = Field(default=None, gt=0, description="PSI of the student's confidence")
    disagreement: float | None = Field(
        default=None, gt=0, le=1, description="rise of mean total variation between teacher and student"
    )
    auc_drop: float | None = Field(
        default=None, gt=0, le=1, description="fall of AUC on known outcomes since the champion was proved; two actions"
    )
    accuracy_drop: float | None = Field(
        default=None, gt=0, le=1, description="fall of accuracy on known outcomes since the champion was proved"
    )
    shifted_columns: int = Field(default=1, ge=1, description="how many columns must exceed `psi`, or `ks`")


class FalseAlarms(Section):
    """How often the evidence may be wrong: on average no more than ``at_most`` false refreshes ``per`` period.

    One budget for the agent: its evidence processes share it.
    """

    at_most: float = Field(default=1.0, gt=0, description="false refreshes")
    per: Length = timedelta(days=90)


class Audit(Section):
    """The rows that the teacher is asked about, to see whether the student still agrees with it."""

    rows: int = Field(default=50, ge=1, description="draws per step of evidence (`watch.every`)")
    uniform_share: float = Field(
        default=0.5, gt=0, le=1, description="share drawn uniformly; the rest where the student is unsure or data moved"
    )


class Responses(Section):
    """What a watch asks for, by what it has found."""

    harmful_drift: Mode = Field(default="redistil", description="where evidence shows harm; after a refusal: redistil")
    drift: Mode = Field(default="redistil", description="where a plain threshold is crossed; after a refusal: redistil")


class Watch(Section):
    """When and by what drift is noticed: a budget of false alarms, plain thresholds, or both."""

    every: Length = Field(default=timedelta(hours=1), description="one step of evidence; schedule the watch alike")
    false_alarms: FalseAlarms | None = Field(
        default=FalseAlarms(), description="budget of the evidence processes; null: thresholds alone decide"
    )
    tolerance: float = Field(
        default=0.02, ge=0, lt=1, description="rise of disagreement, or of the Brier score, that is no harm"
    )
    audit: Audit = Audit()
    thresholds: Thresholds = Thresholds()
    responses: Responses = Responses()
    cooldown: Duration = Field(default=timedelta(0), description="no second refresh sooner than this")
    clock: Literal["wall", "newest_observation"] = Field(
        default="wall", description="what 'now' is when a run names no time; the second suits a replayed history"
    )

    @property
    def average_run_length(self) -> float | None:
        """Steps until a false alarm, on average, that the budget allows; None without a budget."""
        if self.false_alarms is None:
            return None
        return max(1.0, self.false_alarms.per / self.every / self.false_alarms.at_most)

    @model_validator(mode="after")
    def _something_decides(self) -> Watch:
        if self.false_alarms is None and all(
            getattr(self.thresholds, name) is None
            for name in ("psi", "ks", "output_psi", "disagreement", "auc_drop", "accuracy_drop")
        ):
            raise ValueError("without a budget of false_alarms and without a threshold nothing would ever be noticed")
        return self


class Budgets(Section):
    """What the device and the purse allow; absent means unlimited."""

    max_bytes: int | None = Field(default=None, ge=1, description="of a variant's folder (bytes)")
    max_p95_ms: float | None = Field(default=None, gt=0, description="of one row's decision (ms)")
    max_quality_loss: float = Field(
        default=0.005, ge=0, le=1, description="AUC (accuracy, for more than two actions) a variant may lose"
    )
    max_teacher_calls: int | None = Field(
        default=None, ge=1, description="of one refresh: requests to endpoints, rows put to other teachers"
    )
    max_teacher_cost: float | None = Field(default=None, gt=0, description="of one refresh, in the unit of the prices")
    max_watch_calls: int | None = Field(
        default=None, ge=1, description="the same for all watches of one day of the agent's life"
    )
    max_watch_cost: float | None = Field(default=None, gt=0, description="the same, in the unit of the prices")


class Promotion(Section):
    """What a challenger must prove."""

    approval: Literal["automatic", "manual"] = "automatic"
    non_inferiority_margin: float = Field(default=0.005, ge=0, le=1, description="AUC, or accuracy, it may be worse by")
    total_margin: float | None = Field(
        default=None, ge=0, le=1,
        description="what promotions in a row may lose together, below the last champion that was proven better than "
        "its predecessors; null: twice `non_inferiority_margin`",
    )  # fmt: skip
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="one-sided")
    cluster: Duration = Field(
        default=timedelta(hours=1), description="rows observed in the same such stretch are one piece of evidence"
    )
    slices: tuple[str, ...] = Field(default=(), description="categorical columns; each value is judged too")
    slice_margin: float = Field(default=0.02, ge=0, le=1, description="the same on a slice, and on the past window")
    min_slice_rows: int = Field(default=300, ge=20, description="smaller slices are reported, not judged")

    @model_validator(mode="after")
    def _the_sum_is_no_less_than_its_parts(self) -> Promotion:
        if self.total_margin is not None and self.total_margin < self.non_inferiority_margin:
            raise ValueError(
                f"total_margin: is {self.total_margin:g}, and a single promotion may lose `non_inferiority_margin`, "
                f"{self.non_inferiority_margin:g}: lower that, or raise this"
            )
        return self

    @property
    def all_margins(self) -> float:
        """What promotions in a row may lose together."""
        return 2 * self.non_inferiority_margin if self.total_margin is None else self.total_margin


class AgentConfig(Section):
    """A whole agent file."""

    agent: Name
    description: str = ""
    actions: tuple[Action, ...] = Field(
        min_length=2, description="any text; for two, the second is the positive one of the AUC"
    )
    observations: Observations
    outcomes: Outcomes
    teachers: tuple[AnyTeacher, ...] = Field(min_length=1)
    weights: Weighing = Weighing()
    teaching: Teaching = Teaching()
    asking: Asking = Asking()
    student: AnyStudent
    distillation: Distillation = Distillation()
    update: Update = Update()
    compression: Compression = Compression()
    windows: Windows
    watch: Watch
    budgets: Budgets = Budgets()
    promotion: Promotion = Promotion()
    runtime: Runtime = Runtime()
    upkeep: Upkeep = Upkeep()
    importing: Importing | None = Field(
        default=None, description="where the files of `stillhouse import` have what; null: called as in the tables"
    )
    _file: str | None = PrivateAttr(default=None)

    @property
    def file(self) -> str:
        """The agent file as an error names it: the path it was read from, seen from the working directory."""
        if self._file is None:
            return f"agents/{self.agent}.yaml"
        path, here = Path(self._file), Path.cwd()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    @property
    def copies(self) -> float:
        """Made-up rows per observed one."""
        given = self.distillation.augment.copies
        budgeted = self.budgets.max_teacher_calls is not None or self.budgets.max_teacher_cost is not None
        remote = any(leaf.teacher.is_remote for leaf in leaves(self.teachers))
        return given if given is not None else 0.0 if budgeted or remote else 3.0

    @property
    def begins_like_teacher(self) -> bool:
        """Whether the student begins with a teacher's text encoder."""
        return self.student.initialised_by_teacher

    @model_validator(mode="after")
    def _consistent(self) -> AgentConfig:
        for key, values, what in (
            ("actions", self.actions, "actions"),
            *((key, [t.name for t in members], "names of teachers") for key, members in _siblings(self.teachers)),
        ):
            if twice := _repeated(values):
                raise ValueError(f"{key}: {what} must differ, and {', '.join(map(repr, twice))} comes more than once")
        featured = [leaf.name for leaf in leaves(self.teachers) if leaf.features]
        if len(featured) > 1:
            raise ValueError(
                f"teachers: {', '.join(map(repr, featured))} are to give features, and students match those of one: "
                f"write `features: true` once"
            )
        for place, loss in enumerate(self.distillation.losses):
            if loss.needs_features and not featured:
                raise ValueError(
                    f"distillation.losses.{place}.type: {loss.type!r} needs a teacher that gives features: write "
                    f"`features: true` with one that can, or take 'relational', which needs none"
                )
            if len(self.actions) < loss.min_actions:
                raise ValueError(
                    f"distillation.losses.{place}.type: {loss.type!r} has nothing to add where there are two actions: "
                    f"take 'hinton'"
                )
        if strange := [s for s in self.promotion.slices if s not in self.observations.categories]:
            raise ValueError(
                f"promotion.slices: {', '.join(map(repr, strange))} is no category column of `observations`; "
                f"those are: {', '.join(self.observations.categories) or 'none'}"
            )
        if mistakes := [*_mistakes_of_teachers(self), *_mistakes_of_student(self)]:
            raise ValueError("\n".join(mistakes))
        learned = self.windows.train + self.windows.test + self.outcomes.delay
        if self.upkeep.keep is not None and self.upkeep.keep < learned:
            raise ValueError(
                f"upkeep.keep: rows of {self.upkeep.keep} are kept, and a refresh learns from and is judged on rows of "
                f"{learned} (windows.train, windows.test and outcomes.delay): keep at least those"
            )
        if mistakes := [*_mistakes_of_windows(self), *_mistakes_of_importing(self)]:
            raise ValueError("\n".join(mistakes))
        watched_columns = [column for column in self.observations.columns.values() if column.drift]
        texts = len(TEXT_MEASURES) * sum(column.type == "text" for column in watched_columns)
        numbers = texts + sum(column.type == "number" for column in watched_columns)
        watched = numbers + sum(column.type == "category" for column in watched_columns)
        thresholds = self.watch.thresholds
        if thresholds.auc_drop is not None and len(self.actions) > 2:
            raise ValueError(
                f"watch.thresholds.auc_drop: an agent with {len(self.actions)} actions is judged by its accuracy, and "
                f"the AUC is that of two actions: write `accuracy_drop` instead"
            )
        if thresholds.psi is not None and thresholds.shifted_columns > watched:
            raise ValueError(
                f"watch.thresholds.shifted_columns: is {thresholds.shifted_columns}, but {watched} columns are "
                f"watched: `psi` could never be crossed"
            )
        if thresholds.ks is not None and thresholds.shifted_columns > numbers:
            raise ValueError(
                f"watch.thresholds.shifted_columns: is {thresholds.shifted_columns}, but {numbers} numbers are "
                f"watched: `ks` could never be crossed"
            )
        return self


def _siblings(teachers: tuple[AnyTeacher, ...], key: str = "teachers") -> Iterator[tuple[str, tuple[AnyTeacher, ...]]]:
    """Every list of teachers, with its key."""
    yield key, teachers
    for place, teacher in enumerate(teachers):
        if isinstance(teacher, EnsembleTeacher):
            yield from _siblings(teacher.members, f"{key}.{place}.members")


def _mistakes_of_teachers(config: AgentConfig) -> Iterator[str]:
    """``key: what is wrong`` of columns that teachers name and the agent does not have."""
    columns = config.observations.columns
    for above, teachers in _siblings(config.teachers):
        for place, teacher in enumerate(teachers):
            yield from (f"{above}.{place}.{mistake}" for mistake in teacher.column_mistakes(columns))


def _mistakes_of_columns(names: Iterable[str] | None, kind: str | None, columns: Mapping[str, Column]) -> Iterator[str]:
    for name in names or ():
        if wrong := _wrong_column(name, kind, columns):
            yield f"columns: {wrong}"


def _mistakes_of_windows(config: AgentConfig) -> Iterator[str]:
    """``key: what is wrong`` of a current window that could never have enough rows to be judged."""
    windows, least = config.windows, config.observations.min_rows
    limits = {"windows.sample": windows.sample}
    if isinstance(windows.current, NewestRows):
        limits["windows.current.rows"] = windows.current.rows
    for key, most in limits.items():
        if most is not None and most < least:
            yield f"{key}: is {most}, and a window of fewer rows than `observations.min_rows`, {least}, is not judged"


def _mistakes_of_importing(config: AgentConfig) -> Iterator[str]:
    """``key: what is wrong`` of names that the agent does not have."""
    importing = config.importing
    if importing is None:
        return
    for name in importing.columns:
        if name not in config.observations.columns:
            yield f"importing.columns: no column is called {name!r}; " + _nearest(
                name, config.observations.columns, "there are"
            )
    for action in importing.actions.values():
        if action not in config.actions:
            yield f"importing.actions: no action is called {action!r}; {_nearest(action, config.actions, 'there are')}"
    named = (importing.decision and importing.decision.probabilities) or None
    if named is not None and set(named) != set(config.actions):
        yield f"importing.decision.probabilities: must name each action once: {', '.join(map(shown, config.actions))}"


def _mistakes_of_student(config: AgentConfig) -> Iterator[str]:
    """``key: what is wrong`` of a student that does not read what the agent sees, or cannot be made as it says."""
    student, texts = config.student, config.observations.texts
    if not student.reads_text:
        if texts:
            yield f"student.kind: {student.kind!r} reads no text, and {texts[0]!r} is a text column: take 'text'"
        return
    if not texts:
        yield f"student.kind: {student.kind!r} needs a text column, and `observations` has none: take 'tabular'"
    could = any(leaf.teacher.may_offer_text_encoder for leaf in leaves(config.teachers))
    if student.initialised_by_teacher and not could:
        yield (
            "student.initialise: 'teacher' needs one that runs here, of kind 'python' or 'module', with a method "
            "`text_encoder`: write 'none'"
        )


def _repeated(values: Iterable[_Value]) -> list[_Value]:
    return [value for value, count in Counter(values).items() if count > 1]


# --------------------------------------------------------------------------- loading


def load(agent: str) -> AgentConfig:
    """The agent of that name from :func:`agents_folder`.

    :raises ConfigError: if the name is not one, there is no such file, or the file is wrong.
    """
    folder = agents_folder()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", agent) or agent not in known:
        close = difflib.get_close_matches(agent, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
        raise ConfigError(f"no agent {agent!r} in {folder} ({hint}); STILLHOUSE_AGENTS names another folder")
    config = load_file(folder / f"{agent}.yaml")
    if config.agent != agent:
        raise ConfigError(f"{folder / agent}.yaml: agent: is {config.agent!r}; it must be the file's name, {agent!r}")
    return config


_MOST_BYTES = 512 * 1024
_MOST_MISTAKES = 20
"""That are told at once."""


def load_file(path: Path | str) -> AgentConfig:
    """Read, check and freeze one agent file.

    :raises ConfigError: naming the file, the line, the key and what to do.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: cannot be read (it is not a file)")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than the {_MOST_BYTES:,} bytes that an agent file may have")
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a path with a NUL
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parsed(path, text)


@lru_cache(maxsize=32)  # every task of a run asks for its agent; a changed text is another key
def _parsed(path: Path, text: str) -> AgentConfig:
    try:
        root, content = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1: must be a mapping with the keys {', '.join(AgentConfig.model_fields)}")
    if twice := list(islice(_written_twice(root), _MOST_MISTAKES)):
        raise ConfigError("\n".join(f"{path}:{line}" for line in twice))
    try:
        config = AgentConfig.model_validate(content)
    except ValidationError as error:
        lines = [f"{path}:{line}" for line in islice(_explain(error, root, content), _MOST_MISTAKES + 1)]
        if len(lines) > _MOST_MISTAKES:
            lines[-1] = f"and more: these are the first {_MOST_MISTAKES} mistakes"
        raise ConfigError("\n".join(lines)) from error
    config._file = str(path)
    return config


def _explain(error: ValidationError, root: yaml.Node | None, content: Any) -> Iterator[str]:
    """One line per mistake: line number, dotted key, what is wrong and what to write instead."""
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "too_short" and len(mistake["input"]) >= mistake["ctx"]["min_length"]:
            continue  # pydantic counts only the entries that are right; what is wrong with the others is said already
        keys, tags = _without_tags(mistake["loc"], content)
        above, messages = _message(keys, tags, mistake)
        for message in messages.split("\n"):
            keys, message = _named(above, message)
            yield f"{_line(root, keys)}: {'.'.join(map(str, keys)) or 'the file'}: {message}"


def _named(above: Keys, message: str) -> tuple[Keys, str]:
    """A message that begins with the key it is about, such as ``rules.0.low: …``, is about that key below."""
    found = re.match(r"([a-z_][a-z_.0-9]*): ", message)
    if not found:
        return above, message
    return above + tuple(int(key) if key.isdigit() else key for key in found[1].split(".")), message[found.end() :]


Keys = tuple[int | str, ...]
_TAGS = ("type", "method", "kind")  # keys that say which member of a union a section is


def _message(keys: Keys, tags: dict[int, str], mistake: Mapping[str, Any]) -> tuple[Keys, str]:
    """The key that a mistake is about, and the mistake in a reader's words instead of pydantic's."""
    kind, given, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    if kind == "invalid_key" or (keys and keys[-1] == "[key]"):
        above = keys[:-1] if kind == "invalid_key" else keys[:-2]
        return above, f"the key {_shown(given)} must be text: put it in quotes"
    match kind:
        case "extra_forbidden":
            return keys, f"unknown key; {_nearest(keys[-1], _fields_at(keys[:-1], tags), 'known keys')}"
        case "missing":
            about = _fields_at(keys[:-1], tags).get(str(keys[-1]), {}).get("description")
            return keys, "is required and missing" + (f": {about}" if about else "")
        case "union_tag_invalid" | "union_tag_not_found":
            keys = (*keys, context["discriminator"].strip("'"))
            known = _tags_at(keys[:-1], tags)
            if kind == "union_tag_not_found":
                return keys, f"is required and missing: one of {', '.join(known)}"
            return keys, f"{context['tag']!r} is not known; {_nearest(context['tag'], known, 'known are')}"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"]) or re.split(r", | or ", context["expected"])
            return keys, f"{given!r} is not known; {_nearest(given, known, 'known are')}"
        case "model_type" | "model_attributes_type" | "dict_type":
            fields = ", ".join(_fields_at(keys, tags))
            return keys, f"must be a mapping, not {_shown(given)}" + (f"; its keys are: {fields}" if fields else "")
        case "value_error":
            return keys, mistake["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return keys, f"{given!r} must be {_PATTERNS[context['pattern']]}"
        case _ if kind.split("_")[0] in ("datetime", "timezone"):
            return keys, f"{_shown(given)} must be a moment with a time zone, such as 2013-01-01T00:00:00Z"
    for start, words in _WORDS.items():
        if kind.startswith(start):
            return keys, f"{words.format(**{k: _shown(v) for k, v in context.items()})}, not {_shown(given)}"
    return keys, f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}, got {_shown(given)}"


_WORDS = {
    "string_type": "must be text: put it in quotes",
    "tuple_type": "must be a list, such as [a, b]",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must have at least {min_length} entries",
}
_PATTERNS = {
    r"^[a-z][a-z0-9_-]{0,62}$": "a name: a lower-case letter, then lower-case letters, digits, _ or -, at most 63",
    r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": "of the form 'package.module:object'",
    r"^sha256:[0-9a-f]{64}$": "'sha256:' and 64 hexadecimal digits, as the message says that refuses the model",
    r"^[A-Z][A-Z0-9_]*$": "the name of an environment variable: a capital letter, then capitals, digits or _",
}


_MOST_SHOWN = 200  # characters


def _shown(value: object) -> str:
    """A value as its writer would recognise it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case date():
            return str(value)
        case float() if value.is_integer():
            return f"{value:.0f}"
        case _:
            return text if len(text := repr(value)) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _nearest(word: object, known: Iterable[str], otherwise: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise}: {', '.join(known)}"


def _without_tags(loc: Keys, content: Any) -> tuple[Keys, dict[int, str]]:
    """The keys as the file has them, and the tags that pydantic puts between them, by the place before which."""
    keys: list[int | str] = []
    tags: dict[int, str] = {}
    for key in loc:
        is_tag = isinstance(content, dict) and key in (content.get(tag) for tag in _TAGS)
        if is_tag and keys and len(keys) not in tags:
            tags[len(keys)] = str(key)
            continue
        keys.append(key)
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            content = None
    return tuple(keys), tags


def _written_twice(node: yaml.Node | None, above: str = "") -> Iterator[str]:
    """One line per key that a mapping has more than once; YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            key, line = f"{above}{name.value}", name.start_mark.line + 1
            if key in first:
                yield f"{line}: {key}: is written twice (first in line {first[key]}); remove one"
            first.setdefault(key, line)
            yield from _written_twice(value, f"{key}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _written_twice(value, f"{above}{number}.")


def _line(node: yaml.Node | None, keys: Keys) -> int:
    """Line (1-based) of the deepest node on the way to ``keys`` that the file has."""
    line = 1 if node is None else node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(key):
                    node, line = value, name.start_mark.line + 1
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line


def _fields_at(keys: Keys, tags: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """The fields that the section at ``keys`` knows, with their JSON schemas."""
    return {name: field for part in _sections_at(keys, tags) for name, field in part.get("properties", {}).items()}


def _tags_at(keys: Keys, tags: Mapping[int, str]) -> list[str]:
    """The tags of the union at ``keys``."""
    return [tag for part in _sections_at(keys, tags) for tag in _tags_of(part)]


@cache
def _schema() -> dict[str, Any]:
    return AgentConfig.model_json_schema()


def _sections_at(keys: Keys, tags: Mapping[int, str]) -> list[dict[str, Any]]:
    schema = _schema()
    here = [schema]
    for place, key in enumerate(keys, start=1):
        here = [_resolved(child, schema) for parent in here for child in _children(parent, key)]
        if place in tags:
            here = [part for part in here if tags[place] in _tags_of(part)]
    return here


def _tags_of(section: dict[str, Any]) -> list[str]:
    fields = section.get("properties", {})
    return [fields[name]["const"] for name in _TAGS if "const" in fields.get(name, {})]


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    found: dict[str, Any] = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else part
    return found


def _children(part: dict[str, Any], key: int | str) -> Iterator[dict[str, Any]]:
    child = part.get("items") if isinstance(key, int) else part.get("properties", {}).get(key)
    if child is None and isinstance(part.get("additionalProperties"), dict):
        child = part["additionalProperties"]
    if child is not None:
        yield from child.get("oneOf", child.get("anyOf", [child]))
