"""``stillhouse verify``: compute a verdict again, and say whether it is identical."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.commands.arguments import AgentName, AsJson
from stillhouse.commands.output import console, print_json
from stillhouse.errors import StillhouseError

if TYPE_CHECKING:
    from stillhouse.records import Verification

__all__ = ["verify"]

_DIFFERS, _CANNOT_BE_VERIFIED = 1, 2


def verify(
    agent: AgentName,
    verdict: Annotated[
        str, typer.Argument(help="id from `stillhouse history`, `last`, or the path of a certificate.json")
    ] = "last",
    as_json: AsJson = False,
) -> None:
    """Compute a verdict again from the stored data and models, and say whether it is identical.

    A gate: its rows at their table versions, the signed files of its models, all figures and comparisons, and the
    verdict by the rule of that time. A watch: rows, data contract, drift, evidence, verdict. A promotion: its place in
    the history of champions. Nothing is written, and no teacher is asked.

    Exit code: 0 identical; 1 something differs; 2 it cannot be verified, because data or models are missing.

    For the signature of a model's files alone: stillhouse verify-model.
    """
    from stillhouse.certifying.run import verify as compute_again

    try:
        with console.status("computing the verdict again"):
            verification = compute_again(agent, verdict)
    except StillhouseError as error:
        typer.echo(f"cannot be verified: {error}", err=True)
        raise typer.Exit(_CANNOT_BE_VERIFIED) from error
    if as_json:
        print_json(verification)
    else:
        _show(verification)
    if verification.differences:
        raise typer.Exit(_DIFFERS)
    if verification.missing:
        raise typer.Exit(_CANNOT_BE_VERIFIED)


def _show(verification: Verification) -> None:
    name = f"verdict {verification.verdict_id} of {verification.agent}, {verification.as_of:%Y-%m-%d %H:%M}"
    console.print(f"{name}: {verification.result.replace('_', ' ')}", soft_wrap=True)
    for text in verification.checked:
        console.print(f"computed again: {text}", soft_wrap=True)
    for text in verification.not_recomputed:
        console.print(f"not computed again: {text}", soft_wrap=True)
    for text in verification.differences:
        console.print(f"differs: {text}", soft_wrap=True)
    for text in verification.missing:
        console.print(f"missing: {text}", soft_wrap=True)
    if verification.identical:
        console.done("identical")
    elif verification.differences:
        console.print(f"not identical: {len(verification.differences)} differences")
    else:
        console.print("cannot be verified: see what is missing")
