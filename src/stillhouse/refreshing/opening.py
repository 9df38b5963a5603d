"""Open a refresh: refuse it if there are too few rows, or resume an earlier run of the same request."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from stillhouse import config
from stillhouse.distill.split import mask_validation_rows
from stillhouse.drift.figures import plot_drift
from stillhouse.errors import DataError, WindowError
from stillhouse.records import DataReport, Refresh, Verdict, Window, drift_report
from stillhouse.refreshing.data import require_rows
from stillhouse.refreshing.session import RefreshRequest, Session
from stillhouse.registry import names
from stillhouse.registry.runs import Content
from stillhouse.shown import escape_line

__all__ = ["find_answering_verdict", "open_refresh", "require_learnable"]

log = logging.getLogger(__name__)


def find_answering_verdict(session: Session, request: RefreshRequest) -> Verdict | None:
    """The gate's verdict that has closed the alarm behind this request; None if the alarm is still open.

    An alarm is answered once. If the watch raised it before it could see the verdict of another refresh, a second
    refresh would train on the same rows again; the next watch sees that verdict and restarts its evidence. A refresh
    with the same cause and time that has begun already is resumed instead, so the result is None.
    """
    if request.trigger != "drift":
        return None
    alarm = session.base.journal.verdict(request.cause)
    if alarm is None or alarm.kind != "watch":
        return None
    last_seen, last = alarm.evidence.get("last_refresh"), session.base.journal.last_refresh()
    if last is None or (last_seen is not None and last <= datetime.fromisoformat(str(last_seen))):
        return None
    if session.registry.runs.has_refresh(request.cause, request.as_of):
        return None
    return session.base.journal.verdict_at("gate", last)


def require_learnable(session: Session, request: RefreshRequest) -> None:
    """Refuse a request whose windows have too few rows, before any work and before the check of the data contract.

    A refresh that already has its verdict is not refused, even if rows were deleted since.

    :raises WindowError: if too few rows with known outcomes, or no validation days, are in the windows.
    """
    try:
        _require_learnable(session, *_split_window(request.window, request.test_start))
    except WindowError:
        if session.registry.runs.finished_refresh(request.refresh_id) is None:
            raise


def open_refresh(session: Session, request: RefreshRequest, data: DataReport, prefect_run: str = "") -> Refresh:
    """Open the MLflow run of this refresh, or resume an earlier run of the same request.

    :param data: report of the data contract on the window of the request.
    :param prefect_run: address or id of the Prefect run that does the refresh; empty: none does. It becomes a tag.
    :raises DataError: if the window breaks the data contract.
    :raises WindowError: if there are too few rows to learn from.
    """
    registry = session.registry
    train, test = _split_window(data.window, request.test_start)
    folder = config.home() / "refreshes" / request.agent / request.refresh_id
    job = Refresh(
        refresh_id=request.refresh_id,
        agent=request.agent,
        as_of=request.as_of,
        trigger=request.trigger,
        cause=request.cause,
        train=train,
        test=test,
        teacher=request.teacher,
        mode=request.mode,
        folder=str(folder),
        run_id="",
        contract_skipped=data.skipped_because,
    )
    if finished := registry.runs.finished_refresh(request.refresh_id):
        return job.model_copy(update={"verdict": finished, "finished": True})
    if data.broken:
        raise DataError(
            f"{data.window} breaks the data contract: "
            + "; ".join(failure.text for failure in data.failures if failure.fatal)
        )
    session.job = job
    session.data.drop_raw()
    _require_learnable(session, train, test)
    run_id, verdict = registry.runs.open_refresh(
        request.refresh_id,
        tags={
            "trigger": request.trigger,
            "cause": request.cause,
            "as_of": request.as_of.isoformat(),
            "mode": request.mode,
        },
        params=_list_params(session),
        name=job.run_name(),
    )
    if prefect_run:  # also of a run that is resumed
        registry.runs.set_tags(run_id, prefect_run=prefect_run)
    session.job = job.model_copy(update={"run_id": run_id, "verdict": verdict})
    log.info(
        "%s: refresh by %s (%s), %s%s; MLflow run %s",
        request.agent,
        request.trigger,
        escape_line(request.cause),
        request.mode,
        ", continued: its verdict is stored already" if verdict else "",
        run_id,
    )
    files = _read_cause_files(session)
    if data.docs:
        files[names.DATA_DOCS] = Path(data.docs).read_bytes()
    registry.runs.log_files(run_id, files)
    return session.job


def _split_window(window: Window, test_start: datetime) -> tuple[Window, Window]:
    """Split the window of a refresh into the training window and the test window."""
    return (
        window.model_copy(update={"name": "train", "end": test_start}),
        window.model_copy(update={"name": "test", "start": test_start}),
    )


def _require_learnable(session: Session, train: Window, test: Window) -> None:
    settings, data = session.settings, session.data
    rows = data.read_training_rows(train).labelled
    require_rows(len(rows), settings.min_train_rows, train, settings.words)
    require_rows(len(data.read_labelled(test)), settings.observations.min_rows, test, settings.words)
    fitted = session.distillation
    if not mask_validation_rows(rows["observed_at"], fitted).any():
        raise WindowError(
            f"{train} has no validation rows ({fitted.validation_text}): wait for more, "
            f"lengthen `windows.train`, or lower or remove `distillation.validation_every`"
        )


def _list_params(session: Session) -> dict[str, str]:
    """The settings on which a refresh depends, as MLflow parameters; those that the rows decided with their values."""
    settings, test = session.settings, session.job.test
    windows = {"test": test.end - test.start, "min_train_rows": settings.min_train_rows}
    sections: dict[str, Iterable[tuple[str, Any]]] = {
        "distillation": session.distillation,
        "student": settings.student,
        "windows": settings.windows.model_copy(update=windows),
        "budgets": settings.budgets,
        "promotion": settings.promotion,
        "teaching": settings.teaching,
        "asking": settings.asking,
    }
    return {
        f"{name}.{key}": str(value) for name, section in sections.items() for key, value in section if value is not None
    }


def _read_cause_files(session: Session) -> dict[str, Content]:
    """The verdict of the watch that caused this refresh and the figure of its drift; empty if no watch did."""
    verdict = session.base.journal.verdict(session.job.cause)
    if verdict is None or verdict.kind != "watch":
        return {}
    report = drift_report(verdict)
    files: dict[str, Content] = {names.DRIFT_VERDICT: verdict}
    if report:
        files[names.DRIFT_FIGURE] = plot_drift(report)
    return files
