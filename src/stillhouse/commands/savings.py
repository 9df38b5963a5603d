"""``stillhouse savings``: what an agent behind the front door saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, print_json
from stillhouse.shown import escape_line
from stillhouse.terminal import Table

if TYPE_CHECKING:
    from stillhouse.savings_page import SavingsTable

__all__ = ["savings"]


def savings(
    agent: AgentName,
    publish: Annotated[
        bool, typer.Option("--publish", help="also write the page savings.md to the champion's MLflow run")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an agent behind the front door saves: calls, tokens, money and time, against always asking.

    And how often its answers agree with the upstream's, with an exact lower bound,
    by questions that were audited blindly. By stage (the reign of a champion's
    version) and by week, as far back as the door keeps its records. Prices of
    models are in STILLHOUSE_HOME/gateway/gateway.yaml.
    """
    from stillhouse.gateway.savings import read_savings
    from stillhouse.savings_page import describe_savings, publish_savings, tabulate_reasons, tabulate_savings

    settings = config.load(agent)
    found = read_savings(settings)
    if as_json:
        print_json(found)
    else:
        for line in describe_savings(found):
            console.print(escape_line(line))
        if found.total.requests:
            _show(tabulate_savings(found))
            console.print("why the upstream was asked:")
            _show(tabulate_reasons(found))
    if publish:
        run_id = publish_savings(settings, found)
        if not as_json:
            console.done(f"savings.md is in MLflow run {run_id}")


def _show(shown: SavingsTable) -> None:
    table = Table(*shown.headings, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)
