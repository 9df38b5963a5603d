"""Registered models of one agent: which version is champion, which was, which would be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stillhouse.config import home
from stillhouse.errors import RegistryError
from stillhouse.records import Baseline, ModelRef, Scorecard, Window
from stillhouse.registry.connection import does_not_exist, process_default
from stillhouse.registry.downloads import bring
from stillhouse.registry.entries import Role, VersionEntry
from stillhouse.registry.models import Models, model_id
from stillhouse.registry.packaging import NATIVE, PAYLOAD
from stillhouse.registry.runs import now, texts

__all__ = ["Registry", "Rollback"]

_ROLLING_BACK = "rolling_back"  # JSON on the registered model while a rollback is under way: to, from, since


class Rollback(NamedTuple):
    """A return to the champion before, from its first step to its last."""

    champion: ModelRef
    before: ModelRef | None
    """Who was champion when it was asked for."""
    began_at: str
    """ISO 8601, UTC: the same however often it is taken up again."""


class Registry(Models):
    """One agent in MLflow: its experiment, its runs, and the registered models ``<agent>`` (the variants),
    ``<agent>-teacher`` and ``<agent>-student``.

    Aliases live on ``<agent>``: ``champion``, ``previous``, ``challenger``; the teacher's and the student's
    ``champion`` and ``previous`` are those that the variant of that alias descends from. :meth:`promote` and
    :meth:`rollback` may be killed at any moment: the same call again ends in the same state. One process at a
    time may move an agent's aliases.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    :raises RegistryError: from any method, if MLflow does not answer or refuses.
    """

    def registered_name(self, role: Role) -> str:
        """The registered model that holds this agent's models of ``role``."""
        return self.agent if role == "variant" else f"{self.agent}-{role}"

    # ----------------------------------------------------------------- versions

    def register(self, ref: ModelRef, name: str, tags: Mapping[str, object] | None = None) -> ModelRef:
        """Make a logged model a version of the registered model ``name``, with its own tags and ``tags``.

        A logged model that is a version already is not registered again; ``tags`` are set all the same.
        """
        source = self._logged_uri(ref)
        found = self._registered(name, source)
        if found is not None:
            for key, value in texts(tags or {}).items():
                self.client.set_model_version_tag(name, found, key, value)
            return self._ref(self.client.get_model_version(name, found))
        self._ensure_registered_model(name)
        inherited = self.client.get_logged_model(model_id(source)).tags
        own = {key: value for key, value in inherited.items() if not key.startswith(("mlflow.", "descendant."))}
        with process_default(self.uri):
            made = self.client.create_model_version(
                name, source, run_id=ref.run_id, tags=own | texts(tags or {}), model_id=model_id(source)
            )
        return self._ref(made)

    def version(self, name: str, alias_or_version: str) -> ModelRef | None:
        """The version of ``name`` under an alias (``"champion"``) or a number (``"3"``); None if there is none."""
        number = alias_or_version if alias_or_version.isdigit() else self._aliases(name).get(alias_or_version)
        if number is None:
            return None
        try:
            return self._ref(self.client.get_model_version(name, number))
        except RegistryError as error:
            if does_not_exist(error):
                return None
            raise

    def champion(self) -> ModelRef | None:
        """The variant that the agent runs."""
        return self.version(self.agent, "champion")

    def previous(self) -> ModelRef | None:
        """The champion before, which :meth:`rollback` returns to."""
        return self.version(self.agent, "previous")

    def challenger(self) -> ModelRef | None:
        """The variant that waits for approval."""
        return self.version(self.agent, "challenger")

    def versions(self) -> list[VersionEntry]:
        """All versions of the agent's variants, newest first."""
        names: dict[str, list[str]] = {}
        for alias, number in sorted(self._aliases(self.agent).items()):
            names.setdefault(number, []).append(alias)
        found = self.client.search_model_versions(f"name = '{self.agent}'")
        entries = [_entry(version, names.get(str(version.version), [])) for version in found]
        return sorted(entries, key=lambda entry: -int(entry.version))

    def tags(self, ref: ModelRef) -> dict[str, str]:
        """Tags of a version, or of a logged model that is no version yet."""
        if ref.version is not None:
            return dict(self.client.get_model_version(ref.name, ref.version).tags)
        return dict(self.client.get_logged_model(model_id(ref.uri)).tags)

    def scorecard(self, ref: ModelRef) -> Scorecard:
        """The scorecard that was logged with the model."""
        model = self.client.get_logged_model(model_id(self._logged_uri(ref)))
        with TemporaryDirectory() as folder:
            return Scorecard.model_validate_json(self._download(model, "scorecard.json", folder).read_bytes())

    def baseline(self, ref: ModelRef) -> Baseline:
        """What the refresh that made this variant was trained and proved on.

        :raises RegistryError: if it was not logged.
        """
        found = self.read_record(self.tags(ref)["refresh_run"], "baseline.json", Baseline)
        if found is None:
            raise RegistryError(f"{ref} has no baseline.json in its refresh run: refresh {self.agent!r} again")
        return found

    def windows(self) -> dict[str, tuple[Window, ...]]:
        """What each version of the agent's variants was trained and proved on, by its name, ``flights@7``.

        :raises RegistryError: if one of them does not say.
        """
        baselines: dict[str, Baseline] = {}  # several variants may be of one refresh
        found: dict[str, tuple[Window, ...]] = {}
        for entry in self.versions():
            ref = ModelRef(name=self.agent, version=entry.version, uri=f"models:/{self.agent}/{entry.version}")
            run = self.tags(ref).get("refresh_run")
            if run is None:
                raise RegistryError(f"{ref} is of no refresh, so what it was trained on is not known")
            if run not in baselines:
                baselines[run] = self.baseline(ref)
            found[str(ref)] = (baselines[run].train, baselines[run].test)
        return found

    def profile(self, ref: ModelRef) -> bytes:
        """The profile of what this variant was trained on, as :mod:`stillhouse.drift.profile` wrote it.

        :raises RegistryError: if it was not logged.
        """
        return self.read_file(self.tags(ref)["refresh_run"], "profile.arrow")

    def version_of(self, refresh_id: str, variant: str) -> str:
        """The version that a refresh registered for one of its variants.

        :raises RegistryError: if there is none.
        """
        for entry in self.versions():
            if entry.refresh_id == refresh_id and entry.variant == variant:
                return entry.version
        raise RegistryError(f"{self.agent} has no version of variant {variant!r} from refresh {refresh_id}")

    def fetch(self, ref: ModelRef, folder: Path | None = None) -> Path:
        """The local folder of a variant or teacher, or of a student's ``model.pt2``, downloaded once.

        It appears only when it is complete.

        :param folder: where it is to lie; by default ``STILLHOUSE_HOME/models/<model id>``.
        """
        logged = model_id(self._logged_uri(ref))
        cached = folder or home() / "models" / logged
        if not cached.exists():
            model = self.client.get_logged_model(logged)
            role = model.tags["role"]
            self._bring(model, PAYLOAD[role], cached, inner=role != "student")
        return cached

    def student_files(self, variant: ModelRef) -> Path | None:
        """The folder of the student that a variant was made from, as it was logged: weights, columns, memory.

        None if the variant descends from no student, or from one that was logged as a graph alone.
        """
        address = self.tags(variant).get("lineage.student")
        if address is None:
            return None
        model = self.client.get_logged_model(model_id(address))
        if NATIVE not in model.tags:
            return None
        cached = home() / "models" / f"{model.model_id}-{NATIVE}"
        if not cached.exists():
            self._bring(model, NATIVE, cached, inner=False)
        return cached

    def _bring(self, model: Any, path: str, target: Path, *, inner: bool) -> None:
        """Download ``path`` among the model's files, or the one folder below it; ``target`` appears when complete."""

        def download(folder: str) -> Path:
            payload = self._download(model, path, folder)
            return _inside(payload) if inner else payload

        bring(download, target)

    # ----------------------------------------------------------------- aliases

    def propose(self, version: str) -> None:
        """Let ``version`` wait for approval as challenger."""
        self._require(version)
        self.client.set_registered_model_alias(self.agent, "challenger", version)

    def promote(self, version: str) -> None:
        """Make ``version`` champion, and the old champion previous.

        Asked again after a kill it ends in the same state; :meth:`promotion` tells since when.

        :raises RegistryError: if there is no such version.
        """
        self._require(version)
        aliases = self._aliases(self.agent)
        old = aliases.get("champion")
        self._forget_rollback()
        if old != version:
            self._tag(version, champion_before=old or "", promoted_at=now())
            self._point("previous", old)
            self._point("champion", version)
        if aliases.get("challenger") == version:
            self._point("challenger", None)
        self._follow()

    def promotion(self, version: str) -> tuple[ModelRef | None, str]:
        """Whom ``version`` replaced when it was promoted last, and when that was (ISO 8601, UTC)."""
        tags = self.tags(self._require(version))
        before = self._champion_before(version)
        return self.version(self.agent, before) if before else None, tags.get("promoted_at", "")

    def rollback(self, settle: Callable[[Rollback], None] = lambda _: None) -> ModelRef:
        """Make the previous champion the champion again; its own predecessor becomes previous.

        :param settle: called when the aliases stand, before it is forgotten that somebody asked for this. Killed before
            or in it, the next call takes this same roll-back up again, with the same ``began_at``.
        :raises RegistryError: if there is no previous champion.
        """
        asked = self._rollback_under_way() or self._begin_rollback()
        self._point("champion", asked["to"])
        self._point("previous", self._champion_before(asked["to"]))
        self._follow()
        champion = self._require(asked["to"])
        settle(Rollback(champion, self.version(self.agent, asked["from"]), asked["since"]))
        self._forget_rollback()
        return champion

    # ----------------------------------------------------------------- inside: rolling back

    def _begin_rollback(self) -> dict[str, str]:
        """Write down what is to be rolled back to, before any alias moves."""
        aliases = self._aliases(self.agent)
        champion, previous = aliases.get("champion"), aliases.get("previous")
        if champion is None:
            raise RegistryError(f"{self.agent} has no champion; promote a version first")
        if previous == champion:  # a promotion was killed after its first step
            previous = self._champion_before(champion)
        if previous is None:
            raise RegistryError(
                f"{self.agent} has no champion before version {champion}; promote another version instead "
                f"(versions: {', '.join(entry.version for entry in self.versions())})"
            )
        asked = {"to": previous, "from": champion, "since": now()}
        self._tag(champion, rolled_back_at=asked["since"], rolled_back_to=previous)
        self.client.set_registered_model_tag(self.agent, _ROLLING_BACK, json.dumps(asked))
        return asked

    def _rollback_under_way(self) -> dict[str, str] | None:
        value = self._registered_model(self.agent).tags.get(_ROLLING_BACK)
        return json.loads(value) if value else None

    def _forget_rollback(self) -> None:
        if self._rollback_under_way():
            self.client.delete_registered_model_tag(self.agent, _ROLLING_BACK)

    def _champion_before(self, version: str) -> str | None:
        """The version that ``version`` replaced, if it is still there."""
        found = self.version(self.agent, version)
        before = self.tags(found).get("champion_before") if found else None
        return before if before and self.version(self.agent, before) else None

    # ----------------------------------------------------------------- inside: aliases

    def _follow(self) -> None:
        """Let the teacher's and the student's aliases name what the variants of the same alias descend from."""
        for alias in ("champion", "previous"):
            variant = self.version(self.agent, alias)
            lineage = self.tags(variant) if variant else {}
            for role in ("teacher", "student"):
                name = f"{self.agent}-{role}"
                self._point(alias, self._registered(name, lineage.get(f"lineage.{role}")), name)

    def _point(self, alias: str, version: str | None, name: str | None = None) -> None:
        """Set ``alias`` to ``version``, or remove it; what is so already stays untouched."""
        name = name or self.agent
        now_at = self._aliases(name).get(alias)
        if now_at == version:
            return
        if version is None:
            self.client.delete_registered_model_alias(name, alias)
        else:
            self.client.set_registered_model_alias(name, alias, version)

    def _aliases(self, name: str) -> dict[str, str]:
        """Version by alias. MLflow gives numbers on SQL and text over REST."""
        model = self._registered_model(name)
        return {alias: str(version) for alias, version in model.aliases.items()} if model else {}

    def _registered_model(self, name: str) -> Any:
        try:
            return self.client.get_registered_model(name)
        except RegistryError as error:
            if does_not_exist(error):
                return None
            raise

    def _ensure_registered_model(self, name: str) -> None:
        if self._registered_model(name) is None:
            try:
                self.client.create_registered_model(name, tags={"agent": self.agent})
            except RegistryError:
                if self._registered_model(name) is None:  # else another process was faster
                    raise

    def _registered(self, name: str, source: str | None) -> str | None:
        """The first version of ``name`` that is the logged model ``source``."""
        if source is None:
            return None
        found = self.client.search_model_versions(f"name = '{name}' and source_path = '{source}'")
        return min((str(version.version) for version in found), key=int, default=None)

    def _require(self, version: str) -> ModelRef:
        found = self.version(self.agent, version)
        if found is None:
            there = ", ".join(entry.version for entry in self.versions()) or "none"
            raise RegistryError(f"{self.agent} has no version {version!r}; there are: {there}")
        return found

    def _tag(self, version: str, **tags: str) -> None:
        for key, value in tags.items():
            self.client.set_model_version_tag(self.agent, version, key, value)

    def _ref(self, version: Any) -> ModelRef:
        number = str(version.version)
        uri = f"models:/{version.name}/{number}"
        return ModelRef(name=version.name, version=number, uri=uri, run_id=version.run_id)

    # ----------------------------------------------------------------- inside: files

    def _download(self, model: Any, path: str, folder: str) -> Path:
        """A file or folder among a logged model's files, copied into ``folder``."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        address = f"{model.artifact_location.rstrip('/')}/{path}"
        try:
            return Path(download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=self.uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"the files of {model.name} ({model.model_id}) lack {path}: {error}") from error


def _inside(downloaded: Path) -> Path:
    """The one folder below, which bears the name it had when it was logged."""
    return next(child for child in downloaded.iterdir() if child.is_dir())


def _entry(version: Any, aliases: list[str]) -> VersionEntry:
    tags = version.tags
    return VersionEntry(
        version=str(version.version),
        aliases=tuple(aliases),
        variant=tags.get("variant", ""),
        auc=tags.get("auc"),
        accuracy=tags.get("accuracy"),
        bytes=tags.get("bytes", 0),
        p50_ms=tags.get("p50_ms"),
        refresh_id=tags.get("refresh_id", ""),
        registered_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        champion_before=tags.get("champion_before") or None,
        rolled_back="rolled_back_at" in tags,
    )
