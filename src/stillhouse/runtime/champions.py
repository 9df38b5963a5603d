"""The last good copy of a champion on this machine's disk, and how it follows the registry.

``STILLHOUSE_HOME/runtime/<agent>/`` holds ``champion.json``, which names the folder to decide with and the checksums of
its files, and that folder. The file is replaced at once, and only by a champion that was fetched, checked and tried: a
process finds one there that works, whatever is down. The folder of the champion before stays for those who read it yet.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from pydantic import AwareDatetime, Field, ValidationError

from stillhouse.config import AgentConfig, home
from stillhouse.errors import NoChampionError, SchemaError, StillhouseError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ModelRef, Record, short_id
from stillhouse.runtime.rows import Batch, Contract
from stillhouse.variant import InputError, Variant

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
    sha256: dict[str, str] = Field(description="by file")
    promoted_at: AwareDatetime | None
    teacher: ModelRef | None = Field(default=None, description="that it was distilled from; where there is a cascade")
    teacher_folder: str | None = Field(default=None, description="of its files, beside this one")
    teacher_sha256: dict[str, str] = Field(default_factory=dict)
    knowledge_base: str = Field(description="its identity, for the decisions' ids")
    before: tuple[str, ...] = Field(default=(), description="folders of the champion before, which may be in use")

    @property
    def folders(self) -> tuple[str, ...]:
        """Its own."""
        return (self.folder,) if self.teacher_folder is None else (self.folder, self.teacher_folder)


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
        self._fetched: dict[str, dict[str, str]] = {}

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
        """The folder of the variant: ``model.onnx``, ``manifest.json`` and the code that runs it."""
        return self.folder / pointer.folder

    def load(self, pointer: Pointer) -> Loaded:
        """The copy on disk, checked and tried on a row of missing values, so that it is warm.

        :raises NoChampionError: if it is damaged or does not run here.
        :raises SchemaError: if it reads other columns than the agent file has.
        """
        self._require_whole(pointer.version, pointer.folder, pointer.sha256)
        return self._tried(pointer.version, self.path(pointer), pointer)

    def teacher(self, pointer: Pointer) -> Path | None:
        """The folder of the champion's teacher, checked; None where none is kept.

        :raises NoChampionError: if it is damaged.
        """
        if pointer.teacher_folder is None:
            return None
        self._require_whole(f"the teacher of {pointer.version}", pointer.teacher_folder, pointer.teacher_sha256)
        return self.folder / pointer.teacher_folder

    def follow(self, models: Registry) -> Pointer | None:
        """Let the copy be of the version that is champion now: fetched, checked, tried, and only then pointed to.

        A damaged copy is fetched again, and whatever fails, the copy of before stays. Where the agent has a cascade,
        the champion's teacher comes too, after it: a teacher that cannot be had does not hold up its champion.

        :returns: what is decided with from now on; None where no version was ever promoted.
        :raises RegistryError: if MLflow does not answer.
        :raises SchemaError: if the new champion reads other columns than the agent file has.
        :raises NoChampionError: if it does not run here, or arrived damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "follow.lock"):
            pointer, champion = self.read(), models.champion()
            if champion is None:
                return pointer
            if pointer is None or not self._is(pointer, champion):
                pointer = self._point(self._new(models, champion, pointer))
            if self.config.runtime.cascade and not self._has_teacher(pointer):
                pointer = self._point(self._with_teacher(models, champion, pointer))
            return pointer

    # ----------------------------------------------------------------- a new champion

    def _new(self, models: Registry, champion: ModelRef, before: Pointer | None) -> Pointer:
        name = f"variant-{champion.version}-{short_id(champion.uri, champion.run_id)}"
        sha256 = self._bring(models, champion, name)
        self._tried(str(champion), self.folder / name, None)
        promoted = models.tags(champion).get("promoted_at")
        return Pointer(
            version=str(champion), uri=champion.uri, run_id=champion.run_id, folder=name, sha256=sha256,
            promoted_at=datetime.fromisoformat(promoted) if promoted else None,
            knowledge_base=self._knowledge_base(before), before=_before(name, before),
        )  # fmt: skip

    def _with_teacher(self, models: Registry, champion: ModelRef, pointer: Pointer) -> Pointer:
        teacher = models.baseline(champion).teacher
        name = f"teacher-{short_id(teacher.uri, teacher.run_id)}"
        sha256 = self._bring(models, teacher, name)
        return pointer.model_copy(update={"teacher": teacher, "teacher_folder": name, "teacher_sha256": sha256})

    def _bring(self, models: Registry, model: ModelRef, name: str) -> dict[str, str]:
        """Fetch a folder and return the checksums of its files; what this process fetched before need be whole only."""
        if not self._whole(name, self._fetched.get(name, {})):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._fetched[name] = _checksums(models.fetch(model, self.folder / name))
        return self._fetched[name]

    def _point(self, pointer: Pointer) -> Pointer:
        """Write it, at once, and remove what nobody needs any more; with the lock held."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(pointer.model_dump_json(indent=1), encoding="utf-8")
        partial.replace(self.file)
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

    # ----------------------------------------------------------------- what lies there

    def _is(self, pointer: Pointer, champion: ModelRef) -> bool:
        """Whether the copy is of that champion, and whole."""
        same = (pointer.uri, pointer.run_id) == (champion.uri, champion.run_id)
        return same and self._whole(pointer.folder, pointer.sha256)

    def _has_teacher(self, pointer: Pointer) -> bool:
        return pointer.teacher_folder is not None and self._whole(pointer.teacher_folder, pointer.teacher_sha256)

    def _whole(self, name: str, sha256: dict[str, str]) -> bool:
        try:
            return bool(sha256) and _checksums(self.folder / name) == sha256
        except OSError:
            return False

    def _require_whole(self, what: str, name: str, sha256: dict[str, str]) -> None:
        if not self._whole(name, sha256):
            raise NoChampionError(
                f"the copy of {what} in {self.folder / name} is damaged: its files have other checksums than when it "
                "was fetched; it is fetched again as soon as MLflow answers"
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


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in the folder, by its path in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
