"""Forget the rows of a request: find them, write the request down, clean every place, and record that it was done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import ConfigError
from stillhouse.forgetting.places import Place, find_leftovers, places
from stillhouse.forgetting.selection import Selection, select, select_again
from stillhouse.knowledge import KnowledgeBase, forget_requests
from stillhouse.knowledge.flush import flush
from stillhouse.locks import refresh_lock, upkeep_lock, watch_lock
from stillhouse.records import ForgetReport, ForgetRequest, PendingForget, Reason, Verdict, short_id
from stillhouse.registry.forgetting import ForgottenRows, learned_models

__all__ = ["forget", "preview"]

log = logging.getLogger(__name__)


def preview(agent: str, request: ForgetRequest) -> ForgetReport:
    """What :func:`forget` would remove. Nothing is written, but that the spools are flushed.

    :raises ConfigError: if the request selects nothing.
    :raises SchemaError: if it names a column or value that the observations cannot have.
    :raises RegistryError: if MLflow does not answer.
    """
    _require_conditions(request)
    base = KnowledgeBase(config.load(agent))
    with _locked(agent):
        flush(base)
        found, _ = _find(base, places(agent), request)
    return _report(found, dry_run=True)


def forget(agent: str, request: ForgetRequest, on_place: Callable[[str], None] = lambda _: None) -> ForgetReport:
    """Remove the rows of a request from every place, and name the models that learned from them.

    Earlier requests that were begun and not carried out are completed first. Can be killed at any time: the next call
    completes it.

    >>> from stillhouse.records import ForgetRequest
    >>> forget("flights", ForgetRequest(ids=("2013-01-01/UA1545",))).observations  # doctest: +SKIP
    1

    :param request: an empty one only completes earlier requests.
    :param on_place: is told the name of each place before it is cleaned.
    :raises ConfigError: if the request is empty and there is nothing to complete.
    :raises SchemaError: if it names a column or value that the observations cannot have.
    :raises RegistryError: if MLflow does not answer; nothing is removed.
    :raises SignatureError: if models that show the rows cannot be signed again here.
    """
    base = KnowledgeBase(config.load(agent))
    with _locked(agent):
        begun = forget_requests.pending(agent)
        if not begun:
            _require_conditions(request)
        flush(base)
        completed = [_carry_out(base, pending, None, on_place) for pending in begun]
        if request.is_empty:
            return completed[-1].model_copy(update={"completed": tuple(one.request_id for one in completed)})
        pending, selection = _find(base, places(agent), request)
        if not pending.observation_ids and not pending.rows:
            report = _report(pending, dry_run=False)
        else:
            forget_requests.begin(pending)
            report = _carry_out(base, pending, selection, on_place)
    return report.model_copy(update={"completed": tuple(one.request_id for one in completed)})


# --------------------------------------------------------------------------- inside


def _require_conditions(request: ForgetRequest) -> None:
    if request.is_empty:
        raise ConfigError("say which rows to forget: --id, --decision, --where COLUMN=VALUE or --caller")


@contextmanager
def _locked(agent: str) -> Iterator[None]:
    """No refresh, promotion, watch or upkeep runs meanwhile; flushes and appends wait where they must."""
    with refresh_lock(agent), watch_lock(agent), upkeep_lock(agent):
        yield


def _find(base: KnowledgeBase, all_places: Sequence[Place], request: ForgetRequest) -> tuple[PendingForget, Selection]:
    agent, now = base.config.agent, datetime.now(UTC)
    more_ids = [name for place in all_places for name in place.find(request)]
    selection = select(base, request, more_ids)
    is_empty = not selection.observation_ids and not selection.callers
    counts = {} if is_empty else {place.name: place.count(selection) for place in all_places}
    rows = ForgottenRows(selection.observation_ids, selection.times)
    learned = learned_models(open_registry(agent), rows) if selection.observation_ids else {}
    pending = PendingForget(
        request_id=short_id(agent, now.isoformat()),
        agent=agent,
        requested_at=now,
        observation_ids=tuple(sorted(selection.observation_ids)),
        content_keys=tuple(sorted(selection.content_keys)),
        callers=request.callers,
        times=selection.times,
        rows={name: count for name, count in counts.items() if count},
        learned=learned,
    )
    return pending, selection


def _carry_out(
    base: KnowledgeBase, pending: PendingForget, selection: Selection | None, on_place: Callable[[str], None]
) -> ForgetReport:
    """Clean every place, record it, and end the request.

    :param selection: None: of a request that was begun by another process.
    """
    selection = selection or _select_again(base, pending)
    problems = list[str]()
    for place in places(pending.agent):
        on_place(place.name)
        problems += place.erase(selection)
    base.journal.append_verdict(_verdict(pending))
    on_place("search")
    forget_requests.end(pending)
    left = tuple(path.as_posix() for path in find_leftovers(selection.traces))
    log.info("%s: forgotten: %d rows", pending.agent, len(pending.observation_ids))
    return _report(pending, dry_run=False).model_copy(update={"left": left, "problems": tuple(problems)})


def _select_again(base: KnowledgeBase, pending: PendingForget) -> Selection:
    selection = select_again(base, pending.observation_ids, pending.content_keys, pending.callers)
    times = tuple(sorted({*pending.times, *selection.times}))
    return Selection(selection.observation_ids, selection.content_keys, selection.callers, times, selection.traces)


def _verdict(pending: PendingForget) -> Verdict:
    """The entry of the journal: numbers and models, and nothing of the rows."""
    count = len(pending.observation_ids)
    reasons = [
        Reason(measure="forgotten", value=rows, failed=False, text=f"{place}: {rows:,}")
        for place, rows in pending.rows.items()
    ]
    reasons += [Reason(measure="learned", failed=False, text=f"{name}: {how}") for name, how in pending.learned.items()]
    return Verdict(
        verdict_id=pending.request_id,
        kind="forget",
        agent=pending.agent,
        as_of=pending.requested_at,
        result="forgotten",
        summary=f"forgotten: {count:,} row{'s' * (count != 1)}",
        reasons=tuple(reasons),
    )


def _report(pending: PendingForget, *, dry_run: bool) -> ForgetReport:
    return ForgetReport(
        agent=pending.agent,
        request_id=pending.request_id,
        requested_at=pending.requested_at,
        dry_run=dry_run,
        observations=len(pending.observation_ids),
        rows=pending.rows,
        learned=pending.learned,
    )
