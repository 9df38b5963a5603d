"""A small agent, and the windows and reports that its verdicts are made of."""

from datetime import UTC, datetime, timedelta
from math import log
from typing import Any

import pytest

from stillhouse.config import AgentConfig
from stillhouse.records import (
    CheckFailure,
    ColumnDrift,
    DataReport,
    Disagreement,
    DriftReport,
    EvidenceStep,
    Quality,
    ScreenResult,
    Window,
)
from tests.agents import agent_config

NOW = datetime(2013, 6, 1, tzinfo=UTC)
REFERENCE = Window(name="train", start=NOW - timedelta(days=60), end=NOW - timedelta(days=7))
CURRENT = Window.ending("current", NOW, timedelta(days=7))


def make_config(**thresholds: Any) -> AgentConfig:
    columns = {name: {"type": "number"} for name in ("temp", "wind", "gust")} | {"carrier": {"type": "category"}}
    return agent_config(
        actions=["no", "yes"],
        observations={"columns": columns, "min_rows": 100},
        watch={"thresholds": thresholds, "cooldown": "14d"},
    )


def make_data(rows: int = 1000, quarantined: int = 0, fatal: bool = False) -> DataReport:
    failure = CheckFailure(expectation="expect_x", column="temp", rows=3, text="temp: 3 rows of nonsense", fatal=True)
    return DataReport(
        window=CURRENT, rows=rows, quarantined=quarantined, failures=(failure,) if fatal else (), seconds=0.1
    )


def make_report(psi: dict[str, float] | None = None, **fields: Any) -> DriftReport:
    psi = {"temp": 0.4, "carrier": 0.01} if psi is None else psi
    return DriftReport(
        **{
            "agent": "toy",
            "champion": "toy@3",
            "reference": REFERENCE,
            "current": CURRENT,
            "reference_rows": 5000,
            "current_rows": 1000,
            "columns": tuple(make_column(name, value) for name, value in psi.items()),
            "seconds": 0.01,
            **fields,
        }
    )


def make_column(name: str, psi: float) -> ColumnDrift:
    return ColumnDrift(column=name, kind="number", psi=psi, ks=0.1, missing_reference=0.0, missing_current=0.0)


def make_screened(moved: bool, *beyond: str) -> ScreenResult:
    return ScreenResult(
        time_blocks=20,
        beyond=beyond,
        statistic=3.0 if moved else 0.5,
        limit=1.2,
        p_value=0.05 if moved else 0.7,
        moved=moved,
    )


def make_step(process: str = "disagreement", evidence: float = 5.0, **fields: Any) -> EvidenceStep:
    """A last step with that much evidence of the 2160 that are needed."""
    return EvidenceStep.model_validate(
        {
            "process": process,
            "champion": "toy@3",
            "since": NOW - timedelta(days=20),
            "start": NOW - timedelta(hours=1),
            "end": NOW,
            "looks": 480,
            "rows": 24_000,
            "step_rows": 50,
            "clusters": 50,
            "mean": 0.06,
            "null_mean": 0.08,
            "log_bets": (0.0, 1.0),
            "log_evidence": log(evidence),
            "log_threshold": log(2160),
            **fields,
        }
    )


def make_disagreement(total_variation: float) -> Disagreement:
    return Disagreement(rows=500, rate=0.1, total_variation=total_variation)


def make_quality(auc: float | None, rows: int = 1000) -> Quality:
    return Quality(rows=rows, auc=auc, log_loss=0.5, brier=0.3, accuracy=0.8, calibration_error=0.02)


@pytest.fixture
def make() -> Any:
    """The builders above as one namespace."""

    class Make:
        config = staticmethod(make_config)
        data = staticmethod(make_data)
        report = staticmethod(make_report)
        column = staticmethod(make_column)
        disagreement = staticmethod(make_disagreement)
        quality = staticmethod(make_quality)
        screened = staticmethod(make_screened)
        step = staticmethod(make_step)
        now, reference, current = NOW, REFERENCE, CURRENT

    return Make
