"""The command line ``stillhouse``: assembles the commands of :mod:`stillhouse.commands`.

Heavy libraries are imported inside the commands, so that ``stillhouse --help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from stillhouse import config
from stillhouse.commands.adopt import adopt
from stillhouse.commands.arguments import show_version
from stillhouse.commands.check import check
from stillhouse.commands.compress import compress
from stillhouse.commands.contract import contract
from stillhouse.commands.drift import drift
from stillhouse.commands.evaluate import evaluate
from stillhouse.commands.forget import forget
from stillhouse.commands.history import history
from stillhouse.commands.import_ import import_
from stillhouse.commands.keys import keys, sign, verify_model
from stillhouse.commands.new import new
from stillhouse.commands.new_answers import new_answers
from stillhouse.commands.output import console
from stillhouse.commands.quarantine import quarantine
from stillhouse.commands.replay import replay
from stillhouse.commands.savings import savings
from stillhouse.commands.serve import serve
from stillhouse.commands.status import status
from stillhouse.commands.tasks import tasks
from stillhouse.commands.teachers import teachers
from stillhouse.commands.timeline import timeline
from stillhouse.commands.verify import verify
from stillhouse.terminal import report_errors

__all__ = ["app", "console", "main"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="stillhouse keeps the small model inside an agent fresh.\n\n"
    "Prefect runs the flows; to run one by hand: python -m flows --help.",
)

# in the order in which the user of an agent meets them
app.command()(new)
app.command()(check)
app.command()(contract)
app.command("import")(import_)
app.command()(quarantine)
app.command()(forget)
app.command()(status)
app.command()(history)
app.command()(timeline)
app.command()(evaluate)
app.command()(new_answers)
app.command()(verify)
app.command()(teachers)
app.command()(replay)
app.command()(drift)
app.command()(serve)
app.command()(tasks)
app.command()(adopt)
app.command()(savings)
app.command()(compress)
app.add_typer(keys, name="keys")
app.command()(sign)
app.command()(verify_model)


_ADVICE = {
    "import": "the rows so far are in the knowledge base; run the same command again to go on",
    "forget": "a request that was begun is written down; run `stillhouse forget AGENT` to complete it",
    "sign": "the models signed so far stay so; run the same command again to go on",
    "compress": "the candidates so far are kept; run the same command again to go on",
    "evaluate": "answers that were paid for are kept; run the same command again",
}
_NOTHING_CHANGED = "nothing was changed; run the same command again"


@app.callback()
def prepare(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="show the version and exit")
    ] = False,
) -> None:
    config.use_embedded_defaults()


def main() -> None:
    """Run the command line; errors that a user can correct are printed without a traceback."""
    with report_errors(_ADVICE, _NOTHING_CHANGED):
        app()
