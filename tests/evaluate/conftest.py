"""A small agent, scorecards and certificates."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from stillhouse.config import AgentConfig
from stillhouse.records import Certificate, Comparison, Latency, Quality, Scorecard
from tests.agents import agent_config

NOW = datetime(2013, 6, 1, tzinfo=UTC)


def make_config(
    budgets: dict[str, Any] | None = None, actions: int = 2, quality: dict[str, Any] | None = None, **promotion: Any
) -> AgentConfig:
    """The small agent, by default judged by the AUC for two actions and by the accuracy for more."""
    return agent_config(
        actions=["stay", "move", "jump", "run"][:actions],
        budgets=budgets or {},
        quality=quality or {"measure": "auc" if actions == 2 else "accuracy"},
        promotion=promotion,
    )


def make_quality(auc: float | None, accuracy: float = 0.8, rows: int = 900) -> Quality:
    return Quality(rows=rows, auc=auc, log_loss=0.5, brier=0.3, accuracy=accuracy, calibration_error=0.02)


def make_card(
    model: str = "fp32",
    size: int = 1000,
    validation: float | None = 0.7,
    test: float | None = 0.7,
    p95: float | None = 0.1,
    **fields: Any,
) -> Scorecard:
    latency = None if p95 is None else Latency(p50_ms=p95 / 2, p95_ms=p95, calls=300)
    return Scorecard(
        **{
            "model": model,
            "role": "variant",
            "quality": {"validation": make_quality(validation), "test": make_quality(test)},
            "bytes": size,
            "latency": latency,
            **fields,
        }
    )


def make_comparison(window: str = "test", difference: float = 0.0, error: float = 0.0, margin: float = 0.005) -> Any:
    return Comparison(
        window=window,
        rows=900,
        measure="auc",
        challenger=0.7 + difference,
        champion=0.7,
        difference=difference,
        standard_error=error,
        margin=margin,
    )


def make_certificate(*comparisons: Comparison, **fields: Any) -> Certificate:
    return Certificate(
        **{
            "agent": "toy",
            "refresh_id": "r1",
            "challenger": make_card(),
            "champion": make_card("toy@3", role="champion"),
            "comparisons": comparisons or (make_comparison(),),
            "confidence": 0.95,
            "max_bytes": 2000,
            "max_p95_ms": 0.5,
            "approval": "automatic",
            "as_of": NOW,
            **fields,
        }
    )


@pytest.fixture
def make() -> Any:
    """The builders above as one namespace."""

    class Make:
        config = staticmethod(make_config)
        quality = staticmethod(make_quality)
        card = staticmethod(make_card)
        comparison = staticmethod(make_comparison)
        certificate = staticmethod(make_certificate)
        now = NOW

    return Make
