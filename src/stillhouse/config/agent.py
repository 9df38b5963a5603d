"""The whole agent file, and what its sections promise one another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, PrivateAttr, model_validator

from stillhouse.config.base import Action, Name, Section
from stillhouse.config.compression import Compression
from stillhouse.config.distillation import Distillation, Update
from stillhouse.config.importing import Importing
from stillhouse.config.observations import TEXT_MEASURES, Observations, Outcomes
from stillhouse.config.promotion import Budgets, Promotion
from stillhouse.config.runtime import Runtime, Upkeep
from stillhouse.config.students import AnyStudent
from stillhouse.config.teachers import AnyTeacher, Asking, EnsembleTeacher, Teaching, Weighing, leaves
from stillhouse.config.watching import Watch
from stillhouse.config.windows import NewestRows, Windows
from stillhouse.config.wording import nearest, repeated
from stillhouse.shown import shown

__all__ = ["AgentConfig"]


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
            if twice := repeated(values):
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
            yield f"importing.columns: no column is called {name!r}; " + nearest(
                name, config.observations.columns, "there are"
            )
    for action in importing.actions.values():
        if action not in config.actions:
            yield f"importing.actions: no action is called {action!r}; {nearest(action, config.actions, 'there are')}"
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
