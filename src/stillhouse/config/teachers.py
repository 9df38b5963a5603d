"""The kinds of teachers, how they are weighted, what they must show and which rows they are asked about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillhouse.config.base import Length, Name, Section, Target
from stillhouse.config.observations import Column, wrong_column
from stillhouse.config.wording import nearest

if TYPE_CHECKING:
    from stillhouse.config.agent import AgentConfig


__all__ = [
    "AnyTeacher",
    "Asking",
    "EndpointTeacher",
    "EnsembleTeacher",
    "Follow",
    "Leaf",
    "LeafTeacher",
    "MlflowTeacher",
    "ModuleTeacher",
    "PythonTeacher",
    "TeacherSection",
    "Teaching",
    "Unit",
    "Weighing",
    "leaves",
    "units",
]


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
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="of the model's files; others are refused. Where it is needed, the message says what it is",
    )

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
        "concurrency",
        "retries",
        "key_variable",
        "price_per_million_input",
        "price_per_million_output",
    }

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
                yield f"prompt: no column is called {name!r}; {nearest(name, known, 'there are')}"
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
AnyTeacher = Annotated[LeafTeacher | EnsembleTeacher, Field(discriminator="kind")]
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
        default=0.8,
        ge=0,
        le=1,
        description="with the champion's teacher (1 − total variation), where outcomes are too few to judge by",
    )


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


def _mistakes_of_columns(names: Iterable[str] | None, kind: str | None, columns: Mapping[str, Column]) -> Iterator[str]:
    for name in names or ():
        if wrong := wrong_column(name, kind, columns):
            yield f"columns: {wrong}"
