"""A refresh begins: refused where it comes too early, taken up where an earlier run of the same request left it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from stillhouse import config
from stillhouse.config import AgentConfig
from stillhouse.distill.split import validation_days
from stillhouse.drift.figures import plot_drift
from stillhouse.errors import DataError, WindowError
from stillhouse.records import DataReport, Refresh, Verdict, Window, drift_report
from stillhouse.refreshing.data import require_rows
from stillhouse.refreshing.session import RefreshRequest, Session
from stillhouse.registry import names
from stillhouse.registry.runs import Content

__all__ = ["answered_alarm", "open_refresh", "require_learnable"]


def answered_alarm(session: Session, request: RefreshRequest) -> Verdict | None:
    """The gate's verdict by which the alarm that asked for this refresh was closed since; None: it is open.

    One alarm is answered once: a refresh that a watch asked for before it could know of another one's verdict would
    learn from the same rows again. The next watch sees that verdict, and begins its evidence anew. A refresh of that
    very cause and moment that was begun already is not answered here: it goes on.
    """
    if request.trigger != "drift":
        return None
    asked = session.base.journal.verdict(request.cause)
    if asked is None or asked.kind != "watch":
        return None
    known, last = asked.evidence.get("last_refresh"), session.base.journal.last_refresh()
    if last is None or (known is not None and last <= datetime.fromisoformat(str(known))):
        return None
    if session.registry.runs.has_refresh(request.cause, request.as_of):
        return None
    return session.base.journal.verdict_at("gate", last)


def require_learnable(session: Session, request: RefreshRequest) -> None:
    """Refuse a moment that comes too early, before any work; what the data check sets aside is not known yet.

    A refresh that has its verdict already is not refused, whatever has been removed since.

    :raises WindowError: if too few rows with known outcomes, or no validation days, lie in the windows.
    """
    try:
        _require_learnable(session, *_train_and_test(session.settings, request.window))
    except WindowError:
        if session.registry.runs.finished_refresh(request.refresh_id) is None:
            raise


def open_refresh(session: Session, request: RefreshRequest, data: DataReport) -> Refresh:
    """Open the MLflow run of this refresh, or find what an earlier run of the same request left.

    :param data: what the data contract said about the request's window.
    :raises DataError: if the window breaks the data contract.
    :raises WindowError: if there are too few rows to learn from.
    """
    registry, settings = session.registry, session.settings
    train, test = _train_and_test(settings, data.window)
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
            f"{data.window} breaks the data contract: " + "; ".join(f.text for f in data.failures if f.fatal)
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
        params=_settings(settings),
        name=f"refresh {request.as_of:%Y-%m-%d} ({request.trigger})",
    )
    session.job = job.model_copy(update={"run_id": run_id, "verdict": verdict})
    files = _cause_files(session)
    if data.docs:
        files[names.DATA_DOCS] = Path(data.docs).read_bytes()
    registry.runs.log_files(run_id, files)
    return session.job


def _train_and_test(settings: AgentConfig, window: Window) -> tuple[Window, Window]:
    """The two parts of what a refresh may look at."""
    test_start = window.end - settings.windows.test
    return (
        window.model_copy(update={"name": "train", "end": test_start}),
        window.model_copy(update={"name": "test", "start": test_start}),
    )


def _require_learnable(session: Session, train: Window, test: Window) -> None:
    settings, data = session.settings, session.data
    rows = data.learning(train).labelled
    require_rows(len(rows), settings.windows.min_train_rows, train)
    require_rows(len(data.labelled(test)), settings.observations.min_rows, test)
    if not validation_days(rows["observed_at"], settings.distillation.validation_every).any():
        raise WindowError(
            f"{train} holds none of the days kept to choose among variants (every "
            f"{settings.distillation.validation_every}th): wait for more, lengthen `windows.train`, "
            f"or lower `distillation.validation_every`"
        )


def _settings(settings: AgentConfig) -> dict[str, str]:
    """The settings that a refresh depends on, as MLflow parameters."""
    sections = {
        "distillation": settings.distillation,
        "student": settings.student,
        "windows": settings.windows,
        "budgets": settings.budgets,
        "promotion": settings.promotion,
        "teaching": settings.teaching,
        "asking": settings.asking,
    }
    return {
        f"{name}.{key}": str(value) for name, section in sections.items() for key, value in section if value is not None
    }


def _cause_files(session: Session) -> dict[str, Content]:
    """The drift report that asked for this refresh, if one did, as record and figure of its MLflow run."""
    verdict = session.base.journal.verdict(session.job.cause)
    if verdict is None or verdict.kind != "watch":
        return {}
    report = drift_report(verdict)
    files: dict[str, Content] = {names.DRIFT_VERDICT: verdict}
    if report:
        files[names.DRIFT_FIGURE] = plot_drift(report)
    return files
