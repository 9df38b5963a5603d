"""The local copy of the champion on this machine's disk, and how it follows the registry.

``STILLHOUSE_HOME/runtime/<agent>/`` holds ``champion.json``, which names the folder to decide with and the signature of
its files, and that folder. The file is replaced atomically, and only after the new champion was fetched, verified and
tried out: so every process finds a champion there that works, even if the registry is down. The folder of the previous
champion stays for processes that still read it.

Only signed files are used (:mod:`stillhouse.signing`): each file of the folder must be signed, as part of a version of
this agent, by a key that is trusted here. The release is signed too; its number reveals a version that was withdrawn.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock
from pydantic import AwareDatetime, Field, ValidationError

from stillhouse.config import AgentConfig, home
from stillhouse.errors import NoChampionError, SchemaError, SignatureError, StillhouseError
from stillhouse.files import write_atomic
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ModelRef, Record, short_id
from stillhouse.runtime.rows import Batch, ObservationSchema
from stillhouse.signing import read_signed_model, read_signed_release, require_released
from stillhouse.variant import InputError, Variant
from stillhouse.verifying import SIGNATURE_FILE, FilesDiffer, Model, check_files, read_files

if TYPE_CHECKING:
    from stillhouse.registry import Registry

__all__ = ["Champions", "LoadedChampion", "Pointer", "runtime_folder"]


def runtime_folder(agent: str) -> Path:
    """The folder with the local copy of the agent's champion.

    >>> runtime_folder("flights").parts[-2:]
    ('runtime', 'flights')
    """
    return home() / "runtime" / agent


class Pointer(Record):
    """``champion.json``: the champion to decide with here, and all that is needed to decide while MLflow is down."""

    version: str = Field(description="such as flights@7")
    uri: str = Field(description="its address in MLflow")
    run_id: str | None
    folder: str = Field(description="name of the folder with its files, beside this file")
    signature: str = Field(description="the signed statement about its files")
    release: str = Field(description="the signed statement that made it champion")
    release_number: int = Field(ge=1, description="number of that release: a version with an older one was withdrawn")
    promoted_at: AwareDatetime | None
    teacher: ModelRef | None = Field(default=None, description="the teacher it was distilled from; only with a cascade")
    teacher_folder: str | None = Field(default=None, description="name of the folder with the teacher's files")
    teacher_signature: str | None = Field(default=None, description="the signed statement about the teacher's files")
    knowledge_base: str = Field(description="identity of the knowledge base, for the decision ids")
    before: tuple[str, ...] = Field(default=(), description="folders of the previous champion, which may be in use")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of this champion."""
        return (self.folder,) if self.teacher_folder is None else (self.folder, self.teacher_folder)


class _SignedVersion(NamedTuple):
    """The verified signature and release of a version."""

    signature: str
    release: str
    model: Model
    release_number: int

    @property
    def pointer_fields(self) -> dict[str, Any]:
        """The values for the pointer's fields."""
        return {"signature": self.signature, "release": self.release, "release_number": self.release_number}


class LoadedChampion:
    """A champion that is ready to decide. Immutable: a new champion is a new object.

    :param pointer: its entry in ``champion.json``; None for a variant from elsewhere.
    :raises SchemaError: if it reads columns that the agent file lacks, or has with another type.
    """

    def __init__(
        self, version: str, variant: Variant, schema: ObservationSchema, pointer: Pointer | None = None
    ) -> None:
        self.version = version
        self.variant = variant
        self.pointer = pointer
        self.actions: list[str] = variant.actions
        schema.require_columns(variant.columns, version)
        self._encode = variant.encoder.trusting(schema.columns)

    def probabilities(self, batch: Batch) -> np.ndarray[Any, Any]:
        """float32 ``[n, K]``. Thread-safe.

        :raises SchemaError: if a number is infinite, or too large for float32.
        """
        if not len(batch):
            return np.empty((0, len(self.actions)), dtype=np.float32)
        try:
            matrix = self._encode(batch.values)
        except InputError as error:
            raise SchemaError(str(error)) from error
        return self.variant.probabilities(matrix)


class Champions:
    """The local copies of one agent's champions. Not thread-safe, but safe for several processes."""

    def __init__(self, config: AgentConfig, schema: ObservationSchema | None = None) -> None:
        self.config = config
        self.folder = runtime_folder(config.agent)
        self.file = self.folder / "champion.json"
        self._schema = schema or ObservationSchema(config)

    def read(self) -> Pointer | None:
        """The content of ``champion.json``; None if it does not exist or cannot be parsed. Does not contact MLflow."""
        try:
            return Pointer.model_validate_json(self.file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def file_stamp(self) -> tuple[int, int] | None:
        """Inode and modification time of ``champion.json``, which change with its content; None if there is no file."""
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def load(self, pointer: Pointer) -> LoadedChampion:
        """Verify and load the copy on disk, and warm it up on one row of missing values.

        :raises SignatureError: if its signature is not trusted here.
        :raises NoChampionError: if it is damaged or does not run here.
        :raises SchemaError: if it reads other columns than the agent file has.
        """
        model = self._verify_champion(pointer)
        self._require_intact(pointer.version, pointer.folder, model)
        return self._load_and_try(pointer.version, self.folder / pointer.folder, pointer)

    def read_files(self, pointer: Pointer) -> dict[str, bytes]:
        """The variant's signed files by path, and :data:`SIGNATURE_FILE`, with which a device verifies them.

        :raises SignatureError: if its signature is not trusted here.
        :raises NoChampionError: if it is damaged.
        """
        model = self._verify_champion(pointer)
        try:
            files = read_files(self.folder / pointer.folder, model.handed_out)
        except (FilesDiffer, OSError) as error:
            raise self._damaged(pointer.version, pointer.folder, error) from error
        envelopes = json.dumps({"model": pointer.signature, "release": pointer.release})
        return files | {SIGNATURE_FILE: envelopes.encode()}

    def require_trusted(self, pointer: Pointer) -> None:
        """:raises SignatureError: if the champion's signature is not trusted here (any more)."""
        self._verify_champion(pointer)

    def teacher_folder(self, pointer: Pointer) -> Path | None:
        """The folder of the champion's teacher, verified; None if there is no copy of it.

        :raises SignatureError: if its signature is not trusted here.
        :raises NoChampionError: if it is damaged.
        """
        if pointer.teacher_folder is None:
            return None
        model = self._verify_teacher(pointer)
        self._require_intact(f"the teacher of {pointer.version}", pointer.teacher_folder, model)
        return self.folder / pointer.teacher_folder

    def follow(self, registry: Registry) -> Pointer | None:
        """Update the local copy to the registry's champion: fetch, verify, try out, and only then point to it.

        A damaged copy is fetched again; if anything fails, the previous copy stays. A version is accepted only if it
        is signed, and released later than the present one. If the agent has a cascade, the champion's teacher is
        fetched afterwards: a teacher that cannot be fetched does not delay its champion.

        :returns: the new content of ``champion.json``; None if no version was ever promoted.
        :raises RegistryError: if MLflow does not answer.
        :raises SignatureError: if it, or one of its files, differs from what was signed and released last.
        :raises SchemaError: if the new champion reads other columns than the agent file has.
        :raises NoChampionError: if it does not run here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "follow.lock"):
            pointer, champion = self.read(), registry.champion()
            if champion is None:
                return pointer
            signed = self._verify_release(registry, champion, pointer)
            if pointer is None or not self._is_intact_copy(pointer, champion):
                pointer = self._write_pointer(self._fetch_champion(registry, champion, pointer, signed))
            elif (pointer.signature, pointer.release) != (signed.signature, signed.release):  # signed or released again
                pointer = self._write_pointer(pointer.model_copy(update=signed.pointer_fields))
            if self.config.runtime.cascade and not self._has_teacher(pointer):
                pointer = self._write_pointer(self._fetch_teacher(registry, champion, pointer))
            return pointer

    # ----------------------------------------------------------------- a new champion

    def _verify_release(self, registry: Registry, champion: ModelRef, present: Pointer | None) -> _SignedVersion:
        """Verify the champion's signature and its newest release, which must not be older than the present one."""
        signed = self._verify(str(champion), *registry.models.envelopes(champion))
        seen = 0 if present is None else present.release_number
        is_other = present is not None and str(champion) != present.version
        if signed.release_number < seen or (signed.release_number == seen and is_other):
            raise SignatureError(
                f"{champion} was withdrawn: it is release {signed.release_number} of {self.config.agent}, and release "
                f"{seen} was seen here already. If MLflow was set up anew, remove {self.file}"
            )
        return signed

    def _fetch_champion(
        self, registry: Registry, champion: ModelRef, present: Pointer | None, signed: _SignedVersion
    ) -> Pointer:
        folder = f"variant-{champion.version}-{short_id(champion.uri, champion.run_id)}"
        registry.models.fetch(champion, self.folder / folder)
        self._require_intact(str(champion), folder, signed.model)
        self._load_and_try(str(champion), self.folder / folder, None)
        promoted_at = registry.models.tags(champion).get("promoted_at")
        return Pointer(
            version=str(champion),
            uri=champion.uri,
            run_id=champion.run_id,
            folder=folder,
            **signed.pointer_fields,
            promoted_at=datetime.fromisoformat(promoted_at) if promoted_at else None,
            knowledge_base=self._knowledge_base_id(present),
            before=_previous_folders(folder, present),
        )

    def _fetch_teacher(self, registry: Registry, champion: ModelRef, pointer: Pointer) -> Pointer:
        teacher = registry.baseline(champion).teacher
        folder = f"teacher-{short_id(teacher.uri, teacher.run_id)}"
        registry.models.fetch(teacher, self.folder / folder)
        with_teacher = pointer.model_copy(
            update={
                "teacher": teacher,
                "teacher_folder": folder,
                "teacher_signature": registry.models.envelopes(teacher)[0],
            }
        )
        self._require_intact(f"the teacher of {pointer.version}", folder, self._verify_teacher(with_teacher))
        return with_teacher

    def _write_pointer(self, pointer: Pointer) -> Pointer:
        """Replace ``champion.json`` atomically and remove unused folders; the caller holds the lock."""
        write_atomic(self.file, pointer.model_dump_json(indent=1))
        self._remove_unused_folders(pointer)
        return pointer

    def _load_and_try(self, version: str, folder: Path, pointer: Pointer | None) -> LoadedChampion:
        """Load the variant in the folder and check that it gives probabilities for a row of missing values."""
        try:
            variant = Variant(folder, threads=self.config.runtime.threads)
            champion = LoadedChampion(version, variant, self._schema, pointer)
            probs = champion.probabilities(self._schema.missing_row())
        except StillhouseError:
            raise
        except Exception as error:  # of ONNX Runtime, whose errors have no common base class
            raise NoChampionError(
                f"{version} in {folder} does not run here: {type(error).__name__}: {error}"
            ) from error
        if probs.shape != (1, len(champion.actions)) or not np.isfinite(probs).all() or abs(probs.sum() - 1) > 1e-3:
            raise NoChampionError(
                f"{version} answers {probs.tolist()} to a row of missing values: these are no probabilities"
            )
        return champion

    def _knowledge_base_id(self, present: Pointer | None) -> str:
        """The identity of the knowledge base; if it is out of reach, as the present pointer has it."""
        try:
            return KnowledgeBase(self.config).tables.identity()
        except Exception:  # any exception of a store that does not answer
            if present is None:
                raise
            return present.knowledge_base

    # ----------------------------------------------------------------- signatures

    def _verify(self, version: str, signature: str | None, release: str | None) -> _SignedVersion:
        """Verify that the version is a variant of this agent and was released, by keys that are trusted here."""
        model, released = read_signed_model(signature, version), read_signed_release(release, version)
        require_released(model, released, self.config.agent, version)
        if version != f"{model.name}@{model.version}" or model.role != "variant":
            raise SignatureError(f"{version} cannot be used: it is signed as {model.role} {model.name}@{model.version}")
        assert signature is not None and release is not None  # both were read
        return _SignedVersion(signature, release, model, released.number)

    def _verify_champion(self, pointer: Pointer) -> Model:
        return self._verify(pointer.version, pointer.signature, pointer.release).model

    def _verify_teacher(self, pointer: Pointer) -> Model:
        """Verify that the teacher is the one that the champion was distilled from."""
        label = f"the teacher of {pointer.version}"
        champion = read_signed_model(pointer.signature, pointer.version)
        teacher = read_signed_model(pointer.teacher_signature, label)
        if teacher.agent != self.config.agent or teacher.role != "teacher":
            raise SignatureError(
                f"{label} cannot be used: it is signed as {teacher.role} {teacher.name} of {teacher.agent!r}"
            )
        if teacher.model_id != champion.lineage.get("teacher"):
            raise SignatureError(f"{label} cannot be used: {pointer.version} was distilled from another")
        return teacher

    # ----------------------------------------------------------------- the files on disk

    def _is_intact_copy(self, pointer: Pointer, champion: ModelRef) -> bool:
        """Whether the local copy is of that champion, verified and undamaged."""
        if (pointer.uri, pointer.run_id) != (champion.uri, champion.run_id):
            return False
        try:
            self._require_intact(pointer.version, pointer.folder, self._verify_champion(pointer))
        except (NoChampionError, SignatureError):
            return False
        return True

    def _has_teacher(self, pointer: Pointer) -> bool:
        try:
            return self.teacher_folder(pointer) is not None
        except (NoChampionError, SignatureError):
            return False

    def _require_intact(self, label: str, folder: str, model: Model) -> None:
        try:
            check_files(self.folder / folder, model.handed_out)
        except (FilesDiffer, OSError) as error:
            raise self._damaged(label, folder, error) from error

    def _damaged(self, label: str, folder: str, error: Exception) -> NoChampionError:
        return NoChampionError(
            f"the copy of {label} in {self.folder / folder} is damaged: its files have other checksums than were "
            f"signed ({error}); it is fetched again as soon as MLflow answers"
        )

    def _remove_unused_folders(self, pointer: Pointer) -> None:
        """Remove folders that are no longer needed, and downloads of killed processes; the caller holds the lock."""
        needed = {*pointer.folders, *pointer.before}
        for path in self.folder.iterdir():
            if path.is_dir() and re.match(r"\.?(variant|teacher)-", path.name) and path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _previous_folders(folder: str, present: Pointer | None) -> tuple[str, ...]:
    """The previous champion's folders to keep; if the same champion is fetched again, those that were kept for it."""
    if present is None:
        return ()
    return present.before if present.folder == folder else present.folders
