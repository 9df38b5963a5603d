"""Show what an agent behind the front door saves: rows of a table, and a page in the MLflow run of its champion."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from stillhouse.config import AgentConfig
from stillhouse.errors import RegistryError, StillhouseError
from stillhouse.gateway.savings import SavedCalls, Savings, read_savings
from stillhouse.shown import escape_code, escape_line
from stillhouse.shown import escape_markdown as md

__all__ = [
    "SavingsTable",
    "describe_savings",
    "format_savings_page",
    "publish_savings",
    "refresh_savings_page",
    "tabulate_reasons",
    "tabulate_savings",
]

log = logging.getLogger(__name__)


class SavingsTable(NamedTuple):
    """A table as text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def describe_savings(savings: Savings) -> list[str]:
    """The most important figures as sentences, without markup; agreement and savings only where there are any.

    >>> from datetime import UTC, datetime
    >>> from stillhouse.gateway.savings import reckon_savings
    >>> describe_savings(reckon_savings("router", "0" * 16, [], as_of=datetime(2026, 11, 2, tzinfo=UTC)))
    ['no requests of task 0000000000000000 are recorded']
    """
    total, cost, confidence = savings.total, savings.upstream, f"{100 * savings.confidence:g} %"
    if total.begin is None:
        return [f"no requests of task {savings.task} are recorded"]
    since = f"since {total.begin:%Y-%m-%d %H:%M} (records are kept for {savings.kept_days:g} days)"
    lines = [f"{total.local:,} of {total.requests:,} questions ({_percent(total.share)}) answered locally {since}"]
    for compared, which in ((total.audited, "local answers"), (total.shadowed, "answers in shadow")):
        if compared.rows:
            proof = f"at least {_percent(compared.bound)} with {confidence} confidence"
            lines.append(
                f"agreement of {which}: {_percent(compared.share)}, {proof}, by {compared.rows:,} blind questions"
            )
    if total.local and not total.audited.rows:
        lines.append("agreement of local answers: not known, no question was audited that it would have answered")
    saved = [
        *([] if total.money is None else [f"money {_amount(total.money)}"]),
        *([] if total.input_tokens is None else [f"{total.input_tokens:,.0f} tokens sent"]),
        *([] if total.output_tokens is None else [f"{total.output_tokens:,.0f} answered"]),
        *([] if total.ms is None else [f"{_time(total.ms)} of waiting"]),
    ]
    if saved:
        lines.append(f"saved against always asking: {', '.join(saved)}")
    asked = [
        *([] if cost.median_ms is None else [f"{cost.median_ms:,.0f} ms (median)"]),
        *([] if cost.input_tokens is None else [f"{cost.input_tokens:,.1f} + {cost.output_tokens or 0:,.1f} tokens"]),
        *([] if cost.money is None else [f"money {_amount(cost.money)}"]),
    ]
    if asked:
        lines.append(f"asking {escape_line(savings.model or 'the upstream')} once: {', '.join(asked)}")
    return lines


def tabulate_savings(savings: Savings) -> SavingsTable:
    """What was answered locally, how well, and what that saved: all, by stage, by week."""
    has_money = savings.upstream.money is not None
    headings = ("", "requests", "local", "share", "agree", "at least", "money" if has_money else "tokens", "time")
    return SavingsTable(headings, tuple(_savings_row(calls, has_money) for calls in _all(savings)))


def tabulate_reasons(savings: Savings) -> SavingsTable:
    """Why the upstream was asked, and how many questions of the audit count: all, by stage, by week."""
    headings = ("", "first", "shadow", "audit", "deferred", "not local", "credential", "audited")
    rows = (
        (
            calls.name,
            *(
                f"{count:,}"
                for count in (
                    calls.first,
                    calls.shadow,
                    calls.audit,
                    calls.unsure,
                    calls.not_local,
                    calls.credential,
                    calls.audited.rows,
                )
            ),
        )
        for calls in _all(savings)
    )
    return SavingsTable(headings, tuple(rows))


def format_savings_page(savings: Savings) -> str:
    """The page ``savings.md`` as Markdown; it has no text of a request."""
    from stillhouse.pages import format_table

    parts = [f"# What {md(savings.agent)} saves", "\n".join(f"- {md(line)}" for line in describe_savings(savings))]
    tables = {"By stage and week": tabulate_savings(savings), "Why the upstream was asked": tabulate_reasons(savings)}
    for title, table in tables.items():
        header = f"| {' | '.join(table.headings)} |"
        lines = [f"| {md(name)} | {' | '.join(figures)} |" for name, *figures in table.rows]
        parts += [f"## {title}", format_table(header, lines)]
    parts.append(
        "A stage is the reign of a champion's version; *capture* is what was before the first. A week begins on "
        "Monday (UTC). *agree* and *at least* are of the audit: blind questions that the champion would have answered, "
        "and the exact lower bound of each row alone. "
        f"Task {escape_code(savings.task)}, as of {savings.as_of:%Y-%m-%d %H:%M} UTC."
    )
    return "\n\n".join(parts) + "\n"


def publish_savings(settings: AgentConfig, savings: Savings | None = None) -> str:
    """Write the page to the MLflow run of the agent's champion.

    :param savings: None: they are read.
    :returns: the run's id.
    :raises RegistryError: if there is no champion, or it has no run.
    """
    from stillhouse.champion import open_registry
    from stillhouse.registry import names

    page, registry = format_savings_page(savings or read_savings(settings)), open_registry(settings.agent)
    champion = registry.champion()
    if champion is None or champion.run_id is None:
        raise RegistryError(
            f"agent {settings.agent!r} has no champion whose MLflow run could hold the page: refresh it with "
            "--trigger bootstrap"
        )
    registry.runs.log_files(champion.run_id, {names.SAVINGS: page.encode()})
    return champion.run_id


def refresh_savings_page(settings: AgentConfig) -> None:
    """Write the page of an agent behind the front door; a failure is logged, and fails nothing else."""
    if settings.front_door is None:
        return
    try:
        publish_savings(settings)
    except (StillhouseError, OSError) as error:
        log.warning("%s: what it saves was not published: %s", settings.agent, error)


# --------------------------------------------------------------------------- inside


def _all(savings: Savings) -> tuple[SavedCalls, ...]:
    return (savings.total, *savings.stages, *savings.weeks)


def _savings_row(calls: SavedCalls, has_money: bool) -> tuple[str, ...]:
    tokens = None if calls.input_tokens is None else calls.input_tokens + (calls.output_tokens or 0.0)
    return (
        calls.name,
        f"{calls.requests:,}",
        f"{calls.local:,}",
        _percent(calls.share),
        _percent(calls.audited.share),
        _percent(calls.audited.bound),
        ("" if calls.money is None else _amount(calls.money))
        if has_money
        else ("" if tokens is None else _big(tokens)),
        "" if calls.ms is None else _time(calls.ms),
    )


def _percent(share: float | None) -> str:
    """A share in percent, rounded down: what is promised must not be rounded up to; empty for None."""
    return "" if share is None else f"{math.floor(1000 * share + 1e-9) / 10:.1f} %"


def _amount(money: float) -> str:
    return f"{money:,.2f}" if abs(money) >= 1 or not money else f"{money:.3g}"


def _big(count: float) -> str:
    """A count that fits into a narrow column."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / (1e3 if letter == 'k' else size):.4g} {letter}"
    return f"{count:,.0f}"


def _time(ms: float) -> str:
    """A duration with its largest unit."""
    for size, unit in ((86_400_000, "days"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if abs(ms) >= size:
            return f"{ms / size:,.1f} {unit}"
    return f"{ms:,.0f} ms"
