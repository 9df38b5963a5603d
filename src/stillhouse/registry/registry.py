"""Registered models of one agent: their versions, and the aliases champion, previous and challenger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RegistryError, SignatureError
from stillhouse.records import Baseline, ModelRef, Window
from stillhouse.registry.cache import Cache
from stillhouse.registry.connection import does_not_exist, process_default
from stillhouse.registry.entries import (
    Lineage,
    NewVariant,
    PoolVersion,
    RefusedVariant,
    Role,
    Rollback,
    UnrecordedChampion,
    VersionEntry,
)
from stillhouse.registry.experiment import open_experiment
from stillhouse.registry.metrics import version_tags
from stillhouse.registry.models import REGISTERED, RELEASE, SIGNATURE, Models, model_id, version_key
from stillhouse.registry.names import BASELINE, PROFILE, registered_name
from stillhouse.registry.runs import Runs, artifact_cache, days_since_1970, stringify, timestamp_now
from stillhouse.signing import (
    Signer,
    claimed_release_number,
    load_signer,
    model_statement,
    read_signed_release,
    release_statement,
)
from stillhouse.verifying import Model, Release

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Registry"]

_ROLES: tuple[Role, ...] = ("teacher", "student", "variant")
# tags of the registered model
_ROLLING_BACK = "rolling_back"  # JSON during a roll-back, with the keys: to, from ("" for none), since
_RECORDED_CHAMPION = "recorded_champion"  # the version that stillhouse made champion last
# tags of a version
FINAL_FIT_OF = "final_fit_of"  # the challenger that it is the final fit of, name@version
_CHOSEN = "chosen"  # of a logged model, and of the versions of an older stillhouse
_PROPOSED_AT = "proposed_at"  # when it last became challenger
_REJECTED_AT = "rejected_at"  # when a person rejected it; "" after a later promotion

_refresh_run_ids: Cache[str | None] = Cache()
"""Refresh run of versions, by :func:`version_key`."""
_refresh_modes: Cache[str] = Cache()
"""Mode of refreshes, by tracking URI and run id."""


class Registry:
    """One agent in MLflow: its runs, its logged models, and the registered models ``<agent>`` (the variants),
    ``<agent>-teacher`` and ``<agent>-student``.

    ``runs`` holds refresh and watch runs with their artifacts and metrics, ``models`` the logged models. The registry
    itself manages versions and aliases. ``<agent>`` has the aliases ``champion``, ``previous`` and ``challenger``; the
    aliases ``champion`` and ``previous`` of teacher and student follow the lineage of the variant with that alias.
    :meth:`promote` and :meth:`rollback` may be killed at any time: the same call again ends in the same state. Only one
    process at a time may move an agent's aliases. An alias ``champion`` that was moved in MLflow by hand is found by
    :meth:`unrecorded_champion`: it differs from the tag ``recorded_champion`` of the registered model, or in a store
    without this tag from the newest release.

    Every version has a signature (tag ``signature``); a version that became champion also has its newest release (tag
    ``release``). :meth:`Models.fetch` and :meth:`Models.student_files` return only files that match their signature.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     registry = Registry("flights", f"sqlite:///{folder}/mlflow.db")
    ...     run_id, _ = registry.runs.open_refresh("r1", tags={"cause": "first"}, params={"temperature": 2.0})
    ...     registry.runs.log(run_id, metrics={"loss": 0.4})
    ...     registry.runs.close_refresh(run_id)
    ...     registry.runs.tags(run_id)["cause"], registry.champion(), registry.versions()
    ('first', None, [])

    :param tracking_uri: by default ``MLFLOW_TRACKING_URI``, else SQLite under ``STILLHOUSE_HOME``.
    :raises RegistryError: from any method, if MLflow does not answer or refuses.
    :raises SignatureError: if a model that is used, registered or promoted is unsigned or differs from its signature.
    """

    def __init__(self, agent: str, tracking_uri: str | None = None) -> None:
        experiment = open_experiment(agent, tracking_uri)
        self.agent, self.client, self.uri = agent, experiment.client, experiment.uri
        self.experiment_id = experiment.experiment_id
        self.runs = Runs(experiment)
        self.models = Models(experiment, self.runs)

    # ----------------------------------------------------------------- registering

    def register(self, ref: ModelRef, name: str, tags: Mapping[str, object] | None = None) -> ModelRef:
        """Make a logged model a version of the registered model ``name``.

        The version has the tags that a person reads, and ``tags``; what programs need are tags of the logged model.
        A logged model that is already a version is not registered again, but gets ``tags``. The version's signature
        repeats the statement that was signed when the model was logged; the stored files are not read.
        """
        source, signer = self.models.logged_uri(ref), load_signer()
        logged_tags = self.client.get_logged_model(model_id(source)).tags
        statement = self.models.signed_tags(model_id(source), logged_tags)
        number = self._registered_as(name, source)
        if number is not None:
            for key, value in stringify(tags or {}).items():
                self.client.set_model_version_tag(name, number, key, value)
            version = self.client.get_model_version(name, number)
            if SIGNATURE not in version.tags:  # an earlier registration was killed before it signed
                self._sign_version(signer, statement, version)
            return _model_ref(version)
        shown = version_tags(logged_tags, **(tags or {}))
        return self._create_version(name, statement, ref.run_id, shown, signer)

    def publish_variants(
        self,
        run_id: str,
        variants: Sequence[NewVariant | RefusedVariant],
        lineage: Lineage,
        input_example: pd.DataFrame,
    ) -> dict[str, ModelRef]:
        """Log all candidates of a refresh, and register those with ``version_tags``.

        :param input_example: raw rows with at least the columns of the manifests.
        :returns: by name, in order: the version, or the logged model of a variant that is not registered. Refused
            variants are left out.
        :raises RegistryError: if the example lacks columns.
        """
        logged = self.models.log_variants(run_id, variants, lineage, input_example)
        signer = load_signer()
        refs: dict[str, ModelRef] = {}
        for variant, model in zip(variants, logged, strict=True):
            if model is None or isinstance(variant, RefusedVariant):
                continue
            refs[model.ref.name] = model.ref
            if variant.version_tags is not None:  # logged just now, so no version of it can exist yet
                shown = version_tags(model.tags, **variant.version_tags)
                refs[model.ref.name] = self._create_version(
                    self.agent, model.statement, model.ref.run_id, shown, signer
                )
        return refs

    def _create_version(
        self, name: str, logged: Model, run_id: str | None, tags: dict[str, str], signer: Signer
    ) -> ModelRef:
        """Create and sign a version; create the registered model if it does not exist.

        :param logged: the signed statement about the logged model.
        """

        def create() -> Any:
            source = f"models:/{logged.model_id}"
            return self.client.create_model_version(name, source, run_id=run_id, tags=tags, model_id=logged.model_id)

        with process_default(self.uri):
            try:
                version = create()
            except RegistryError as error:
                if not does_not_exist(error):
                    raise
                self._ensure_registered_model(name)
                version = create()
        self._sign_version(signer, logged, version)
        self.models.set_tags(logged.model_id, _registered_tags(version))
        return _model_ref(version)

    def _sign_version(self, signer: Signer, logged: Model, version: Any) -> None:
        number = str(version.version)
        envelope = signer.sign(model_statement(replace(logged, name=version.name, version=number)))
        self.client.set_model_version_tag(version.name, number, SIGNATURE, envelope)

    # ----------------------------------------------------------------- versions

    def version(self, name: str, alias_or_version: str) -> ModelRef | None:
        """The version of ``name`` under an alias (``"champion"``) or a number (``"3"``); None if it does not exist."""
        version = self._version(name, alias_or_version)
        return None if version is None else _model_ref(version)

    def _version(self, name: str, alias_or_version: str) -> Any:
        """MLflow's entity, with its tags; None if it does not exist."""
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
        """The variant that the agent uses."""
        return self.version(self.agent, "champion")

    def previous(self) -> ModelRef | None:
        """The previous champion, the target of :meth:`rollback`."""
        return self.version(self.agent, "previous")

    def challenger(self) -> ModelRef | None:
        """The variant that waits for approval."""
        return self.version(self.agent, "challenger")

    def versions(self) -> list[VersionEntry]:
        """All versions of the agent's variants, newest first."""
        names: dict[str, list[str]] = {}
        for alias, number in sorted(self._aliases(self.agent).items()):
            names.setdefault(number, []).append(alias)
        entries = [
            _version_entry(version, tags, names.get(str(version.version), []))
            for version, tags in self._all_versions_with_tags()
        ]
        return sorted(entries, key=lambda entry: -int(entry.version))

    def champions(self) -> list[ModelRef]:
        """The versions that ever became champion, the oldest version first."""
        released = self._all_versions(self.agent, f"tag.{RELEASE} LIKE '%'")
        return [_model_ref(version) for version in sorted(released, key=lambda version: int(version.version))]

    def pool_versions(self) -> list[PoolVersion]:
        """The version that each refresh chose, and all that ever became champion, the oldest first."""
        names: dict[str, list[str]] = {}
        for alias, number in sorted(self._aliases(self.agent).items()):
            names.setdefault(number, []).append(alias)
        return [
            PoolVersion(
                model=_model_ref(version),
                tags=tags,
                aliases=tuple(names.get(str(version.version), ())),
                released=RELEASE in version.tags,
                refused=self._refusal(version),
            )
            for version, tags in self._all_versions_with_tags()
            # an older stillhouse registered other candidates too, with the tag False
            if version.tags.get(_CHOSEN) != "False" or RELEASE in version.tags
        ]

    def version_of(self, refresh_id: str, variant: str) -> str:
        """The number of the version that a refresh registered for ``variant``; its final fit is another version.

        :raises RegistryError: if it does not exist.
        """
        tags = {"refresh_id": refresh_id, "variant": variant}

        def is_wanted(of_model: Mapping[str, str]) -> bool:
            return tags.items() <= of_model.items() and FINAL_FIT_OF not in of_model

        logged = [model for model in self.models.search(f"tags.refresh_id = '{refresh_id}'") if is_wanted(model.tags)]
        numbers = [
            number for model in logged if (number := self._registered_as(self.agent, f"models:/{model.model_id}"))
        ]
        if not numbers:  # registered by an older stillhouse
            versions = self._all_versions(self.agent, f"tag.refresh_id = '{refresh_id}'")
            numbers = [str(version.version) for version in versions if is_wanted(version.tags)]
        if not numbers:
            raise RegistryError(f"{self.agent} has no version of variant {variant!r} from refresh {refresh_id}")
        return max(numbers, key=int)

    def final_fits(self, refresh_id: str | None = None) -> dict[str, str]:
        """The challenger of each final fit, both as name@version, the oldest first; unsigned versions are left out.

        :param refresh_id: only of this refresh.
        """
        return {
            str(_model_ref(version)): tags[FINAL_FIT_OF]
            for version, tags in self._all_versions_with_tags()
            if FINAL_FIT_OF in tags and SIGNATURE in version.tags
            if refresh_id is None or tags.get("refresh_id") == refresh_id
        }

    # ----------------------------------------------------------------- figures of a version

    def log_quality(self, name: str, moment: datetime, quality: float) -> None:
        """Continue the metric ``quality`` of a version's run and logged model; a deleted version is passed over.

        :param name: ``flights@7``.
        :param moment: end of the rows that it was measured on.
        """
        ref = self.version(self.agent, name.rpartition("@")[2])
        if ref is not None and ref.run_id is not None:
            points = [(moment, days_since_1970(moment), {"quality": quality})]
            self.runs.log(ref.run_id, points=points, model_id=model_id(self.models.logged_uri(ref)))

    def log_gate(self, ref: ModelRef, metrics: Mapping[str, float]) -> None:
        """Log what the gate compared to the run and the logged model of a version."""
        if ref.run_id is not None:
            self.runs.log(ref.run_id, metrics=metrics, model_id=model_id(self.models.logged_uri(ref)))

    # ----------------------------------------------------------------- descriptions

    def describe_version(self, version: str, text: str, *, result: str) -> None:
        """Set the description of a version, and its tag ``result``.

        :param result: what became of it, such as ``promoted``, ``refused``, ``replaced``.
        """
        self.client.update_model_version(self.agent, version, text)
        self._set_version_tags(version, result=result)

    def describe_champion(self, version: str, text: str) -> None:
        """Set the description of the champion, of the registered model and of the experiment.

        :param text: Markdown, whose first lines MLflow's lists show as they are.
        """
        self.describe_version(version, text, result="promoted")
        self.client.update_registered_model(self.agent, text)
        self.client.set_experiment_tag(self.experiment_id, "mlflow.note.content", text)

    def read_description(self, ref: ModelRef) -> str:
        """The description of a version as Markdown; empty if it has none."""
        return str(self.client.get_model_version(ref.name, str(ref.version)).description or "")

    # ----------------------------------------------------------------- the refresh of a version

    def baseline(self, ref: ModelRef) -> Baseline:
        """The windows that the variant was trained and tested on, and the figures that watches compare with.

        :raises RegistryError: if it was not logged.
        """
        run_id = self._refresh_run_id(ref)

        def read() -> Baseline:
            record = self.runs.read_record(run_id, BASELINE, Baseline)
            if record is None:
                raise RegistryError(f"{ref} has no {BASELINE} in its refresh run: refresh {self.agent!r} again")
            return record

        baseline: Baseline = artifact_cache.get((self.uri, run_id, BASELINE), read)
        return baseline

    def windows(self) -> dict[str, tuple[Window, ...]]:
        """The training and test window of each version of the agent's variants, by its name such as ``flights@7``.

        :raises RegistryError: if a version has no baseline.
        """
        windows: dict[str, tuple[Window, ...]] = {}
        for version, tags in reversed(self._all_versions_with_tags()):
            ref, run_id = _model_ref(version), tags.get("refresh_run")
            if run_id is None:
                raise RegistryError(f"{ref} belongs to no refresh, so its training window is unknown")
            _refresh_run_ids.put(version_key(self.uri, ref), run_id)
            baseline = self.baseline(ref)
            windows[str(ref)] = (baseline.train, baseline.test)
        return windows

    def refresh_mode(self, ref: ModelRef) -> str:
        """The mode of the refresh that made the variant, as it was requested; empty if it was not recorded."""
        run_id = self._refresh_run_id(ref)
        return _refresh_modes.get((self.uri, run_id), lambda: self.runs.tags(run_id).get("mode", ""))

    def profile(self, ref: ModelRef) -> bytes:
        """The profile of the variant's training window, as :mod:`stillhouse.drift.profile` wrote it.

        :raises RegistryError: if it was not logged.
        """
        run_id = self._refresh_run_id(ref)
        content: bytes = artifact_cache.get((self.uri, run_id, PROFILE), lambda: self.runs.read_file(run_id, PROFILE))
        return content

    def _refresh_run_id(self, ref: ModelRef) -> str:
        """The refresh run that made a model.

        :raises RegistryError: if the model belongs to no refresh.
        """

        def read() -> str | None:
            return self.models.tags(ref).get("refresh_run")

        run_id = read() if ref.run_id is None else _refresh_run_ids.get(version_key(self.uri, ref), read)
        if run_id is None:
            raise RegistryError(f"{ref} belongs to no refresh: refresh {self.agent!r} again")
        return run_id

    # ----------------------------------------------------------------- promotion and roll-back

    def propose(self, version: str) -> str:
        """Make ``version`` the challenger, which waits for approval; does nothing if a person has rejected it.

        :returns: when it began to wait (ISO 8601, UTC): the same for each call as long as it waits; "" if it does not.
        :raises RegistryError: if ``version`` does not exist.
        """
        tags = self._require_version(version).tags
        if tags.get(_REJECTED_AT):
            return ""
        if self._aliases(self.agent).get("challenger") == version:
            return str(tags.get(_PROPOSED_AT, ""))
        proposed_at = timestamp_now()
        self._set_version_tags(version, **{_PROPOSED_AT: proposed_at})
        self.client.set_registered_model_alias(self.agent, "challenger", version)
        return proposed_at

    def reject(self, version: str) -> None:
        """Stop proposing ``version``: it is no longer challenger, and :meth:`propose` ignores it from now on."""
        self._require_version(version)
        self._set_version_tags(version, **{_REJECTED_AT: timestamp_now()})
        self.withdraw(version)

    def withdraw(self, version: str) -> None:
        """Take the alias ``challenger`` from ``version``, if it has it."""
        aliases = self._aliases(self.agent)
        if aliases.get("challenger") == version:
            self._set_alias(self.agent, aliases, "challenger", None)

    def promote(self, version: str, *, keep_challenger: bool = False) -> None:
        """Make ``version`` champion, and the recorded champion previous.

        The same call after a kill ends in the same state; :meth:`promotion` returns when the promotion began.

        :param keep_challenger: whether ``version`` keeps the alias ``challenger`` until :meth:`withdraw`: a caller that
            has more to do finds it again after a kill.
        :raises RegistryError: if ``version`` does not exist.
        """
        entity = self._require_version(version)
        self._require_signed(entity)
        model = self._registered_model(self.agent)
        aliases, replaced = _aliases_of(model), self._recorded_champion(model)
        if _ROLLING_BACK in model.tags:
            self.client.delete_registered_model_tag(self.agent, _ROLLING_BACK)
        if replaced != version:
            self._record_champion(model, replaced)
            self._set_version_tags(version, champion_before=replaced or "", promoted_at=timestamp_now())
            self._set_alias(self.agent, aliases, "previous", replaced)
        if entity.tags.get(_REJECTED_AT):
            self._set_version_tags(version, **{_REJECTED_AT: ""})
        self._mark_chosen(entity)
        self._release(version)  # also if the alias was moved in MLflow, which releases nothing
        self._set_alias(self.agent, aliases, "champion", version)
        self._move_ancestor_aliases(aliases)
        self._record_champion(model, version)  # last: a watch completes a promotion that was killed before
        if not keep_challenger and aliases.get("challenger") == version:
            self._set_alias(self.agent, aliases, "challenger", None)

    def _mark_chosen(self, version: Any) -> None:
        """Make the tag ``chosen`` true of a version that is promoted, whoever chose it."""
        if version.tags.get(_CHOSEN) == "False":
            self._set_version_tags(str(version.version), chosen="True")
        if self.models.version_tags(version).get(_CHOSEN) == "False":
            self.set_chosen(str(version.version), True)

    def set_chosen(self, version: str, value: bool) -> None:
        """Set the tag ``chosen`` of the logged model and of the run behind a version."""
        entity = self._require_version(version)
        self.models.set_tags(model_id(str(entity.source)), {_CHOSEN: value})
        if entity.run_id:
            self.runs.set_tags(entity.run_id, chosen=value)

    def promotion(self, version: str) -> tuple[ModelRef | None, str]:
        """The champion that ``version`` replaced at its last promotion, and the time of it (ISO 8601, UTC)."""
        tags = self.models.tags(_model_ref(self._require_version(version)))
        before = self._champion_before(version)
        return self.version(self.agent, before) if before else None, tags.get("promoted_at", "")

    def rollback(self, on_done: Callable[[Rollback], None] = lambda _: None) -> ModelRef:
        """Make the previous champion the champion again; its own predecessor becomes previous.

        If the alias ``champion`` was moved or deleted in MLflow by hand, the recorded champion is the previous one.

        :param on_done: called after the aliases have moved and before the roll-back is marked as done. If the process
            is killed before or during this call, the next :meth:`rollback` resumes the same roll-back, with the same
            ``began_at``.
        :raises RegistryError: if there is no previous champion.
        """
        model = self._registered_model(self.agent)
        rollback = _rollback_in_progress(model) or self._begin_rollback(model)
        aliases = _aliases_of(model)
        self._release(rollback["to"])
        self._set_alias(self.agent, aliases, "champion", rollback["to"])
        self._set_alias(self.agent, aliases, "previous", self._champion_before(rollback["to"]))
        self._move_ancestor_aliases(aliases)
        self._record_champion(model, rollback["to"])
        champion = _model_ref(self._require_version(rollback["to"]))
        before = self.version(self.agent, rollback["from"]) if rollback["from"] else None
        on_done(Rollback(champion, before, rollback["since"]))
        self.client.delete_registered_model_tag(self.agent, _ROLLING_BACK)
        return champion

    def _begin_rollback(self, model: Any) -> dict[str, str]:
        """Store the target of the roll-back before any alias moves."""
        aliases, recorded = _aliases_of(model), self._recorded_champion(model)
        champion, previous = aliases.get("champion"), aliases.get("previous")
        if recorded is None:
            raise RegistryError(f"{self.agent} has no champion; promote a version first")
        if champion != recorded:  # moved in MLflow by hand
            previous = recorded
        elif previous == champion:  # a promotion was killed after its first step
            previous = self._champion_before(recorded)
        if previous is None:
            raise RegistryError(
                f"{self.agent} has no champion before version {champion}; promote another version instead "
                f"(versions: {', '.join(entry.version for entry in self.versions())})"
            )
        self._require_signed(self.client.get_model_version(self.agent, previous))
        rollback = {"to": previous, "from": champion or "", "since": timestamp_now()}
        self._record_champion(model, recorded)
        if champion is not None:
            self._set_version_tags(champion, rolled_back_at=rollback["since"], rolled_back_to=previous)
        self.client.set_registered_model_tag(self.agent, _ROLLING_BACK, json.dumps(rollback))
        return rollback

    def undone(self, version: str) -> Rollback | None:
        """The last roll-back from ``version``, which may not be completed yet; None if it was never rolled back."""
        tags = self._require_version(version).tags
        target = self.version(self.agent, tags["rolled_back_to"]) if "rolled_back_to" in tags else None
        return Rollback(target, self.version(self.agent, version), tags["rolled_back_at"]) if target else None

    def is_rolling_back(self, version: str) -> bool:
        """Whether a roll-back from ``version`` was begun and not completed."""
        rollback = _rollback_in_progress(self._registered_model(self.agent))
        return rollback is not None and rollback["from"] == version

    # ----------------------------------------------------------------- the recorded champion

    def unrecorded_champion(self) -> UnrecordedChampion | None:
        """The champion that stillhouse did not promote, or not completely; None if the champion is as recorded."""
        model = self._registered_model(self.agent)
        champion = _aliases_of(model).get("champion")
        if champion is None or champion == model.tags.get(_RECORDED_CHAMPION):
            return None
        if (rollback := _rollback_in_progress(model)) and rollback["from"] == champion:
            return None  # the roll-back from this champion is completed by its next call
        recorded, newest = self._recorded_champion(model), self._newest_release()
        if recorded == champion and _RECORDED_CHAMPION not in model.tags:
            return None
        entity = self._require_version(champion)
        return UnrecordedChampion(
            champion=_model_ref(entity),
            recorded=self.version(self.agent, recorded) if recorded and recorded != champion else None,
            release=0 if newest is None else newest.number,
            by_hand=newest is None or newest.version != champion,
            refused=self._refusal(entity),
        )

    def _recorded_champion(self, model: Any) -> str | None:
        """The version that stillhouse made champion last.

        A version of the alias ``champion`` that is also the newest release was promoted, and the process was killed
        before it was recorded. A store that records nothing has releases; if it has none, the alias is believed.
        """
        champion = _aliases_of(model).get("champion")
        recorded = model.tags.get(_RECORDED_CHAMPION) if model else None
        if model is None or (champion is not None and champion == recorded):
            return champion
        newest = self._newest_release()
        released = None if newest is None else newest.version
        if released == champion:
            return champion
        last = recorded or released
        return last if last is not None and self._version(self.agent, last) is not None else champion

    def _record_champion(self, model: Any, version: str | None) -> None:
        """Record which version stillhouse made champion, unless that is recorded already."""
        if version is not None and model.tags.get(_RECORDED_CHAMPION) != version:
            self.client.set_registered_model_tag(self.agent, _RECORDED_CHAMPION, version)
            model.tags[_RECORDED_CHAMPION] = version

    def _refusal(self, version: Any) -> str:
        """Why the version cannot be released; empty if it can."""
        try:
            self.models.signed_version(version)
        except SignatureError as error:
            return str(error)
        return ""

    def _champion_before(self, version: str) -> str | None:
        """The version that ``version`` replaced, if it still exists."""
        entity = self._version(self.agent, version)
        before = entity.tags.get("champion_before") if entity else None
        return before if before and self._version(self.agent, before) else None

    # ----------------------------------------------------------------- releases and signatures

    def sign_again(self) -> int:
        """Sign every statement about this agent that a trusted key has signed with the current key; returns the count.

        Statements without a trusted signature stay as they are, and unusable.
        """
        signer, count = load_signer(), 0
        for version in [v for role in _ROLES for v in self._all_versions(registered_name(self.agent, role))]:
            for tag in (SIGNATURE, RELEASE):
                if envelope := _signed_again(signer, version.tags.get(tag)):
                    self.client.set_model_version_tag(version.name, str(version.version), tag, envelope)
                    count += 1
            logged = re.fullmatch(r"models:/(m-\w+)", str(version.source))
            logged_envelope = self.client.get_logged_model(logged[1]).tags.get(SIGNATURE) if logged else None
            if logged and (envelope := _signed_again(signer, logged_envelope)):
                self.client.set_logged_model_tags(logged[1], {SIGNATURE: envelope})
                count += 1
        return count

    def _require_signed(self, version: Any) -> None:
        """Raise before any alias moves if the version cannot be released."""
        load_signer()
        self.models.signed_version(version)

    def _release(self, version: str) -> None:
        """Sign ``version`` as the newest release, unless it is that already; this withdraws every earlier release.

        The new number exceeds that of every release here, including releases by keys that are no longer trusted:
        machines remember the largest number that they have seen.
        """
        envelopes = self._release_envelopes()
        newest = self._newest_release(envelopes)
        if newest is None or newest.version != version:
            number = 1 + max(map(claimed_release_number, envelopes), default=0)
            envelope = load_signer().sign(release_statement(self.agent, version, number))
            self._set_version_tags(version, **{RELEASE: envelope})

    def _release_envelopes(self) -> list[str]:
        released = self._all_versions(self.agent, f"tag.{RELEASE} LIKE '%'")
        return [entity.tags[RELEASE] for entity in released if RELEASE in entity.tags]

    def _newest_release(self, envelopes: Sequence[str] | None = None) -> Release | None:
        """The release with the largest number that a trusted key has signed."""
        releases = self._trusted_releases(self._release_envelopes() if envelopes is None else envelopes)
        return max(releases, key=lambda release: release.number, default=None)

    def _trusted_releases(self, envelopes: Sequence[str]) -> Iterator[Release]:
        for envelope in envelopes:
            with suppress(SignatureError):
                release = read_signed_release(envelope, self.agent)
                if release.agent == self.agent:
                    yield release

    # ----------------------------------------------------------------- aliases

    def _move_ancestor_aliases(self, aliases: Mapping[str, str]) -> None:
        """Point the aliases of teacher and student at the ancestors of the variants with the same alias.

        :param aliases: version by alias, of the variants.
        """
        ancestor_aliases = {role: self._aliases(registered_name(self.agent, role)) for role in ("teacher", "student")}
        for alias in ("champion", "previous"):
            variant = self._version(self.agent, aliases[alias]) if alias in aliases else None
            tags = self.models.version_tags(variant) if variant else {}
            for role, role_aliases in ancestor_aliases.items():
                name = registered_name(self.agent, role)
                self._set_alias(name, role_aliases, alias, self._registered_as(name, tags.get(f"lineage.{role}")))

    def _set_alias(self, name: str, aliases: dict[str, str], alias: str, version: str | None) -> None:
        """Set ``alias`` of ``name`` to ``version``, or delete it for None; does nothing if it is so already.

        :param aliases: the current aliases of ``name``; updated in place.
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

    # ----------------------------------------------------------------- MLflow's entities

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
                if self._registered_model(name) is None:  # otherwise another process has created it meanwhile
                    raise

    def _all_versions(self, name: str, condition: str | None = None) -> list[Any]:
        """All versions of ``name`` that meet ``condition``."""
        query = f"name = '{name}'" if condition is None else f"name = '{name}' and {condition}"
        return list(self.client.search_model_versions(query))

    def _all_versions_with_tags(self) -> list[tuple[Any, dict[str, str]]]:
        """All versions of the agent's variants with their own tags and those of their logged models, oldest first."""
        versions = sorted(self._all_versions(self.agent), key=lambda version: int(version.version))
        return list(zip(versions, self.models.all_version_tags(self.agent, versions), strict=True))

    def _registered_as(self, name: str, source: str | None) -> str | None:
        """The number of the first version of ``name`` that is the logged model ``source``."""
        if source is None:
            return None
        versions = self.client.search_model_versions(f"name = '{name}' and source_path = '{source}'")
        return min((str(version.version) for version in versions), key=int, default=None)

    def _require_version(self, version: str) -> Any:
        entity = self._version(self.agent, version)
        if entity is None:
            existing = ", ".join(entry.version for entry in self.versions()) or "none"
            raise RegistryError(f"{self.agent} has no version {version!r}; there are: {existing}")
        return entity

    def _set_version_tags(self, version: str, **tags: str) -> None:
        for key, value in tags.items():
            self.client.set_model_version_tag(self.agent, version, key, value)


def _model_ref(version: Any) -> ModelRef:
    number = str(version.version)
    uri = f"models:/{version.name}/{number}"
    return ModelRef(name=version.name, version=number, uri=uri, run_id=version.run_id)


def _aliases_of(model: Any) -> dict[str, str]:
    """Version by alias. MLflow returns numbers from SQL and text over REST."""
    return {alias: str(version) for alias, version in model.aliases.items()} if model else {}


def _rollback_in_progress(model: Any) -> dict[str, str] | None:
    """The roll-back that was begun and not completed; None if the champion was moved elsewhere since."""
    value = model.tags.get(_ROLLING_BACK) if model else None
    rollback: dict[str, str] | None = json.loads(value) if value else None
    champion = _aliases_of(model).get("champion", "")
    return rollback if rollback and champion in (rollback["from"], rollback["to"]) else None


def _signed_again(signer: Signer, envelope: str | None) -> str | None:
    """The envelope signed with the current key; None if there is none or no trusted key has signed it."""
    if envelope is None:
        return None
    try:
        return signer.sign_again(envelope)
    except SignatureError:
        return None


def _registered_tags(version: Any) -> dict[str, str]:
    """Tags by which MLflow's pages and :meth:`Models.all_version_tags` find the version of a logged model.

    A tracking server sets ``mlflow.modelVersions`` itself; with an SQL store the page would say "Not registered".
    """
    versions = [{"name": version.name, "version": str(version.version)}]
    return {REGISTERED: version.name, "mlflow.modelVersions": json.dumps(versions)}


def _version_entry(version: Any, stored: Mapping[str, str], aliases: list[str]) -> VersionEntry:
    tags: Mapping[str, Any] = stored  # the record reads numbers from text
    return VersionEntry(
        version=str(version.version),
        aliases=tuple(aliases),
        variant=tags.get("variant", ""),
        auc=tags.get("auc"),
        measure=tags.get("measure"),
        quality=tags.get("quality") if "measure" in tags else None,  # of a final fit it is a sentence
        accuracy=tags.get("accuracy"),
        bytes=tags.get("bytes", 0),
        p50_ms=tags.get("p50_ms"),
        refresh_id=tags.get("refresh_id", ""),
        registered_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        champion_before=tags.get("champion_before") or None,
        rolled_back="rolled_back_at" in tags,
        rejected=bool(tags.get(_REJECTED_AT)),
    )
