"""Registered models of one agent: which version is champion, which was, which would be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stillhouse.config import home
from stillhouse.errors import RegistryError, SignatureError
from stillhouse.records import Baseline, ModelRef, Scorecard, Window
from stillhouse.registry.connection import does_not_exist, process_default
from stillhouse.registry.downloads import bring_signed
from stillhouse.registry.entries import Lineage, NewVariant, RefusedVariant, Role, VersionEntry
from stillhouse.registry.models import RELEASE, SIGNATURE, Models, model_id, version_key
from stillhouse.registry.names import BASELINE, PROFILE
from stillhouse.registry.packaging import NATIVE
from stillhouse.registry.remembered import Remembered
from stillhouse.registry.runs import now, read_before, texts
from stillhouse.signing import Signer, claimed_number, model_statement, release_statement, signed_release, signer
from stillhouse.verifying import Model, Release

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Registry", "Rollback"]

_ROLES: tuple[Role, ...] = ("teacher", "student", "variant")
_SCORECARD = "scorecard.json"
_ROLLING_BACK = "rolling_back"  # JSON on the registered model while a rollback is under way: to, from, since


_refresh_runs: Remembered[str | None] = Remembered()
"""Of versions, by :func:`version_key`."""


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

    Every version bears a signature (tag ``signature``), and those that became champion that of their newest release
    (tag ``release``); :meth:`fetch` and :meth:`student_files` give away only files that are as they were signed.

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    :raises RegistryError: from any method, if MLflow does not answer or refuses.
    :raises SignatureError: if what is used, registered or promoted is not signed, or not what was signed.
    """

    def registered_name(self, role: Role) -> str:
        """The registered model that holds this agent's models of ``role``."""
        return self.agent if role == "variant" else f"{self.agent}-{role}"

    # ----------------------------------------------------------------- versions

    def register(self, ref: ModelRef, name: str, tags: Mapping[str, object] | None = None) -> ModelRef:
        """Make a logged model a version of the registered model ``name``, with its own tags and ``tags``.

        A logged model that is a version already is not registered again; ``tags`` are set all the same. The version is
        signed by what was signed when the model was logged: what lies in the store is not asked.
        """
        source, signing = self._logged_uri(ref), signer()
        logged = self.client.get_logged_model(model_id(source)).tags
        statement = self._signed_tags(model_id(source), logged)
        found = self._registered(name, source)
        if found is not None:
            for key, value in texts(tags or {}).items():
                self.client.set_model_version_tag(name, found, key, value)
            version = self.client.get_model_version(name, found)
            if SIGNATURE not in version.tags:  # a registration was killed
                self._sign_version(signing, statement, version)
            return self._ref(version)
        own = {key: value for key, value in logged.items() if not key.startswith(("mlflow.", "descendant."))}
        own.pop(SIGNATURE, None)
        return self._create_version(name, statement, ref.run_id, own | texts(tags or {}), signing)

    def log_variants(
        self,
        run_id: str,
        variants: Sequence[NewVariant | RefusedVariant],
        lineage: Lineage,
        input_example: pd.DataFrame,
    ) -> dict[str, ModelRef]:
        """Log all candidates of a refresh, each in a nested run, and register those that are to be versions.

        What they have in common is looked up, written and signed for once.

        :param input_example: raw rows with at least the manifests' columns.
        :returns: by name, in their order: the version, or the logged model of one that becomes none. Those that are
            refused are not among them.
        :raises RegistryError: if the example lacks columns.
        """
        refresh = self._refresh(run_id, lineage)
        found: dict[str, ModelRef] = {}
        for variant, made in zip(variants, self._log_variants(refresh, variants, input_example), strict=True):
            if made is None or isinstance(variant, RefusedVariant):
                continue
            found[made.ref.name] = made.ref
            if variant.version_tags is not None:  # of this process, just now: nobody else can have registered it
                tags = dict(made.tags) | texts(variant.version_tags)
                found[made.ref.name] = self._create_version(
                    self.agent, made.statement, made.ref.run_id, tags, refresh.signing
                )
        return found

    def _create_version(
        self, name: str, logged: Model, run_id: str | None, tags: dict[str, str], signing: Signer
    ) -> ModelRef:
        """A new version, signed; the registered model is made where there is none yet.

        :param logged: what was signed about the logged model.
        """

        def create() -> Any:
            source = f"models:/{logged.model_id}"
            return self.client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=logged.model_id)

        with process_default(self.uri):
            try:
                made = create()
            except RegistryError as error:
                if not does_not_exist(error):
                    raise
                self._ensure_registered_model(name)
                made = create()
        self._sign_version(signing, logged, made)
        return self._ref(made)

    def _sign_version(self, signing: Signer, logged: Model, version: Any) -> None:
        number = str(version.version)
        envelope = signing.sign(model_statement(replace(logged, name=version.name, version=number)))
        self.client.set_model_version_tag(version.name, number, SIGNATURE, envelope)

    def version(self, name: str, alias_or_version: str) -> ModelRef | None:
        """The version of ``name`` under an alias (``"champion"``) or a number (``"3"``); None if there is none."""
        found = self._version(name, alias_or_version)
        return None if found is None else self._ref(found)

    def _version(self, name: str, alias_or_version: str) -> Any:
        """MLflow's own entity, with its tags; None if there is none."""
        try:
            if alias_or_version.isdigit():
                return self.client.get_model_version(name, alias_or_version)
            return self.client.get_model_version_by_alias(name, alias_or_version)
        except RegistryError as error:
            if does_not_exist(error) or (
                not alias_or_version.isdigit() and alias_or_version not in self._aliases(name)
            ):
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
        found = self._all_versions(self.agent)
        entries = [_entry(version, names.get(str(version.version), [])) for version in found]
        return sorted(entries, key=lambda entry: -int(entry.version))

    def tags(self, ref: ModelRef) -> dict[str, str]:
        """Tags of a version, or of a logged model that is no version yet."""
        if ref.version is not None:
            return dict(self.client.get_model_version(ref.name, ref.version).tags)
        return dict(self.client.get_logged_model(model_id(ref.uri)).tags)

    def scorecard(self, ref: ModelRef) -> Scorecard:
        """The scorecard that was logged with the model."""
        logged_id = model_id(self._logged_uri(ref))

        def read() -> Scorecard:
            model = self.client.get_logged_model(logged_id)
            content = self._read(model.artifact_location, _SCORECARD)
            if content is None:
                raise RegistryError(f"the files of {model.name} ({model.model_id}) lack {_SCORECARD}")
            return Scorecard.model_validate_json(content)

        card: Scorecard = read_before.get((self.uri, logged_id, _SCORECARD), read)
        return card

    def baseline(self, ref: ModelRef) -> Baseline:
        """What the refresh that made this variant was trained and proved on.

        :raises RegistryError: if it was not logged.
        """
        run_id = self._refresh_run(ref)

        def read() -> Baseline:
            found = self.read_record(run_id, BASELINE, Baseline)
            if found is None:
                raise RegistryError(f"{ref} has no {BASELINE} in its refresh run: refresh {self.agent!r} again")
            return found

        baseline: Baseline = read_before.get((self.uri, run_id, BASELINE), read)
        return baseline

    def windows(self) -> dict[str, tuple[Window, ...]]:
        """What each version of the agent's variants was trained and proved on, by its name, ``flights@7``.

        :raises RegistryError: if one of them does not say.
        """
        found: dict[str, tuple[Window, ...]] = {}
        for version in sorted(self._all_versions(self.agent), key=lambda version: -int(version.version)):
            ref, run_id = self._ref(version), version.tags.get("refresh_run")
            if run_id is None:
                raise RegistryError(f"{ref} is of no refresh, so what it was trained on is not known")
            _refresh_runs.put(version_key(self.uri, ref), run_id)
            baseline = self.baseline(ref)
            found[str(ref)] = (baseline.train, baseline.test)
        return found

    def profile(self, ref: ModelRef) -> bytes:
        """The profile of what this variant was trained on, as :mod:`stillhouse.drift.profile` wrote it.

        :raises RegistryError: if it was not logged.
        """
        run_id = self._refresh_run(ref)
        content: bytes = read_before.get((self.uri, run_id, PROFILE), lambda: self.read_file(run_id, PROFILE))
        return content

    def _refresh_run(self, ref: ModelRef) -> str:
        """The refresh run that made a model.

        :raises RegistryError: if it is of none.
        """

        def read() -> str | None:
            return self.tags(ref).get("refresh_run")

        run_id = read() if ref.run_id is None else _refresh_runs.get(version_key(self.uri, ref), read)
        if run_id is None:
            raise RegistryError(f"{ref} is of no refresh: refresh {self.agent!r} again")
        return run_id

    def version_of(self, refresh_id: str, variant: str) -> str:
        """The version that a refresh registered for one of its variants.

        :raises RegistryError: if there is none.
        """
        wanted = {"refresh_id": refresh_id, "variant": variant}
        found = [
            int(version.version)
            for version in self._all_versions(self.agent, f"tag.refresh_id = '{refresh_id}'")
            if wanted.items() <= version.tags.items()
        ]
        if not found:
            raise RegistryError(f"{self.agent} has no version of variant {variant!r} from refresh {refresh_id}")
        return str(max(found))

    def fetch(self, ref: ModelRef, folder: Path | None = None) -> Path:
        """The local folder of a variant or teacher, or of a student's ``model.pt2``, downloaded once.

        It appears only when it is complete.

        It is checked each time against what was signed; what was damaged since is downloaded again.

        :param folder: where it is to lie; by default ``STILLHOUSE_HOME/models/<model id>``.
        :raises SignatureError: if it is not signed, or arrived otherwise than it was signed.
        """
        signed = self.signed(ref)
        cached = folder or home() / "models" / signed.model_id
        self._bring(signed, signed.payload, cached, str(ref))
        return cached

    def fetch_whole(self, ref: ModelRef, folder: Path) -> Path:
        """All files of a model as MLflow keeps them, checked, in a folder that ``mlflow.pyfunc.load_model`` takes."""
        signed = self.signed(ref)
        self._bring(signed, "", folder, str(ref))
        return folder

    def signed(self, ref: ModelRef) -> Model:
        """What was signed about a version, or about a logged model that is no version yet.

        :raises SignatureError: if no trusted key has signed it, or it was signed as another one.
        """
        if ref.version is None:
            return self._signed_logged(model_id(ref.uri))
        return self._signed_version(self.client.get_model_version(ref.name, ref.version))

    def envelopes(self, ref: ModelRef) -> tuple[str | None, str | None]:
        """Signature and newest release of a version, as they are, for whoever checks them; None: it has none."""
        tags = self.tags(ref)
        return tags.get(SIGNATURE), tags.get(RELEASE)

    def sign_again(self) -> int:
        """Put all that a trusted key has signed about this agent under the key that signs now; how many statements.

        What no trusted key has signed stays as it is, and unusable.
        """
        signing, count = signer(), 0
        for version in [each for role in _ROLES for each in self._all_versions(self.registered_name(role))]:
            for tag in (SIGNATURE, RELEASE):
                if again := _signed_again(signing, version.tags.get(tag)):
                    self.client.set_model_version_tag(version.name, str(version.version), tag, again)
                    count += 1
            logged = re.fullmatch(r"models:/(m-\w+)", str(version.source))
            envelope = self.client.get_logged_model(logged[1]).tags.get(SIGNATURE) if logged else None
            if logged and (again := _signed_again(signing, envelope)):
                self.client.set_logged_model_tags(logged[1], {SIGNATURE: again})
                count += 1
        return count

    def student_files(self, variant: ModelRef) -> Path | None:
        """The folder of the student that a variant was made from, as it was logged: weights, columns, memory.

        None if the variant descends from no student, or from one that was logged as a graph alone.
        """
        address = self.tags(variant).get("lineage.student")
        if address is None:
            return None
        signed = self._signed_logged(model_id(address))
        if not signed.below(NATIVE):
            return None
        cached = home() / "models" / f"{signed.model_id}-{NATIVE}"
        self._bring(signed, NATIVE, cached, f"the student of {variant}")
        return cached

    def _bring(self, signed: Model, path: str, target: Path, what: str) -> None:
        """Let ``target`` be the folder ``path`` among the model's files, as they were signed."""
        files = signed.below(path) if path else dict(signed.files)

        def download(folder: str) -> Path:
            return self._download(self.client.get_logged_model(signed.model_id), path, folder)

        bring_signed(download, target, files, what)

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
        self._require_signed(self._require_entity(version))
        model = self._registered_model(self.agent)
        aliases = _aliases_of(model)
        old = aliases.get("champion")
        if _ROLLING_BACK in model.tags:
            self.client.delete_registered_model_tag(self.agent, _ROLLING_BACK)
        if old != version:
            self._tag(version, champion_before=old or "", promoted_at=now())
            self._point(self.agent, aliases, "previous", old)
        self._release(version)  # also of one whose alias somebody else has moved
        self._point(self.agent, aliases, "champion", version)
        if aliases.get("challenger") == version:
            self._point(self.agent, aliases, "challenger", None)
        self._follow(aliases)

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
        aliases = self._aliases(self.agent)
        self._release(asked["to"])
        self._point(self.agent, aliases, "champion", asked["to"])
        self._point(self.agent, aliases, "previous", self._champion_before(asked["to"]))
        self._follow(aliases)
        champion = self._require(asked["to"])
        settle(Rollback(champion, self.version(self.agent, asked["from"]), asked["since"]))
        self._forget_rollback()
        return champion

    # ----------------------------------------------------------------- inside: releasing

    def _require_signed(self, version: Any) -> None:
        """Nothing is moved before it is clear that it can be released."""
        signer()
        self._signed_version(version)

    def _release(self, version: str) -> None:
        """Sign that ``version`` is the champion from now on, and whatever was released before is not.

        Nothing is signed where that is so already. The number is beyond that of every release here, also those under
        keys that are trusted no longer: machines remember the greatest that they have seen.
        """
        released = self._all_versions(self.agent, f"tag.{RELEASE} LIKE '%'")
        envelopes = [each.tags[RELEASE] for each in released if RELEASE in each.tags]
        newest = max(self._trusted_releases(envelopes), key=lambda release: release.number, default=None)
        if newest is None or newest.version != version:
            number = 1 + max(map(claimed_number, envelopes), default=0)
            self._tag(version, **{RELEASE: signer().sign(release_statement(self.agent, version, number))})

    def _trusted_releases(self, envelopes: Sequence[str]) -> Iterator[Release]:
        for envelope in envelopes:
            with suppress(SignatureError):
                release = signed_release(envelope, self.agent)
                if release.agent == self.agent:
                    yield release

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
        self._require_signed(self.client.get_model_version(self.agent, previous))
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
        found = self._version(self.agent, version)
        before = found.tags.get("champion_before") if found else None
        return before if before and self._version(self.agent, before) else None

    # ----------------------------------------------------------------- inside: aliases

    def _follow(self, aliases: Mapping[str, str]) -> None:
        """Let the teacher's and the student's aliases name what the variants of the same alias descend from.

        :param aliases: of the variants, version by alias.
        """
        at = {role: self._aliases(self.registered_name(role)) for role in ("teacher", "student")}
        for alias in ("champion", "previous"):
            variant = self._version(self.agent, aliases[alias]) if alias in aliases else None
            lineage = variant.tags if variant else {}
            for role in ("teacher", "student"):
                name = self.registered_name(role)
                self._point(name, at[role], alias, self._registered(name, lineage.get(f"lineage.{role}")))

    def _point(self, name: str, aliases: dict[str, str], alias: str, version: str | None) -> None:
        """Set ``alias`` of ``name`` to ``version``, or remove it; what is so already stays untouched.

        :param aliases: of ``name`` as they are, and afterwards as they are then.
        """
        if aliases.get(alias) == version:
            return
        if version is None:
            self.client.delete_registered_model_alias(name, alias)
            del aliases[alias]
        else:
            self.client.set_registered_model_alias(name, alias, version)
            aliases[alias] = version

    def _aliases(self, name: str) -> dict[str, str]:
        """Version by alias."""
        return _aliases_of(self._registered_model(name))

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

    def _all_versions(self, name: str, where: str | None = None) -> list[Any]:
        """MLflow's entities, of those that meet ``where``."""
        wanted = f"name = '{name}'" if where is None else f"name = '{name}' and {where}"
        return list(self.client.search_model_versions(wanted))

    def _registered(self, name: str, source: str | None) -> str | None:
        """The first version of ``name`` that is the logged model ``source``."""
        if source is None:
            return None
        found = self.client.search_model_versions(f"name = '{name}' and source_path = '{source}'")
        return min((str(version.version) for version in found), key=int, default=None)

    def _require(self, version: str) -> ModelRef:
        return self._ref(self._require_entity(version))

    def _require_entity(self, version: str) -> Any:
        found = self._version(self.agent, version)
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

        address = f"{model.artifact_location.rstrip('/')}/{path}".rstrip("/")
        try:
            return Path(download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=self.uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"the files of {model.name} ({model.model_id}) lack {path}: {error}") from error


def _aliases_of(model: Any) -> dict[str, str]:
    """Version by alias. MLflow gives numbers on SQL and text over REST."""
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def _signed_again(signing: Signer, envelope: str | None) -> str | None:
    """None where there is nothing that a trusted key has signed."""
    if envelope is None:
        return None
    try:
        return signing.sign_again(envelope)
    except SignatureError:
        return None


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
