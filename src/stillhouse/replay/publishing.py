"""What is shown and kept of a replay: table, figure, JSON, page, and an MLflow experiment of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from stillhouse.evaluate.figures import plot_policies
from stillhouse.files import write_atomic
from stillhouse.quality import measure_title
from stillhouse.registry.replays import log_policy_runs
from stillhouse.replay.report import PolicyReport, ReplayReport
from stillhouse.shown import escape_markdown

__all__ = ["draw_report", "format_page", "list_headings", "list_rows", "log_replay", "summarize", "write_report"]


_ALWAYS_SHOWN = ("log_loss", "accuracy", "agreement")


def summarize(report: ReplayReport) -> str:
    """One sentence about what was played."""
    length = report.step_seconds / 86_400
    return (
        f"{report.agent}: {report.rows:,} rows from the {report.source}, {report.steps} steps of {length:g} days from "
        f"{report.start:%Y-%m-%d}; a redistillation costs {report.exchange_rate:g} of the range of "
        f"{measure_title(report.measure)} for one week; {report.seconds:.0f} s"
    )


def list_headings(report: ReplayReport) -> tuple[str, ...]:
    """The headings of the table."""
    named = () if report.measure in _ALWAYS_SHOWN else (measure_title(report.measure),)
    return (
        "policy",
        *named,
        "log loss",
        "agreement" if report.measure == "agreement" else "accuracy",
        "responses",
        "gained nothing",
        "trainings",
        "teacher calls",
        "price",
        "total",
    )


def list_rows(report: ReplayReport) -> Iterator[tuple[str, ...]]:
    """The cells of each policy, the smallest total first."""
    for policy in sorted(report.policies, key=lambda policy: policy.total):
        quality = "" if policy.quality is None else f"{policy.quality:.4f}"
        yield (
            policy.label(len(report.agent_files)),
            *(() if report.measure in _ALWAYS_SHOWN else (quality,)),
            f"{policy.log_loss:.4f}",
            f"{policy.accuracy:.4f}",
            ", ".join(f"{count} {kind}" for kind, count in sorted(policy.responses.items())) or "none",
            f"{policy.gained_nothing}",
            f"{policy.trainings}",
            f"{policy.teacher_calls:,}",
            f"{policy.price:g}",
            f"{policy.total:.4f}",
        )


def draw_report(report: ReplayReport) -> Figure:
    """Quality over time and the responses of each policy."""
    labels = {policy.label(len(report.agent_files)): policy for policy in report.policies}
    return plot_policies(
        report.times,
        {label: policy.quality_by_step for label, policy in labels.items()},
        {label: [(act.at, act.response, act.gained > 0) for act in policy.acts] for label, policy in labels.items()},
        report.measure,
        f"{report.agent}: policies on {report.steps} steps from {report.start:%Y-%m-%d}",
    )


def write_report(report: ReplayReport, folder: Path) -> None:
    """Write ``replay.json`` and ``replay.png`` to ``folder``, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "replay.json", report.model_dump_json(indent=1) + "\n")
    draw_report(report).savefig(folder / "replay.png", dpi=110)


def format_page(report: ReplayReport) -> str:
    """The report as Markdown."""
    headings = list_headings(report)
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings))]
    lines += [f"| {' | '.join(escape_markdown(cell) for cell in row)} |" for row in list_rows(report)]
    return f"{escape_markdown(summarize(report))}\n\n" + "\n".join(lines) + "\n"


def log_replay(report: ReplayReport) -> str:
    """Log a run for each policy to the experiment ``<agent>-replay``; returns the id of the run above them."""
    return log_policy_runs(
        report.agent,
        report,
        draw_report(report),
        {policy.label(len(report.agent_files)): _metrics(policy) for policy in report.policies},
        {policy.label(len(report.agent_files)): list(_points(policy, report)) for policy in report.policies},
    )


def _metrics(policy: PolicyReport) -> Mapping[str, float]:
    values = {
        "mean_quality": policy.quality,
        "mean_log_loss": policy.log_loss,
        "mean_accuracy": policy.accuracy,
        "responses": sum(policy.responses.values()),
        "gained_nothing": policy.gained_nothing,
        "trainings": policy.trainings,
        "teacher_calls": policy.teacher_calls,
        "price": policy.price,
        "total": policy.total,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def _points(policy: PolicyReport, report: ReplayReport) -> Iterator[Mapping[str, float]]:
    """The metrics of each step that has rows."""
    columns = {
        report.measure: policy.quality_by_step,
        "log_loss": policy.log_loss_by_step,
        "accuracy": policy.accuracy_by_step,
    }
    for step in range(report.steps):
        yield {name: float(value) for name, values in columns.items() if (value := values[step]) is not None}
