"""Links to the forms of deployments on Prefect's pages, with parameters filled in."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from tasks.common import artifact_key

__all__ = ["form_url", "format_approval", "link_answers", "link_artifact"]


def form_url(flow: str, agent: str, **parameters: Any) -> str | None:
    """The address of the form that runs the deployment ``<flow>/<agent>``, with these parameters filled in.

    :returns: None if there is no such deployment, or the server has no pages.
    """
    pages = PREFECT_UI_URL.value()
    if not pages:
        return None
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{flow}/{agent}")
        except ObjectNotFound:
            return None
    # the page decodes the value once more than a browser does
    filled_in = quote(quote(json.dumps({"agent": agent, **parameters}), safe=""), safe="")
    return f"{pages.rstrip('/')}/deployments/deployment/{deployment.id}/run?parameters={filled_in}"


def link_artifact(kind: str, agent: str, text: str) -> str:
    """Markdown that links to the artifacts of a kind, newest first; empty if the server has no pages."""
    pages = PREFECT_UI_URL.value()
    return f"[{text}]({pages.rstrip('/')}/artifacts/key/{artifact_key(kind, agent)})" if pages else ""


def link_answers(agent: str) -> dict[str, str]:
    """By what a person wants to know about the champion, Markdown that links to Prefect's pages; empty if it has none.

    The links lead to the newest watch, refresh and timeline, and to the form that goes back.
    """
    links = [link_artifact(kind, agent, kind) for kind in ("watch", "refresh", "timeline")]
    if not all(links):
        return {}
    answers = {"newest": ", ".join(links)}
    if form := form_url("promote", agent, action="rollback"):
        answers["go back by a form"] = f"[roll back]({form})"
    return answers


def format_approval(agent: str, version: str) -> str:
    """The section of a page that asks a person to decide about the waiting version: links to the form, and the command.

    :param version: number of the version that waits.
    """
    model, number = f"{agent}@{version}", int(version)
    command = f"python -m flows promote --agent {agent} --version {number} --action approve --by … --reason …"
    parts = ["## Approve or reject", f"**{model}** passed the gate, and waits for a person."]
    approve, reject = (form_url("promote", agent, action=action, version=number) for action in ("approve", "reject"))
    if approve and reject:
        links = f"**[Approve {model}]({approve})** or **[reject it]({reject})**"
        parts.append(f"{links}: a form that asks only who decides (`by`), and why (`reason`).")
    parts.append(f"On the command line: `{command}` (or `--action reject`).")
    return "\n\n".join(parts)
