"""The last good copy of a champion on this machine's disk, and how it follows the registry.

``STILLHOUSE_HOME/runtime/<agent>/`` holds ``champion.json``, which names the folder to decide with and what was signed
about its files, and that folder. The file is replaced at once, and only by a champion that was fetched, checked and
tried: a process finds one there that works, whatever is down. The folder of the champion before stays for those who
read it yet.

What is used is signed (:mod:`stillhouse.signing`): each file of the folder, as a version of this agent, by a key that
is trusted here; and the release, whose number tells a version that was withdrawn.
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
from stillhouse.files import write_whole
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ModelRef, Record, short_id
from stillhouse.runtime.rows import Batch, Contract
from stillhouse.signing import read_signed_model, read_signed_release, require_released
from stillhouse.variant import InputError, Variant
from stillhouse.verifying import SIGNATURE_FILE, FilesDiffer, Model, check_files, read_files

if TYPE_CHECKING:
    from stillhouse.registry import Registry

__all__ = ["Champions", "Loaded", "Pointer", "runtime_folder"]


def runtime_folder(agent: str) -> Path:
    """Where an agent's processes on this machine keep what they decide with."""
    return home() / "runtime" / agent


class Pointer(Record):
    """``champion.json``: what is decided with here, and what must be known when nothing else answers."""

    version: str = Field(description="such as flights@7")
    uri: str = Field(description="its address in MLflow")
    run_id: str | None
    folder: str = Field(description="of its files, beside this one")
    signature: str = Field(description="what was signed about its files")
    release: str = Field(description="what was signed when it became champion")
    release_number: int = Field(ge=1, description="of that release: an older one was withdrawn")
    promoted_at: AwareDatetime | None
    teacher: ModelRef | None = Field(default=None, description="that it was distilled from; where there is a cascade")
    teacher_folder: str | None = Field(default=None, description="of its files, beside this one")
    teacher_signature: str | None = Field(default=None, description="what was signed about those")
    knowledge_base: str = Field(description="its identity, for the decisions' ids")
    before: tuple[str, ...] = Field(default=(), description="folders of the champion before, which may be in use")

    @property
    def folders(self) -> tuple[str, ...]:
        """Its own."""
        return (self.folder,) if self.teacher_folder is None else (self.folder, self.teacher_folder)


class _Signed(NamedTuple):
    """What was signed about a version, checked."""

    signature: str
    release: str
    model: Model
    number: int

    @property
    def fields(self) -> dict[str, Any]:
        """Of the pointer."""
        return {"signature": self.signature, "release": self.release, "release_number": self.number}


class Loaded:
    """A champion that is ready to decide. Never changed: another champion is another object.

    :param pointer: where it comes from; None for a variant of one's own.
    :raises SchemaError: if it reads columns that the contract lacks, or has of another type.
    """

    def __init__(self, version: str, variant: Variant, contract: Contract, pointer: Pointer | None = None) -> None:
        self.version = version
        self.variant = variant
        self.pointer = pointer
        self.actions: list[str] = variant.actions
        contract.require(variant.columns, version)
        self._encode = variant.encoder.trusting(contract.columns)

    def probabilities(self, batch: Batch) -> np.ndarray[Any, Any]:
        """float32 ``[n, K]``; may be called from several threads at once.

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
    """The champions of one agent on this machine. For one thread; processes do not get into each other's way."""

    def __init__(self, config: AgentConfig, contract: Contract | None = None) -> None:
        self.config = config
        self.folder = runtime_folder(config.agent)
        self.file = self.folder / "champion.json"
        self._contract = contract or Contract(config)

    def read(self) -> Pointer | None:
        """What is decided with here; None if nothing is, or what says so cannot be read. MLflow is not asked."""
        try:
            return Pointer.model_validate_json(self.file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def seen(self) -> tuple[int, int] | None:
        """What tells one ``champion.json`` from another without reading it; None where there is none."""
        try:
            found = self.file.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def path(self, pointer: Pointer) -> Path:
        """The folder of the variant; whoever reads it checks it first."""
        return self.folder / pointer.folder

    def load(self, pointer: Pointer) -> Loaded:
        """The copy on disk, checked and tried on a row of missing values, so that it is warm.

        :raises SignatureError: if what it was signed as is not trusted here.
        :raises NoChampionError: if it is damaged or does not run here.
        :raises SchemaError: if it reads other columns than the agent file has.
        """
        model = self._trusted(pointer)
        self._require_whole(pointer.version, pointer.folder, model)
        return self._tried(pointer.version, self.path(pointer), pointer)

    def files(self, pointer: Pointer) -> dict[str, bytes]:
        """The variant's files by path, as they were signed, and :data:`SIGNATURE_FILE`, for whoever checks them again.

        :raises SignatureError: if what it was signed as is not trusted here.
        :raises NoChampionError: if it is damaged.
        """
        model = self._trusted(pointer)
        try:
            found = read_files(self.folder / pointer.folder, model.handed_out)
        except (FilesDiffer, OSError) as error:
            raise self._damaged(pointer.version, pointer.folder, error) from error
        envelopes = json.dumps({"model": pointer.signature, "release": pointer.release})
        return found | {SIGNATURE_FILE: envelopes.encode()}

    def require_trusted(self, pointer: Pointer) -> None:
        """:raises SignatureError: if what it was signed as is not trusted here (any more)."""
        self._trusted(pointer)

    def teacher(self, pointer: Pointer) -> Path | None:
        """The folder of the champion's teacher, checked; None where none is kept.

        :raises SignatureError: if what it was signed as is not trusted here.
        :raises NoChampionError: if it is damaged.
        """
        if pointer.teacher_folder is None:
            return None
        model = self._trusted_teacher(pointer)
        self._require_whole(f"the teacher of {pointer.version}", pointer.teacher_folder, model)
        return self.folder / pointer.teacher_folder

    def follow(self, registry: Registry) -> Pointer | None:
        """Let the copy be of the version that is champion now: fetched, checked, tried, and only then pointed to.

        A damaged copy is fetched again, and whatever fails, the copy of before stays. A version is taken only if it is
        signed, and released later than the one of before. Where the agent has a cascade, the champion's teacher comes
        too, after it: a teacher that cannot be had does not hold up its champion.

        :returns: what is decided with from now on; None where no version was ever promoted.
        :raises RegistryError: if MLflow does not answer.
        :raises SignatureError: if it, or a file of it, is not what was signed and released last.
        :raises SchemaError: if the new champion reads other columns than the agent file has.
        :raises NoChampionError: if it does not run here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "follow.lock"):
            pointer, champion = self.read(), registry.champion()
            if champion is None:
                return pointer
            signed = self._released(registry, champion, pointer)
            if pointer is None or not self._is(pointer, champion):
                pointer = self._point(self._new(registry, champion, pointer, signed))
            elif (pointer.signature, pointer.release) != (signed.signature, signed.release):  # signed, released again
                pointer = self._point(pointer.model_copy(update=signed.fields))
            if self.config.runtime.cascade and not self._has_teacher(pointer):
                pointer = self._point(self._with_teacher(registry, champion, pointer))
            return pointer

    # ----------------------------------------------------------------- a new champion

    def _released(self, registry: Registry, champion: ModelRef, before: Pointer | None) -> _Signed:
        """The champion's signature and its newest release, checked against what was released when last it was seen."""
        found = self._check(str(champion), *registry.models.envelopes(champion))
        seen = 0 if before is None else before.release_number
        if found.number < seen or (before is not None and found.number == seen and str(champion) != before.version):
            raise SignatureError(
                f"{champion} was withdrawn: it is release {found.number} of {self.config.agent}, and release {seen} "
                f"was seen here already. If MLflow was set up anew, remove {self.file}"
            )
        return found

    def _new(self, registry: Registry, champion: ModelRef, before: Pointer | None, signed: _Signed) -> Pointer:
        name = f"variant-{champion.version}-{short_id(champion.uri, champion.run_id)}"
        registry.models.fetch(champion, self.folder / name)
        self._require_whole(str(champion), name, signed.model)
        self._tried(str(champion), self.folder / name, None)
        promoted = registry.models.tags(champion).get("promoted_at")
        return Pointer(
            version=str(champion),
            uri=champion.uri,
            run_id=champion.run_id,
            folder=name,
            **signed.fields,
            promoted_at=datetime.fromisoformat(promoted) if promoted else None,
            knowledge_base=self._knowledge_base(before),
            before=_before(name, before),
        )

    def _with_teacher(self, registry: Registry, champion: ModelRef, pointer: Pointer) -> Pointer:
        teacher = registry.baseline(champion).teacher
        name = f"teacher-{short_id(teacher.uri, teacher.run_id)}"
        registry.models.fetch(teacher, self.folder / name)
        found = pointer.model_copy(
            update={
                "teacher": teacher,
                "teacher_folder": name,
                "teacher_signature": registry.models.envelopes(teacher)[0],
            }
        )
        self._require_whole(f"the teacher of {pointer.version}", name, self._trusted_teacher(found))
        return found

    def _point(self, pointer: Pointer) -> Pointer:
        """Write it, at once, and remove what nobody needs any more; with the lock held."""
        write_whole(self.file, pointer.model_dump_json(indent=1))
        self._tidy(pointer)
        return pointer

    def _tried(self, version: str, folder: Path, pointer: Pointer | None) -> Loaded:
        """The variant in the folder, if it fits the contract and says something about a row of missing values."""
        try:
            loaded = Loaded(version, Variant(folder, threads=self.config.runtime.threads), self._contract, pointer)
            said = loaded.probabilities(self._contract.missing())
        except StillhouseError:
            raise
        except Exception as error:  # of ONNX Runtime, whose errors have no base of their own
            raise NoChampionError(
                f"{version} in {folder} does not run here: {type(error).__name__}: {error}"
            ) from error
        if said.shape != (1, len(loaded.actions)) or not np.isfinite(said).all() or abs(said.sum() - 1) > 1e-3:
            raise NoChampionError(f"{version} says {said.tolist()} about a row of missing values: no probabilities")
        return loaded

    def _knowledge_base(self, before: Pointer | None) -> str:
        """The identity of the knowledge base; as it was known before, where that is out of reach."""
        try:
            return KnowledgeBase(self.config).identity()
        except Exception:  # whatever a store raises that does not answer
            if before is None:
                raise
            return before.knowledge_base

    # ----------------------------------------------------------------- what was signed

    def _check(self, version: str, signature: str | None, release: str | None) -> _Signed:
        """See that the version is this agent's and was released, by keys that are trusted here."""
        model, released = read_signed_model(signature, version), read_signed_release(release, version)
        require_released(model, released, self.config.agent, version)
        if version != f"{model.name}@{model.version}" or model.role != "variant":
            raise SignatureError(f"{version} cannot be used: it is signed as {model.role} {model.name}@{model.version}")
        assert signature is not None and release is not None  # both were read
        return _Signed(signature, release, model, released.number)

    def _trusted(self, pointer: Pointer) -> Model:
        return self._check(pointer.version, pointer.signature, pointer.release).model

    def _trusted_teacher(self, pointer: Pointer) -> Model:
        """What was signed about the champion's teacher: the one that the champion was distilled from, no other."""
        what = f"the teacher of {pointer.version}"
        champion, model = (
            read_signed_model(pointer.signature, pointer.version),
            read_signed_model(pointer.teacher_signature, what),
        )
        if model.agent != self.config.agent or model.role != "teacher":
            raise SignatureError(f"{what} cannot be used: it is signed as {model.role} {model.name} of {model.agent!r}")
        if model.model_id != champion.lineage.get("teacher"):
            raise SignatureError(f"{what} cannot be used: {pointer.version} was distilled from another")
        return model

    # ----------------------------------------------------------------- what lies there

    def _is(self, pointer: Pointer, champion: ModelRef) -> bool:
        """Whether the copy is of that champion, and whole."""
        if (pointer.uri, pointer.run_id) != (champion.uri, champion.run_id):
            return False
        try:
            self._require_whole(pointer.version, pointer.folder, self._trusted(pointer))
        except (NoChampionError, SignatureError):
            return False
        return True

    def _has_teacher(self, pointer: Pointer) -> bool:
        try:
            return self.teacher(pointer) is not None
        except (NoChampionError, SignatureError):
            return False

    def _require_whole(self, what: str, name: str, model: Model) -> None:
        try:
            check_files(self.folder / name, model.handed_out)
        except (FilesDiffer, OSError) as error:
            raise self._damaged(what, name, error) from error

    def _damaged(self, what: str, name: str, error: Exception) -> NoChampionError:
        return NoChampionError(
            f"the copy of {what} in {self.folder / name} is damaged: its files have other checksums than were signed "
            f"({error}); it is fetched again as soon as MLflow answers"
        )

    def _tidy(self, pointer: Pointer) -> None:
        """Remove folders that nobody needs, and what a killed process left half fetched; with the lock held."""
        needed = {*pointer.folders, *pointer.before}
        for path in self.folder.iterdir():
            if path.is_dir() and re.match(r"\.?(variant|teacher)-", path.name) and path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)


def _before(folder: str, pointer: Pointer | None) -> tuple[str, ...]:
    """Folders to keep of the champion before; of the same one, fetched again, those that it kept."""
    if pointer is None:
        return ()
    return pointer.before if pointer.folder == folder else pointer.folders
