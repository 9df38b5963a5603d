"""Teachers, students and variants, each in a nested run with its files, figures and lineage."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.errors import SignatureError
from stillhouse.records import ModelRef, Quality, Scorecard, TeacherRef, short_id
from stillhouse.registry import packaging
from stillhouse.registry.entries import Lineage, NewVariant, RefusedVariant, Role
from stillhouse.registry.remembered import Remembered
from stillhouse.registry.runs import PARENT, Content, Runs, texts
from stillhouse.shown import markdown
from stillhouse.signing import Signer, model_statement, signed_model, signer
from stillhouse.verifying import Model, digests

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

__all__ = ["RELEASE", "SIGNATURE", "Models"]

SIGNATURE, RELEASE = "signature", "release"
"""Tags with the envelopes of :mod:`stillhouse.verifying`: of a model or version, and of a version that was released."""

_Build = Callable[[Path, Any], None]

_sources: Remembered[str] = Remembered()
"""``models:/<model id>`` of versions, by :func:`version_key`."""


class _Refresh(NamedTuple):
    """What the models of one refresh have in common."""

    run_id: str
    refresh_id: str
    lineage: Lineage
    ancestors: Mapping[str, str]
    """``models:/<model id>`` by role."""
    signing: Signer


class _More(NamedTuple):
    """What belongs to a model's run besides its scorecard and params."""

    metrics: Mapping[str, float] = {}
    history: Sequence[Mapping[str, float]] = ()
    files: Mapping[str, Content] = {}


_NOTHING = _More()


class _Made(NamedTuple):
    """A model as it was logged just now."""

    ref: ModelRef
    statement: Model
    """What was signed about it."""
    tags: Mapping[str, str]


class Models(Runs):
    """What a refresh makes, logged under its run.

    A logged model carries the tags ``role``, ``agent``, ``refresh_id``, ``refresh_run`` (the parent run's id),
    ``auc``, ``accuracy``, ``bytes``, ``p50_ms`` and its lineage: ``lineage.student``, ``lineage.teacher``,
    ``lineage.knowledge``, ``lineage.drift``. The other way leads ``descendant.<model id>``, which each of its
    ancestors carries. ``signature`` is what :mod:`stillhouse.signing` says about its files, as they were made here.
    """

    def log_teacher(
        self,
        run_id: str,
        teacher: TeacherRef,
        scorecard: Scorecard,
        params: Mapping[str, object],
        lineage: Lineage | None = None,
    ) -> ModelRef:
        """Log a new teacher; one that is kept has its ``model`` already, which is returned.

        The versions of the tables that it was fitted on are part of its lineage.
        """
        if teacher.model is not None:
            return teacher.model
        seen = teacher.fitted
        lineage = (lineage or Lineage()).model_copy(update={"knowledge": seen.versions if seen else {}})
        marks = {"teacher_version": teacher.version, "fitted": seen.model_dump_json() if seen else None}

        def build(target: Path, model: Any) -> None:
            packaging.save_teacher(Path(teacher.folder), target, model)

        return self._log_linked(run_id, "teacher", "teacher", build, scorecard, params, lineage, marks)

    def log_student(
        self,
        run_id: str,
        module: nn.Module,
        example: np.ndarray[Any, Any],
        scorecard: Scorecard,
        params: Mapping[str, object],
        lineage: Lineage,
        folder: Path | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        history: Sequence[Mapping[str, float]] = (),
        files: Mapping[str, Content] | None = None,
    ) -> ModelRef:
        """Log a torch module as an exported graph, without pickle.

        :param module: float32 ``[n, D]`` to logits ``[n, K]``.
        :param example: float32 ``[n, D]``.
        :param folder: its weights and whatever else an update goes on from (:meth:`Registry.student_files`).
        :param metrics: of its run, besides those of the scorecard; ``history`` and ``files`` as in :meth:`log`.
        """

        def build(target: Path, model: Any) -> None:
            packaging.save_student(module, example, target, model, folder)

        marks = {} if folder is None else {packaging.NATIVE: True}
        more = _More(metrics or {}, history, files or {})
        return self._log_linked(run_id, "student", "student", build, scorecard, params, lineage, marks, more)

    def log_variant(
        self,
        run_id: str,
        folder: Path,
        scorecard: Scorecard,
        params: Mapping[str, object],
        lineage: Lineage,
        input_example: pd.DataFrame,
    ) -> ModelRef:
        """Log a variant's folder (``model.onnx``, ``manifest.json``, ``variant.py``, ``values.py``) under its name.

        :param input_example: raw rows with at least the manifest's columns.
        :raises RegistryError: if the example lacks columns.
        """
        refresh = self._refresh(run_id, lineage)
        made = self._log_variant(refresh, packaging.VariantWriter(input_example), NewVariant(folder, scorecard, params))
        self._link(refresh, [made.ref])
        return made.ref

    def log_refused(self, run_id: str, name: str, why: str, params: Mapping[str, object]) -> None:
        """A nested run for a candidate that cannot serve: there is no model, but the reason is kept."""
        marks = {
            PARENT: run_id,
            "agent": self.agent,
            "role": "refused",
            "variant": name,
            "refused": why[:5000],
            "mlflow.note.content": markdown(why),
        }
        run = self.client.create_run(self.experiment_id, run_name=name, tags=texts(marks)).info.run_id
        self._log_batch(run, params=params)
        self.client.set_terminated(run)

    # ----------------------------------------------------------------- inside

    def _refresh(self, run_id: str, lineage: Lineage) -> _Refresh:
        """The signer comes first: without a key nothing is written."""
        signing = signer()
        return _Refresh(run_id, self._refresh_id(run_id), lineage, self._ancestors(lineage), signing)

    def _log_variants(
        self, refresh: _Refresh, variants: Sequence[NewVariant | RefusedVariant], input_example: pd.DataFrame
    ) -> list[_Made | None]:
        """Each in a nested run; None for those that are refused. Their ancestors learn of all of them in one call."""
        writer = packaging.VariantWriter(input_example)
        made: list[_Made | None] = []
        for variant in variants:
            if isinstance(variant, RefusedVariant):
                self.log_refused(refresh.run_id, *variant)
                made.append(None)
            else:
                made.append(self._log_variant(refresh, writer, variant))
        self._link(refresh, [each.ref for each in made if each is not None])
        return made

    def _log_variant(self, refresh: _Refresh, writer: packaging.VariantWriter, variant: NewVariant) -> _Made:
        name = json.loads((variant.folder / "manifest.json").read_text(encoding="utf-8"))["variant"]

        def build(target: Path, model: Any) -> None:
            writer.save(variant.folder, target, model)

        return self._log_model(
            refresh,
            name,
            "variant",
            build,
            variant.scorecard,
            variant.params,
            {"variant": name},
            _More(variant.metrics),
        )

    def _log_linked(
        self,
        run_id: str,
        name: str,
        role: Role,
        build: _Build,
        scorecard: Scorecard,
        params: Mapping[str, object],
        lineage: Lineage,
        marks: Mapping[str, object],
        more: _More = _NOTHING,
    ) -> ModelRef:
        """A single model, and the way to it from its ancestors."""
        refresh = self._refresh(run_id, lineage)
        made = self._log_model(refresh, name, role, build, scorecard, params, marks, more)
        self._link(refresh, [made.ref])
        return made.ref

    def _link(self, refresh: _Refresh, made: Sequence[ModelRef]) -> None:
        """Let the ancestors name their descendants."""
        marks = {f"descendant.{model_id(each.uri)}": each.name for each in made}
        for ancestor in refresh.ancestors.values() if marks else ():
            self.client.set_logged_model_tags(model_id(ancestor), marks)

    def _log_model(
        self,
        refresh: _Refresh,
        name: str,
        role: Role,
        build: _Build,
        scorecard: Scorecard,
        params: Mapping[str, object],
        marks: Mapping[str, object],
        more: _More,
    ) -> _Made:
        """A nested run with its LoggedModel, its scorecard and its lineage, signed when all of it is there."""
        tags = texts(
            {"agent": self.agent, "role": role, "refresh_id": refresh.refresh_id, "refresh_run": refresh.run_id}
            | dict(marks)
            | _headline(scorecard)
            | _lineage_tags(refresh.lineage, refresh.ancestors)
        )
        files: dict[str, Any] = {}

        def build_all(target: Path, model: Any) -> None:
            build(target, model)
            (target / "scorecard.json").write_text(scorecard.model_dump_json(indent=1), encoding="utf-8")
            files.update(files=digests(target), payload=packaging.payload(target, role))

        logged = self._log_nested(refresh.run_id, name, role, build_all, tags, params, _metrics(scorecard), more)
        logged_id = model_id(logged.uri)
        statement = Model(
            agent=self.agent,
            name=name,
            version=None,
            model_id=logged_id,
            role=role,
            lineage={each: model_id(uri) for each, uri in refresh.ancestors.items()},
            **files,
        )
        self.client.set_logged_model_tags(logged_id, {SIGNATURE: refresh.signing.sign(model_statement(statement))})
        return _Made(logged, statement, tags)

    def _log_nested(
        self,
        run_id: str,
        name: str,
        role: str,
        build: _Build,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        metrics: Mapping[str, float],
        more: _More = _NOTHING,
    ) -> ModelRef:
        """A nested run with its LoggedModel; both are marked as failed if the model cannot be written.

        :param metrics: of the run and of the model.
        """
        run = self.client.create_run(self.experiment_id, run_name=name, tags={PARENT: run_id, **tags}).info.run_id
        model = self.client.create_logged_model(
            self.experiment_id,
            re.sub(r"[/:.%\"']", "_", name),
            source_run_id=run,
            tags=dict(tags),
            params=texts(params),
            model_type=role,
        )
        try:
            self._upload(model, run, build)
        except BaseException:
            self.client.finalize_logged_model(model.model_id, "FAILED")
            self.client.set_terminated(run, status="FAILED")
            raise
        self.log_files(run, more.files)
        self._log_batch(
            run, metrics=metrics, params=params, model_id=model.model_id, own=more.metrics, history=more.history
        )
        self.client.set_terminated(run)
        return ModelRef(name=name, uri=f"models:/{model.model_id}", run_id=run)

    def _upload(self, model: Any, run_id: str, build: _Build) -> None:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        with TemporaryDirectory() as folder:
            target = Path(folder, "model")
            described = Model(
                artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
            )
            build(target, described)
            self.client.log_model_artifacts(model.model_id, str(target))
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])

    # ----------------------------------------------------------------- inside: signatures

    def _signed_logged(self, logged_id: str) -> Model:
        """What was signed about a logged model of this agent.

        :raises SignatureError: if no trusted key has signed it, or it was signed as another one.
        """
        return self._signed_tags(logged_id, self.client.get_logged_model(logged_id).tags)

    def _signed_tags(self, logged_id: str, tags: Mapping[str, str]) -> Model:
        """:meth:`_signed_logged` of a model whose tags are known."""
        found = signed_model(tags.get(SIGNATURE), f"{self.agent}'s {logged_id}")
        if (found.agent, found.version, found.model_id) != (self.agent, None, logged_id):
            raise SignatureError(
                f"{logged_id} cannot be used as a model of {self.agent!r}: it is signed as {found.name!r} of "
                f"{found.agent!r} ({found.model_id})"
            )
        return found

    def _signed_version(self, version: Any) -> Model:
        """What was signed about a version of one of this agent's registered models; raises as above."""
        what = f"{version.name}@{version.version}"
        found = signed_model(version.tags.get(SIGNATURE), what)
        if (found.agent, found.name, found.version) != (self.agent, version.name, str(version.version)):
            raise SignatureError(
                f"{what} cannot be used: it is signed as {found.name}@{found.version} of agent {found.agent!r}"
            )
        return found

    def _ancestors(self, lineage: Lineage) -> dict[str, str]:
        """``models:/<model id>`` of the student and the teacher that the lineage names."""
        named = {"student": lineage.student, "teacher": lineage.teacher}
        return {role: self._logged_uri(ref) for role, ref in named.items() if ref is not None}

    def _logged_uri(self, ref: ModelRef) -> str:
        """``models:/<model id>`` of a logged or registered model."""
        if ref.version is None:
            return ref.uri

        def read() -> str:
            return str(self.client.get_model_version(ref.name, ref.version).source)

        return read() if ref.run_id is None else _sources.get(version_key(self.uri, ref), read)


def version_key(uri: str, ref: ModelRef) -> tuple[str | None, ...]:
    """Names a version for ever: its number alone is given out again where it is deleted, the run that made it is not.

    :param uri: of MLflow.
    """
    return uri, ref.name, ref.version, ref.run_id


def model_id(logged_uri: str) -> str:
    """``m-…`` of ``models:/m-…``."""
    return logged_uri.removeprefix("models:/")


def _lineage_tags(lineage: Lineage, ancestors: Mapping[str, str]) -> dict[str, object]:
    versions = ",".join(f"{table}@{version}" for table, version in sorted(lineage.knowledge.items()))
    tags: dict[str, object] = {f"lineage.{role}": uri for role, uri in ancestors.items()}
    return tags | {"lineage.knowledge": versions or None, "lineage.drift": lineage.drift}


def _headline(scorecard: Scorecard) -> dict[str, object]:
    """What a table of versions shows."""
    test = scorecard.quality.get("test")
    return {
        "auc": None if test is None or test.auc is None else round(test.auc, 4),
        "accuracy": None if test is None else round(test.accuracy, 4),
        "bytes": scorecard.bytes,
        "p50_ms": round(scorecard.latency.p50_ms, 4) if scorecard.latency else None,
    }


def _metrics(scorecard: Scorecard) -> dict[str, float]:
    """All figures under names that MLflow accepts: ``test/auc``, ``slice/origin:EWR/auc``, ``latency/p95_ms``.

    A slice whose value has other characters than MLflow takes has ``_`` for them and ends in a digest of its name.
    """
    figures: dict[str, float | None] = {"bytes": scorecard.bytes, "agreement": scorecard.agreement}
    for window, quality in scorecard.quality.items():
        figures |= _quality(window, quality)
    for name, quality in scorecard.slices.items():
        figures |= _quality(f"slice/{metric_name(name)}", quality)
    if scorecard.latency:
        figures |= {"latency/p50_ms": scorecard.latency.p50_ms, "latency/p95_ms": scorecard.latency.p95_ms}
    return {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in figures.items() if value is not None}


def metric_name(name: str) -> str:
    """``name`` as a part of a metric's name: other parts for other names, in at most 100 characters."""
    wanted = name.replace("=", ":", 1)
    safe = re.sub(r"[^\w.\- :]", "_", wanted)[:80]
    return safe if safe == wanted else f"{safe}-{short_id(name)}"


def _quality(prefix: str, quality: Quality) -> dict[str, float | None]:
    return {f"{prefix}/{name}": value for name, value in quality.model_dump(exclude={"actions"}).items()}
