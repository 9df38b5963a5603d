"""Logged models of one agent: teachers, students and variants, each in a nested run, written, read and verified."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.config import home
from stillhouse.errors import RegistryError, SignatureError
from stillhouse.records import ModelRef, Scorecard, TeacherRef
from stillhouse.registry import packaging
from stillhouse.registry.cache import Cache
from stillhouse.registry.connection import does_not_exist
from stillhouse.registry.downloads import download_signed, read_artifact, write_local
from stillhouse.registry.entries import Lineage, NewVariant, Points, RefusedVariant
from stillhouse.registry.experiment import Experiment
from stillhouse.registry.metrics import scorecard_metrics, scorecard_tags
from stillhouse.registry.runs import Content, Runs, artifact_cache, stringify
from stillhouse.shown import escape_markdown
from stillhouse.signing import Signer, load_signer, model_statement, read_signed_model
from stillhouse.verifying import Model, digests

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

__all__ = ["REGISTERED", "RELEASE", "SIGNATURE", "LoggedModel", "ModelRun", "Models", "model_id", "version_key"]

SIGNATURE, RELEASE = "signature", "release"
"""Tags with the envelopes of :mod:`stillhouse.verifying`: of a model or version, and of a released version."""

REGISTERED = "registered"
"""Tag of a logged model: the registered model that it is a version of."""

_SCORECARD = "scorecard.json"
_REFRESH_RUN = "refresh_run"  # tag of every logged model; also of the versions of an older stillhouse
_MODELS_PER_CALL = 100  # MLflow's limit

_logged_uris: Cache[str] = Cache()
"""``models:/<model id>`` of versions, by :func:`version_key`."""


class ModelRun(NamedTuple):
    """A model to log, and the contents of its nested run."""

    name: str
    role: str
    write: Callable[[Path, Any], None]
    """Writes the files of the model into a folder; its second argument is the ``mlflow.models.Model``."""
    params: Mapping[str, object]
    tags: Mapping[str, object] = {}
    metrics: Mapping[str, float] = {}
    """Metrics of the run and of the model."""
    run_metrics: Mapping[str, float] = {}
    """Metrics of the run only."""
    history: Sequence[Mapping[str, float]] = ()
    """Metrics of steps 1, 2, …"""
    files: Mapping[str, Content] = {}
    """Artifacts of the run."""
    inputs: Sequence[str] = ()
    """Ids of the logged models that it was made from; MLflow shows them as links."""
    points: Points = ()
    """Metrics of the run and of the model at times of the agent's life."""


class LoggedModel(NamedTuple):
    """A model that was just logged and signed."""

    ref: ModelRef
    statement: Model
    """The signed statement about it."""
    tags: Mapping[str, str]


class _Refresh(NamedTuple):
    """Values that all models of one refresh share."""

    run_id: str
    refresh_id: str
    lineage: Lineage
    ancestors: Mapping[str, str]
    """``models:/<model id>`` by role."""
    signer: Signer


class Models:
    """Logs the models of a refresh below its run, and reads and verifies logged models and their versions.

    A logged model has the tags ``role``, ``agent``, ``refresh_id``, ``refresh_run`` (id of the parent run),
    ``auc``, ``accuracy``, ``bytes``, ``p50_ms`` and its lineage: ``lineage.student``, ``lineage.teacher``,
    ``lineage.knowledge``, ``lineage.drift``. In the other direction, each ancestor has a tag ``descendant.<model id>``.
    The tag ``signature`` holds the signed digests of its files (:mod:`stillhouse.signing`), computed before the upload.

    :param experiment: holds the models.
    :param runs: of the same experiment.
    """

    def __init__(self, experiment: Experiment, runs: Runs) -> None:
        self._experiment, self._client, self._runs = experiment, experiment.client, runs
        self._agent, self._uri = experiment.name, experiment.uri

    # ----------------------------------------------------------------- writing

    def log_teacher(
        self,
        run_id: str,
        teacher: TeacherRef,
        scorecard: Scorecard,
        params: Mapping[str, object],
        lineage: Lineage | None = None,
    ) -> ModelRef:
        """Log a new teacher. A teacher that is reused already has its ``model``, which is returned.

        The lineage includes the versions of the tables that the teacher was fitted on.
        """
        if teacher.model is not None:
            return teacher.model
        fitted = teacher.fitted
        lineage = (lineage or Lineage()).model_copy(update={"knowledge": fitted.versions if fitted else {}})
        tags = {"teacher_version": teacher.version, "fitted": fitted.model_dump_json() if fitted else None}

        def write(target: Path, model: Any) -> None:
            packaging.save_teacher(Path(teacher.folder), target, model)

        return self._log_single(run_id, lineage, ModelRun("teacher", "teacher", write, params, tags), scorecard)

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
        tags: Mapping[str, object] | None = None,
    ) -> ModelRef:
        """Log a torch module as an exported graph, without pickle.

        :param module: float32 ``[n, D]`` to logits ``[n, K]``.
        :param example: float32 ``[n, D]``.
        :param folder: the student's weights and everything else that an update needs (:meth:`student_files`).
        :param metrics: metrics of its run, besides those of the scorecard.
        :param history: as in :meth:`Runs.log`.
        :param files: as in :meth:`Runs.log`.
        :param tags: additional tags of the run and of the logged model.
        """

        def write(target: Path, model: Any) -> None:
            packaging.save_student(module, example, target, model, folder)

        native = {} if folder is None else {packaging.NATIVE_FOLDER: True}
        run = ModelRun(
            "student", "student", write, params, native | dict(tags or {}), {}, metrics or {}, history, files or {}
        )
        return self._log_single(run_id, lineage, run, scorecard)

    def log_variants(
        self,
        run_id: str,
        variants: Sequence[NewVariant | RefusedVariant],
        lineage: Lineage,
        input_example: pd.DataFrame,
    ) -> list[LoggedModel | None]:
        """Log each variant in a nested run under its name, in order; None stands for a refused one.

        One call per ancestor adds the tags of all descendants.

        :param input_example: raw rows with at least the columns of the manifests.
        :raises RegistryError: if the example lacks columns.
        """
        refresh = self._open_refresh(run_id, lineage)
        writer = packaging.VariantWriter(input_example)
        logged: list[LoggedModel | None] = []
        for variant in variants:
            if isinstance(variant, RefusedVariant):
                self.log_refused(run_id, *variant)
                logged.append(None)
            else:
                logged.append(self._log_signed(refresh, _variant_run(variant, writer), variant.scorecard))
        self._tag_ancestors(refresh, [model.ref for model in logged if model is not None])
        return logged

    def log_refused(self, run_id: str, name: str, reason: str, params: Mapping[str, object]) -> None:
        """Log a nested run for a candidate that cannot serve: it holds the reason, and no model."""
        tags = {
            "agent": self._agent,
            "role": "refused",
            "variant": name,
            "refused": reason[:5000],
            "mlflow.note.content": escape_markdown(reason),
        }
        nested = self._runs.create_nested(run_id, name, tags)
        self._runs.log(nested, params=params)
        self._client.set_terminated(nested)

    def log_unsigned(self, run_id: str, model: ModelRun) -> ModelRef:
        """Log a nested run with its logged model; both are marked as failed if the model cannot be written."""
        tags = stringify(model.tags)
        nested = self._runs.create_nested(run_id, model.name, tags)
        if model.inputs:
            self._log_inputs(nested, model.inputs)
        created = self._client.create_logged_model(
            self._experiment.experiment_id,
            re.sub(r"[/:.%\"']", "_", model.name),
            source_run_id=nested,
            tags=tags,
            params=stringify(model.params),
            model_type=model.role,
        )
        try:
            self._upload(created, nested, model.write)
        except BaseException:
            self._client.finalize_logged_model(created.model_id, "FAILED")
            self._client.set_terminated(nested, status="FAILED")
            raise
        self._runs.log(
            nested,
            files=model.files,
            metrics=model.metrics,
            history=model.history,
            points=model.points,
            params=model.params,
            model_id=created.model_id,
            run_metrics=model.run_metrics,
        )
        self._client.set_terminated(nested)
        return ModelRef(name=model.name, uri=f"models:/{created.model_id}", run_id=nested)

    # ----------------------------------------------------------------- reading

    def tags(self, ref: ModelRef) -> dict[str, str]:
        """The tags of a logged model; of a version its own ones and those of its logged model."""
        if ref.version is not None:
            return self.version_tags(self._client.get_model_version(ref.name, ref.version))
        return dict(self._client.get_logged_model(model_id(ref.uri)).tags)

    def version_tags(self, version: Any) -> dict[str, str]:
        """:meth:`tags` for a version given as MLflow's entity. A version of an older stillhouse has all tags itself."""
        logged = re.fullmatch(r"models:/(m-\w+)", str(version.source))
        if _REFRESH_RUN in version.tags or logged is None:
            return dict(version.tags)
        try:
            return _merge_tags(version, self._client.get_logged_model(logged[1]).tags)
        except RegistryError as error:
            if does_not_exist(error):
                return dict(version.tags)
            raise

    def all_version_tags(self, name: str, versions: Sequence[Any]) -> list[dict[str, str]]:
        """:meth:`version_tags` of many versions of ``name``, in order, with a few calls for all of them."""
        by_id: dict[str, Mapping[str, str]] = {}
        if any(_REFRESH_RUN not in version.tags for version in versions):
            by_id = {model.model_id: model.tags for model in self.search(f"tags.{REGISTERED} = '{name}'")}

        def read(version: Any) -> dict[str, str]:
            logged = by_id.get(model_id(str(version.source)))
            return self.version_tags(version) if logged is None else _merge_tags(version, logged)

        return [read(version) for version in versions]

    def search(self, query: str) -> Iterator[Any]:
        """MLflow's entities of the agent's logged models that meet ``query``."""
        token: str | None = None
        while True:
            page = self._client.search_logged_models(
                [self._experiment.experiment_id], query, max_results=_MODELS_PER_CALL, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def set_tags(self, logged_id: str, tags: Mapping[str, object]) -> None:
        """Set tags of a logged model."""
        self._client.set_logged_model_tags(logged_id, stringify(tags))

    def replace_files(self, logged_id: str, contents: Mapping[str, bytes]) -> None:
        """Write files of a logged model over the old ones; the caller signs it again.

        :param contents: by path.
        """
        root = str(self._client.get_logged_model(logged_id).artifact_location)
        elsewhere = {path: content for path, content in contents.items() if not write_local(root, path, content)}
        if not elsewhere:
            return
        with TemporaryDirectory() as folder:
            for path, content in elsewhere.items():
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            self._client.log_model_artifacts(logged_id, folder)

    def scorecard(self, ref: ModelRef) -> Scorecard:
        """The scorecard that was logged with the model.

        :raises RegistryError: if the model has none.
        """
        logged_id = model_id(self.logged_uri(ref))

        def read() -> Scorecard:
            model = self._client.get_logged_model(logged_id)
            content = read_artifact(model.artifact_location, _SCORECARD, self._uri)
            if content is None:
                raise RegistryError(f"the files of {model.name} ({model.model_id}) lack {_SCORECARD}")
            return Scorecard.model_validate_json(content)

        card: Scorecard = artifact_cache.get((self._uri, logged_id, _SCORECARD), read)
        return card

    def fetch(self, ref: ModelRef, folder: Path | None = None) -> Path:
        """The local folder of a variant or teacher, or the folder with a student's ``model.pt2``, downloaded once.

        The folder appears only when it is complete. Each call compares it with the signed digests; a damaged folder
        is downloaded again.

        :param folder: target; by default ``STILLHOUSE_HOME/models/<model id>``.
        :raises SignatureError: if the model is not signed, or the downloaded files differ from the signed ones.
        """
        signed = self.signed(ref)
        target = folder or home() / "models" / signed.model_id
        self._download_signed(signed, signed.payload, target, str(ref))
        return target

    def fetch_whole(self, ref: ModelRef, folder: Path) -> Path:
        """All files of a model as MLflow stores them, verified, in a folder for ``mlflow.pyfunc.load_model``."""
        self._download_signed(self.signed(ref), "", folder, str(ref))
        return folder

    def student_files(self, variant: ModelRef) -> Path | None:
        """The folder of the student that a variant was made from: weights, columns and replay memory.

        None if the variant descends from no student, or from one that was logged as a graph only.
        """
        address = self.tags(variant).get("lineage.student")
        if address is None:
            return None
        signed = self._signed_logged(model_id(address))
        if not signed.below(packaging.NATIVE_FOLDER):
            return None
        target = home() / "models" / f"{signed.model_id}-{packaging.NATIVE_FOLDER}"
        self._download_signed(signed, packaging.NATIVE_FOLDER, target, f"the student of {variant}")
        return target

    def logged_uri(self, ref: ModelRef) -> str:
        """``models:/<model id>`` of a logged or registered model."""
        if ref.version is None:
            return ref.uri

        def read() -> str:
            return str(self._client.get_model_version(ref.name, ref.version).source)

        return read() if ref.run_id is None else _logged_uris.get(version_key(self._uri, ref), read)

    # ----------------------------------------------------------------- signatures

    def signed(self, ref: ModelRef) -> Model:
        """The signed statement about a version, or about a logged model that is no version yet.

        :raises SignatureError: if no trusted key has signed it, or it is signed as another model.
        """
        if ref.version is None:
            return self._signed_logged(model_id(ref.uri))
        return self.signed_version(self._client.get_model_version(ref.name, ref.version))

    def envelopes(self, ref: ModelRef) -> tuple[str | None, str | None]:
        """Signature and newest release of a version, not verified; None if it has none."""
        tags = self.tags(ref)
        return tags.get(SIGNATURE), tags.get(RELEASE)

    def signed_version(self, version: Any) -> Model:
        """:meth:`signed` for a version of one of this agent's registered models, given as MLflow's entity."""
        label = f"{version.name}@{version.version}"
        signed = read_signed_model(version.tags.get(SIGNATURE), label)
        if (signed.agent, signed.name, signed.version) != (self._agent, version.name, str(version.version)):
            raise SignatureError(
                f"{label} cannot be used: it is signed as {signed.name}@{signed.version} of agent {signed.agent!r}"
            )
        return signed

    def signed_tags(self, logged_id: str, tags: Mapping[str, str]) -> Model:
        """:meth:`signed` for a logged model whose tags are known."""
        signed = read_signed_model(tags.get(SIGNATURE), f"{self._agent}'s {logged_id}")
        if (signed.agent, signed.version, signed.model_id) != (self._agent, None, logged_id):
            raise SignatureError(
                f"{logged_id} cannot be used as a model of {self._agent!r}: it is signed as {signed.name!r} of "
                f"{signed.agent!r} ({signed.model_id})"
            )
        return signed

    def _signed_logged(self, logged_id: str) -> Model:
        return self.signed_tags(logged_id, self._client.get_logged_model(logged_id).tags)

    # ----------------------------------------------------------------- internals

    def _open_refresh(self, run_id: str, lineage: Lineage) -> _Refresh:
        """Load the signer first: without a private key nothing is written."""
        signer = load_signer()
        return _Refresh(run_id, self._runs.refresh_id(run_id), lineage, self._ancestors(lineage), signer)

    def _ancestors(self, lineage: Lineage) -> dict[str, str]:
        """``models:/<model id>`` of the student and the teacher in the lineage, by role."""
        refs = {"student": lineage.student, "teacher": lineage.teacher}
        return {role: self.logged_uri(ref) for role, ref in refs.items() if ref is not None}

    def _log_single(self, run_id: str, lineage: Lineage, model: ModelRun, scorecard: Scorecard) -> ModelRef:
        refresh = self._open_refresh(run_id, lineage)
        logged = self._log_signed(refresh, model, scorecard)
        self._tag_ancestors(refresh, [logged.ref])
        return logged.ref

    def _log_signed(self, refresh: _Refresh, model: ModelRun, scorecard: Scorecard) -> LoggedModel:
        """Log a model with its scorecard and lineage, and sign it when all its files are uploaded."""
        tags = stringify(
            {"agent": self._agent, "role": model.role, "refresh_id": refresh.refresh_id, "refresh_run": refresh.run_id}
            | dict(model.tags)
            | scorecard_tags(scorecard)
            | _lineage_tags(refresh.lineage, refresh.ancestors)
        )
        signed_files: dict[str, Any] = {}

        def write(target: Path, description: Any) -> None:
            model.write(target, description)
            (target / _SCORECARD).write_text(scorecard.model_dump_json(indent=1), encoding="utf-8")
            signed_files.update(files=digests(target), payload=packaging.payload(target, model.role))

        ref = self.log_unsigned(
            refresh.run_id,
            model._replace(
                write=write,
                tags=tags,
                metrics=scorecard_metrics(scorecard),
                inputs=[model_id(uri) for uri in refresh.ancestors.values()],
            ),
        )
        logged_id = model_id(ref.uri)
        statement = Model(
            agent=self._agent,
            name=model.name,
            version=None,
            model_id=logged_id,
            role=model.role,
            lineage={role: model_id(uri) for role, uri in refresh.ancestors.items()},
            **signed_files,
        )
        self._client.set_logged_model_tags(logged_id, {SIGNATURE: refresh.signer.sign(model_statement(statement))})
        return LoggedModel(ref, statement, tags)

    def _tag_ancestors(self, refresh: _Refresh, descendants: Sequence[ModelRef]) -> None:
        tags = {f"descendant.{model_id(ref.uri)}": ref.name for ref in descendants}
        for ancestor in refresh.ancestors.values() if tags else ():
            self._client.set_logged_model_tags(model_id(ancestor), tags)

    def _log_inputs(self, run_id: str, model_ids: Sequence[str]) -> None:
        from mlflow.entities import LoggedModelInput

        self._client.log_inputs(run_id, models=[LoggedModelInput(logged_id) for logged_id in model_ids])

    def _upload(self, created: Any, run_id: str, write: Callable[[Path, Any], None]) -> None:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model as Description

        logged_id = created.model_id
        with TemporaryDirectory() as folder:
            target = Path(folder, "model")
            description = Description(
                artifact_path=created.artifact_location, run_id=run_id, model_uuid=logged_id, model_id=logged_id
            )
            write(target, description)
            self._client.log_model_artifacts(logged_id, str(target))
        self._client.finalize_logged_model(logged_id, "READY")
        self._client.log_outputs(run_id, [LoggedModelOutput(logged_id, step=0)])

    def _download_signed(self, signed: Model, path: str, target: Path, label: str) -> None:
        """Make ``target`` the folder ``path`` among the signed files of the model."""
        files = signed.below(path) if path else dict(signed.files)

        def download(folder: str) -> Path:
            return self._download(self._client.get_logged_model(signed.model_id), path, folder)

        download_signed(download, target, files, label)

    def _download(self, model: Any, path: str, folder: str) -> Path:
        """Copy a file or folder of a logged model into ``folder``."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        address = f"{model.artifact_location.rstrip('/')}/{path}".rstrip("/")
        try:
            return Path(download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=self._uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"the files of {model.name} ({model.model_id}) lack {path}: {error}") from error


def version_key(uri: str, ref: ModelRef) -> tuple[str | None, ...]:
    """Identifies a version permanently: MLflow may reuse the number of a deleted version, but not the run id.

    :param uri: of MLflow.
    """
    return uri, ref.name, ref.version, ref.run_id


def _merge_tags(version: Any, logged_tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a version and of its logged model, which holds what programs need."""
    if _REFRESH_RUN in version.tags:  # of an older stillhouse
        return dict(version.tags)
    return dict(version.tags) | _own_tags(logged_tags)


def _own_tags(logged_tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a logged model without those of MLflow, of its descendants, and its signature."""
    return {
        key: value
        for key, value in logged_tags.items()
        if key not in (SIGNATURE, REGISTERED) and not key.startswith(("mlflow.", "descendant."))
    }


def model_id(logged_uri: str) -> str:
    """``m-…`` of ``models:/m-…``.

    >>> model_id("models:/m-1a2b")
    'm-1a2b'
    """
    return logged_uri.removeprefix("models:/")


def _variant_run(variant: NewVariant, writer: packaging.VariantWriter) -> ModelRun:
    name = json.loads((variant.folder / "manifest.json").read_text(encoding="utf-8"))["variant"]

    def write(target: Path, model: Any) -> None:
        writer.save(variant.folder, target, model)

    tags = {"variant": name} | dict(variant.tags)
    return ModelRun(name, "variant", write, variant.params, tags, run_metrics=variant.metrics, points=variant.points)


def _lineage_tags(lineage: Lineage, ancestors: Mapping[str, str]) -> dict[str, object]:
    versions = ",".join(f"{table}@{version}" for table, version in sorted(lineage.knowledge.items()))
    tags: dict[str, object] = {f"lineage.{role}": uri for role, uri in ancestors.items()}
    return tags | {"lineage.knowledge": versions or None, "lineage.drift": lineage.drift}
