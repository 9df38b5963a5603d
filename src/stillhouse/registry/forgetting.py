"""Remove what an agent's models and runs in MLflow show of forgotten rows, and name the models that learned from them.

A logged model is stored with a few rows as input examples, and a student with the ids of its replay memory. Both are
replaced, and the model is signed again; the files that decide stay as they are. Ids and texts in the text files of runs
are blotted out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillhouse.errors import RegistryError, SignatureError
from stillhouse.knowledge.traces import Traces
from stillhouse.records import Baseline
from stillhouse.registry import packaging
from stillhouse.registry.downloads import read_artifact
from stillhouse.registry.models import SIGNATURE, model_id
from stillhouse.registry.names import BASELINE, registered_name
from stillhouse.registry.registry import Registry
from stillhouse.signing import load_signer, model_statement
from stillhouse.verifying import Model

__all__ = ["ForgottenRows", "blot_runs", "clean_models", "learned_models"]

_EXAMPLES = ("input_example.json", "serving_input_example.json")
_MEMORY = f"{packaging.NATIVE_FOLDER}/memory.parquet"
_TEXT_FILES = frozenset({".json", ".md", ".html", ".csv", ".txt", ".svg"})
_ROLES = ("variant", "student", "teacher")
_RUNS_PER_CALL = 500


@dataclass(frozen=True)
class ForgottenRows:
    """Ids and times of the rows, as the models' windows and memories know them."""

    observation_ids: frozenset[str]
    times: tuple[datetime, ...]

    def in_window(self, start: datetime, end: datetime) -> bool:
        """Whether one of them was observed in ``[start, end)``."""
        return any(start <= time < end for time in self.times)


def learned_models(registry: Registry, rows: ForgottenRows) -> dict[str, str]:
    """The versions of variants, students and teachers that learned from the rows, such as ``flights@7``, and how.

    A version learned from a row if its refresh trained or proved it on a window with the row, or if the row is in the
    replay memory of its student.
    """
    learned: dict[str, str] = {}
    baselines = _Baselines(registry)
    for role in _ROLES:
        name = registered_name(registry.agent, role)
        versions = sorted(registry.client.search_model_versions(f"name = '{name}'"), key=lambda one: int(one.version))
        tags = registry.models.all_version_tags(name, versions)
        for version, of_model in zip(versions, tags, strict=True):
            how = _how_learned(registry, rows, baselines, version, of_model)
            if how:
                learned[f"{name}@{version.version}"] = how
    return learned


def clean_models(registry: Registry, rows: ForgottenRows) -> int:
    """Replace the input examples of models whose windows hold a row, and leave the rows out of replay memories.

    Can be killed at any time and repeated: a model whose files are replaced already is signed again.

    :returns: number of models that were changed.
    :raises SignatureError: if there is no key here to sign with, or a file is not the signed one.
    """
    baselines, signer, changed = _Baselines(registry), None, 0
    for model in list(registry.models.search(f"tags.agent = '{registry.agent}'")):
        edits: dict[str, Callable[[bytes], bytes]] = {}
        if baselines.hold(model.tags.get("refresh_run"), rows):
            edits = dict.fromkeys(_EXAMPLES, _blank_example)
        edits[_MEMORY] = partial(_without_ids, observation_ids=rows.observation_ids)
        if SIGNATURE not in model.tags:
            continue
        signed = registry.models.signed_tags(model.model_id, model.tags)
        contents = _edited(registry, model, signed, edits)
        if contents is None:
            continue
        signer = signer or load_signer()
        files = {path: sha256(content).hexdigest() for path, content in contents.items()}
        registry.models.replace_files(model.model_id, contents)
        statement = replace(signed, files=dict(signed.files) | files)
        _sign_versions(registry, statement, signer.sign)  # before the model: its signature says that all is done
        registry.models.set_tags(model.model_id, {SIGNATURE: signer.sign(model_statement(statement))})
        changed += 1
    return changed


def blot_runs(registry: Registry, traces: Traces) -> int:
    """Blot out the traces in the text files of all runs of the agent; returns the number of files changed."""
    if not traces:
        return 0
    changed = 0
    for run in _runs(registry):
        for path in _list_files(registry, run.info.run_id):
            if PurePosixPath(path).suffix not in _TEXT_FILES:
                continue
            content = read_artifact(str(run.info.artifact_uri), path, registry.uri)
            if content is None or not traces.in_bytes(content):
                continue
            text = content.decode("utf-8", errors="surrogateescape")
            blotted = traces.blot(text).encode("utf-8", "surrogateescape")
            registry.runs.replace_file(run.info.run_id, path, blotted)
            changed += 1
    return changed


# --------------------------------------------------------------------------- which models


class _Baselines:
    """The baselines of refresh runs, each read once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read: dict[str, Baseline | None] = {}

    def of(self, run_id: str | None) -> Baseline | None:
        """None if the run has none: it did not come to its end."""
        if run_id is None:
            return None
        if run_id not in self._read:
            self._read[run_id] = self._registry.runs.read_record(run_id, BASELINE, Baseline)
        return self._read[run_id]

    def hold(self, run_id: str | None, rows: ForgottenRows) -> bool:
        """Whether a row is, or may be, in the windows of a refresh."""
        baseline = self.of(run_id)
        return baseline is None or any(rows.in_window(one.start, one.end) for one in (baseline.train, baseline.test))


def _how_learned(
    registry: Registry, rows: ForgottenRows, baselines: _Baselines, version: Any, tags: Mapping[str, str]
) -> str:
    """In words; empty if it did not learn from the rows."""
    baseline = baselines.of(tags.get("refresh_run"))
    if baseline is None:
        return "its training window is unknown"
    if rows.in_window(baseline.train.start, baseline.train.end):
        return f"trained on {baseline.train.dates}"
    if rows.in_window(baseline.test.start, baseline.test.end):
        return f"proved on {baseline.test.dates}"
    student = tags.get("lineage.student") or (str(version.source) if tags.get("role") == "student" else None)
    memory = None if student is None else _read_memory(registry, model_id(student))
    if memory is not None and rows.observation_ids & set(memory["observation_id"].to_pylist()):
        return "a row is in its replay memory"
    return ""


def _read_memory(registry: Registry, logged_id: str) -> pa.Table | None:
    model = registry.client.get_logged_model(logged_id)
    content = read_artifact(str(model.artifact_location), _MEMORY, registry.uri)
    return None if content is None else pq.read_table(io.BytesIO(content))


# --------------------------------------------------------------------------- their files


def _edited(
    registry: Registry, model: Any, signed: Model, edits: Mapping[str, Callable[[bytes], bytes]]
) -> dict[str, bytes] | None:
    """The new content of the files that are signed and change; None if nothing changes.

    :raises SignatureError: if a file is neither as it was signed nor as it becomes.
    """
    contents: dict[str, bytes] = {}
    for path, edit in edits.items():
        if path not in signed.files:
            continue
        before = read_artifact(str(model.artifact_location), path, registry.uri)
        if before is None:
            raise SignatureError(f"the files of {model.name} ({model.model_id}) lack {path}, which is signed")
        after, digest = edit(before), sha256(before).hexdigest()
        if digest != signed.files[path] and after != before:
            raise SignatureError(f"{path} of {model.name} ({model.model_id}) is not the file that was signed")
        if digest != signed.files[path] or after != before:
            contents[path] = after
    return contents or None


def _sign_versions(registry: Registry, statement: Model, sign: Callable[[str], str]) -> None:
    for role in _ROLES:
        name = registered_name(registry.agent, role)
        query = f"name = '{name}' and source_path = 'models:/{statement.model_id}'"
        for version in registry.client.search_model_versions(query):
            if SIGNATURE in version.tags:
                number = str(version.version)
                envelope = sign(model_statement(replace(statement, name=version.name, version=number)))
                registry.client.set_model_version_tag(version.name, number, SIGNATURE, envelope)


def _blank_example(content: bytes) -> bytes:
    """The same JSON with empty texts and zeros, but for the names of columns."""
    example = json.loads(content)
    blank = _blank(example)
    return content if blank == example else json.dumps(blank).encode()


def _blank(value: Any, key: str = "") -> Any:
    if key == "columns":
        return value
    if isinstance(value, dict):
        return {name: _blank(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_blank(part) for part in value]
    return "" if isinstance(value, str) else value if value is None or isinstance(value, bool) else type(value)(0)


def _without_ids(content: bytes, observation_ids: frozenset[str]) -> bytes:
    """A replay memory without these rows."""
    table = pq.read_table(io.BytesIO(content))
    dropped = pc.is_in(table["observation_id"], pa.array(sorted(observation_ids), pa.string()))
    if not pc.any(dropped).as_py():
        return content
    buffer = io.BytesIO()
    pq.write_table(table.filter(pc.invert(dropped)), buffer)
    return buffer.getvalue()


# --------------------------------------------------------------------------- runs


def _runs(registry: Registry) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = registry.client.search_runs(
            [registry.experiment_id], run_view_type=3, max_results=_RUNS_PER_CALL, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _list_files(registry: Registry, run_id: str, folder: str | None = None) -> Iterable[str]:
    try:
        entries = registry.client.list_artifacts(run_id, folder)
    except RegistryError:
        return
    for entry in entries:
        if entry.is_dir:
            yield from _list_files(registry, run_id, entry.path)
        else:
            yield str(entry.path)
