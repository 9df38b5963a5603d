"""The whole agent file, and the checks across its sections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, PrivateAttr, model_validator

from stillhouse.config.base import Action, Name, Section
from stillhouse.config.compression import Compression
from stillhouse.config.contract import TEXT_MEASURES, Observations, OutcomeSettings
from stillhouse.config.distillation import Distillation, UpdateSettings
from stillhouse.config.explain import find_repeated, suggest
from stillhouse.config.front_door import FrontDoor
from stillhouse.config.importing import Importing
from stillhouse.config.labels import fill_defaults, label_errors
from stillhouse.config.promotion import Budgets, Promotion
from stillhouse.config.quality import QualitySettings
from stillhouse.config.runtime import Runtime, Upkeep
from stillhouse.config.students import AnyStudent
from stillhouse.config.teachers import AnyTeacher, Asking, EnsembleTeacher, TeacherWeighting, Teaching, leaves
from stillhouse.config.watching import Watch
from stillhouse.config.windows import NewestRows, Windows
from stillhouse.records import COLUMN_DISTANCES, LabelKind, Words, words_for
from stillhouse.shown import escape_line

__all__ = ["AgentConfig", "Margins"]


class Margins(NamedTuple):
    """By how much a challenger may be worse than the champion, in the unit of the named measure.

    :ivar test: on the test window.
    :ivar total: on the test window, against earlier champions: what promotions in a row may lose together.
    :ivar slice: on a slice, and on a window that must be remembered.
    """

    test: float
    total: float
    slice: float


_MIN_TRAIN_ROWS = 200
_MIN_ROWS_PER_ACTION = 20


class AgentConfig(Section):
    """A whole agent file.

    >>> import stillhouse
    >>> flights = stillhouse.load_config("flights")
    >>> flights.actions, flights.student.kind
    (('on_time', 'late'), 'tabular')
    """

    agent: Name
    description: str = ""
    actions: tuple[Action, ...] = Field(
        min_length=2,
        description="what the agent can decide; for two actions, the second is the positive class of the AUC",
    )
    observations: Observations
    outcomes: OutcomeSettings | None = Field(
        default=None,
        description="where the true actions come from; null: there are none, and quality is agreement with the teacher",
    )
    quality: QualitySettings = QualitySettings()
    teachers: tuple[AnyTeacher, ...] = Field(min_length=1)
    weights: TeacherWeighting = TeacherWeighting()
    teaching: Teaching = Teaching()
    asking: Asking = Asking()
    student: AnyStudent
    distillation: Distillation = Distillation()
    update: UpdateSettings = UpdateSettings()
    compression: Compression = Compression()
    windows: Windows
    watch: Watch
    budgets: Budgets = Budgets()
    promotion: Promotion = Promotion()
    runtime: Runtime = Runtime()
    upkeep: Upkeep = Upkeep()
    front_door: FrontDoor | None = Field(
        default=None, description="the task of `stillhouse serve --upstream` that the agent decides; null: none"
    )
    importing: Importing | None = Field(
        default=None,
        description="maps columns of the files of `stillhouse import` to table columns; null: same names",
    )
    _file: str | None = PrivateAttr(default=None)
    _folder: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> str:
        """The path of the agent file for error messages: relative to the working directory where it lies below it."""
        if self._file is None:
            return f"agents/{self.agent}.yaml"
        path, working_directory = Path(self._file), Path.cwd()
        return str(path.relative_to(working_directory) if path.is_relative_to(working_directory) else path)

    @property
    def folder(self) -> Path | None:
        """The folder of the agent file, where its Python may lie; None if it was not read from a file."""
        return self._folder

    @property
    def labels_are(self) -> LabelKind:
        """What rows are labelled with: outcomes, or answers that the teacher gave without regard to the champion."""
        return "teacher answers" if self.outcomes is None else "outcomes"

    @property
    def words(self) -> Words:
        """The words for the labels on every surface.

        >>> import stillhouse
        >>> stillhouse.load_config("flights").words.accuracy
        'accuracy'
        """
        return words_for(self.labels_are)

    @property
    def shows_examples(self) -> bool:
        """Whether observed texts may stand as examples on pages: not those of the front door, unless it says so."""
        return self.front_door is None or self.front_door.examples

    @property
    def label_delay(self) -> timedelta:
        """Time until a label is known: ``outcomes.delay``; an answer of the teacher is known at once."""
        return timedelta(0) if self.outcomes is None else self.outcomes.delay

    @property
    def block_delay(self) -> timedelta:
        """Time after the end of a block of rows until its labels are complete.

        That is ``outcomes.delay``. Without outcomes it is a step of evidence (``watch.every``), because a row's answer
        is known at the end of the step that it was audited in.
        """
        return self.watch.every if self.outcomes is None else self.outcomes.delay

    @property
    def labels_depend_on_decision(self) -> bool:
        """Whether a decision changes which labels are seen: never, where the teacher is asked blindly."""
        return self.outcomes is not None and self.outcomes.depend_on_decision

    @property
    def synthetic_copies(self) -> float:
        """Synthetic rows per observed row: ``distillation.augment.copies``, or its default."""
        copies = self.distillation.augment.copies
        has_budget = self.budgets.max_teacher_calls is not None or self.budgets.max_teacher_cost is not None
        is_remote = any(leaf.teacher.is_remote for leaf in leaves(self.teachers))
        return copies if copies is not None else 0.0 if has_budget or is_remote else 3.0

    @property
    def min_train_rows(self) -> int:
        """Fewest training rows with outcomes: ``windows.min_train_rows``, or its default for these actions."""
        return self.windows.min_train_rows or max(_MIN_TRAIN_ROWS, _MIN_ROWS_PER_ACTION * len(self.actions))

    @property
    def margins(self) -> Margins:
        """By how much a challenger may be worse, in the unit of the named measure: as written, or the defaults.

        >>> import stillhouse
        >>> stillhouse.load_config("flights").margins
        Margins(test=0.01, total=0.02, slice=0.02)
        """
        promotion, default = self.promotion, self.quality.default_margin
        test = default if promotion.non_inferiority_margin is None else promotion.non_inferiority_margin
        return Margins(
            test=test,
            total=2 * test if promotion.total_margin is None else promotion.total_margin,
            slice=4 * default if promotion.slice_margin is None else promotion.slice_margin,
        )

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_without_outcomes(cls, sections: Any) -> Any:
        return fill_defaults(sections) if isinstance(sections, dict) else sections

    @model_validator(mode="after")
    def _check_across_sections(self) -> AgentConfig:
        for errors_of in _CHECKS:
            if errors := list(errors_of(self)):
                raise ValueError("\n".join(errors))
        return self


# --------------------------------------------------------------------------- checks across sections
# Each check yields ``key: error``.


def _teacher_lists(
    teachers: tuple[AnyTeacher, ...], key: str = "teachers"
) -> Iterator[tuple[str, tuple[AnyTeacher, ...]]]:
    """Each list of teachers, of the file and of its ensembles, with its key."""
    yield key, teachers
    for index, teacher in enumerate(teachers):
        if isinstance(teacher, EnsembleTeacher):
            yield from _teacher_lists(teacher.members, f"{key}.{index}.members")


def _name_errors(config: AgentConfig) -> Iterator[str]:
    """The first list with a repeated action or name of a teacher."""
    for key, values, what in (
        ("actions", config.actions, "actions"),
        *(
            (key, [teacher.name for teacher in members], "names of teachers")
            for key, members in _teacher_lists(config.teachers)
        ),
    ):
        if duplicates := find_repeated(values):
            yield f"{key}: {what} must differ, and {', '.join(map(repr, duplicates))} is given more than once"
            return


def _feature_errors(config: AgentConfig) -> Iterator[str]:
    """The first error about teachers with features, or about a loss that does not fit the agent."""
    with_features = [leaf.name for leaf in leaves(config.teachers) if leaf.teacher.gives_features]
    if len(with_features) > 1:
        yield (
            f"teachers: {', '.join(map(repr, with_features))} have `features: true`, and a student can match the "
            "features of one teacher only: write `features: true` once"
        )
        return
    for index, loss in enumerate(config.distillation.losses):
        if loss.needs_features and not with_features:
            yield (
                f"distillation.losses.{index}.type: {loss.type!r} needs a teacher that gives features: write "
                f"`features: true` for one that can, or take 'relational', which needs none"
            )
            return
        if len(config.actions) < loss.min_actions:
            yield (
                f"distillation.losses.{index}.type: {loss.type!r} has nothing to add where there are two actions: "
                f"take 'hinton'"
            )
            return


def _quality_and_slice_errors(config: AgentConfig) -> Iterator[str]:
    yield from _quality_errors(config)
    yield from _slice_errors(config)


def _quality_errors(config: AgentConfig) -> Iterator[str]:
    """A measure that does not fit the actions, and margins that do not fit the measure."""
    quality, promotion = config.quality, config.promotion
    if quality.measure == "auc" and not quality.own and len(config.actions) > 2:
        yield (
            f"quality.measure: 'auc' needs two actions, and the agent has {len(config.actions)}: take 'log_loss' or "
            "'accuracy'"
        )
        return
    for key in ("non_inferiority_margin", "total_margin", "slice_margin"):
        margin, span = getattr(promotion, key), quality.range.span
        if margin is not None and margin > span:
            yield f"promotion.{key}: is {margin:g}, and all values of {quality.name} lie within a range of {span:.4g}"
    if config.margins.total < config.margins.test:
        yield (
            f"promotion.total_margin: is {config.margins.total:g}, but one promotion alone may lose "
            f"{config.margins.test:g}, the default for {quality.name}: raise it, or write a lower "
            "`promotion.non_inferiority_margin`"
        )


def _slice_errors(config: AgentConfig) -> Iterator[str]:
    """Slices that are no category columns."""
    promotion, categories = config.promotion, config.observations.categories
    for key, names in (("slices", promotion.slices), ("remember.slices", promotion.remember.slices)):
        if unknown := [name for name in names if name not in categories]:
            yield (
                f"promotion.{key}: {', '.join(map(repr, unknown))} is not a category column of `observations`; "
                f"those are: {', '.join(categories) or 'none'}"
            )


def _teacher_and_student_errors(config: AgentConfig) -> Iterator[str]:
    yield from _teacher_errors(config)
    yield from _student_errors(config)


def _teacher_errors(config: AgentConfig) -> Iterator[str]:
    """Columns that teachers name and the agent does not have."""
    for key, teachers in _teacher_lists(config.teachers):
        for index, teacher in enumerate(teachers):
            yield from (f"{key}.{index}.{error}" for error in teacher.column_errors(config.observations.columns))
            yield from (f"{key}.{index}.{error}" for error in teacher.action_errors(config.actions))


def _student_errors(config: AgentConfig) -> Iterator[str]:
    """A student that does not fit the agent's columns or teachers."""
    student, texts = config.student, config.observations.texts
    if not student.reads_text:
        if texts:
            yield f"student.kind: {student.kind!r} reads no text, and {texts[0]!r} is a text column: take 'text'"
        return
    if not texts:
        yield f"student.kind: {student.kind!r} needs a text column, and `observations` has none: take 'tabular'"
    has_encoder = any(leaf.teacher.may_offer_text_encoder for leaf in leaves(config.teachers))
    if student.initialised_by_teacher and not has_encoder:
        yield (
            "student.initialise: 'teacher' needs a teacher of kind 'sentence_encoder', or of kind 'python' or 'module' "
            "with a method `text_encoder`: write 'none'"
        )


def _front_door_errors(config: AgentConfig) -> Iterator[str]:
    """A front door without a promise, or whose messages do not fit the columns."""
    door, cascade, columns = config.front_door, config.runtime.cascade, config.observations.columns
    if any(leaf.teacher.kind == "recorded" for leaf in leaves(config.teachers)) and door is None:
        yield "teachers: kind 'recorded' gets its answers at the front door: add the section `front_door`"
    if door is None:
        return
    if not door.shadow and (cascade is None or cascade.agreement is None):
        yield (
            "front_door: answers in a language model's place only by a promise: write "
            "`runtime: {cascade: {agreement: 0.98}}`, or `front_door: {shadow: true}` to answer nothing"
        )
    if not door.fields and (len(columns) > 1 or not config.observations.texts):
        yield (
            "front_door.fields: is false, so the message is the only column, a text: write one column of type text, "
            "or `fields: true` for messages that are JSON objects"
        )


def _retention_errors(config: AgentConfig) -> Iterator[str]:
    needed = config.windows.train + config.windows.longest_test + config.label_delay
    if config.upkeep.keep is not None and config.upkeep.keep < needed:
        yield (
            f"upkeep.keep: is {config.upkeep.keep}, and a refresh trains and tests on rows of {needed} (windows.train, "
            f"windows.test and outcomes.delay): keep at least those"
        )


def _window_and_importing_errors(config: AgentConfig) -> Iterator[str]:
    yield from _window_errors(config)
    yield from _importing_errors(config)


def _window_errors(config: AgentConfig) -> Iterator[str]:
    """A limit of the current window that is below the rows that a watch needs."""
    windows, min_rows = config.windows, config.observations.min_rows
    limits = {"windows.sample": windows.sample}
    if isinstance(windows.current, NewestRows):
        limits["windows.current.rows"] = windows.current.rows
    for key, limit in limits.items():
        if limit is not None and limit < min_rows:
            yield f"{key}: is {limit}, but a window needs `observations.min_rows`, {min_rows}, to be judged"


def _importing_errors(config: AgentConfig) -> Iterator[str]:
    """Columns and actions that ``importing`` names and the agent does not have."""
    importing = config.importing
    if importing is None:
        return
    columns = config.observations.columns
    for name in importing.columns:
        if name not in columns:
            yield f"importing.columns: no column is called {name!r}; {suggest(name, columns, 'there are')}"
    for action in importing.actions.values():
        if action not in config.actions:
            yield f"importing.actions: no action is called {action!r}; {suggest(action, config.actions, 'there are')}"
    probabilities = (importing.decision and importing.decision.probabilities) or None
    if probabilities is not None and set(probabilities) != set(config.actions):
        actions = ", ".join(map(escape_line, config.actions))
        yield f"importing.decision.probabilities: must name each action once: {actions}"


def _threshold_errors(config: AgentConfig) -> Iterator[str]:
    """The first threshold that cannot apply to this agent, or that nothing can exceed."""
    columns = [column for column in config.observations.columns.values() if column.drift]
    texts = len(TEXT_MEASURES) * sum(column.type == "text" for column in columns)
    numbers = texts + sum(column.type == "number" for column in columns)
    watched = numbers + sum(column.type == "category" for column in columns)
    thresholds = config.watch.thresholds
    if thresholds.auc_drop is not None and len(config.actions) > 2:
        yield (
            f"watch.thresholds.auc_drop: an agent with {len(config.actions)} actions is judged by its accuracy, and "
            f"the AUC needs two actions: write `accuracy_drop` instead"
        )
        return
    for distance in COLUMN_DISTANCES:
        count, what = (watched, "columns") if distance.columns == "columns" else (numbers, "number columns")
        if getattr(thresholds, distance.field, None) is not None and thresholds.shifted_columns > count:
            yield (
                f"watch.thresholds.shifted_columns: is {thresholds.shifted_columns}, but drift is measured on "
                f"{count} {what}: `{distance.field}` could never be exceeded"
            )
            return


_CHECKS: tuple[Callable[[AgentConfig], Iterator[str]], ...] = (
    _name_errors,
    label_errors,
    _feature_errors,
    _quality_and_slice_errors,
    _teacher_and_student_errors,
    _front_door_errors,
    _retention_errors,
    _window_and_importing_errors,
    _threshold_errors,
)
"""In the order in which they are made; the first that finds errors ends the checking."""
