"""Links into MLflow's pages, in its classic view and on the page that the link names.

Without ``workflowType`` MLflow opens in an empty view for language models.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, urlencode

from stillhouse.errors import StillhouseError
from stillhouse.registry.connection import connect, without_credentials

__all__ = ["LOCAL_ADDRESS", "Links", "list_pages"]

LOCAL_ADDRESS = "http://127.0.0.1:5000"
"""Where ``make ui`` opens MLflow on an embedded store."""


class Links(NamedTuple):
    """Links to the pages of one agent.

    >>> Links("", "1").version("flights", "7")
    '#/models/flights/versions/7?workflowType=machine_learning'
    >>> Links.of("sqlite:///mlflow.db", "1").run("abc", "why.md")
    'http://127.0.0.1:5000/#/experiments/1/runs/abc/artifacts/why.md?workflowType=machine_learning'
    >>> Links("", "1").run("abc", "why.md")
    '?run=abc#/experiments/1/runs/abc/artifacts/why.md?workflowType=machine_learning'
    """

    base: str
    """Address of MLflow's server; empty: the links hold inside of MLflow's own pages, wherever they are served."""
    experiment_id: str

    @classmethod
    def of(cls, tracking_uri: str, experiment_id: str) -> Links:
        """Whole addresses: of the tracking server, or of ``make ui`` for a store without one."""
        is_server = tracking_uri.startswith(("http://", "https://"))
        return cls(f"{without_credentials(tracking_uri).rstrip('/') if is_server else LOCAL_ADDRESS}/", experiment_id)

    def run(self, run_id: str, artifact: str = "") -> str:
        """The page of a run, or of one of its artifacts.

        Inside of MLflow's pages, a query before the fragment makes a link to an artifact load the page anew, in another
        tab: a page of artifacts that goes over to another run says "No Artifacts Recorded" (MLflow 3.17.2).
        """
        below = f"/artifacts/{quote(artifact)}" if artifact else ""
        page = self._page(f"experiments/{self.experiment_id}/runs/{quote(run_id)}{below}")
        return f"?run={quote(run_id)}{page}" if artifact and not self.base else page

    def runs(self, query: str = "") -> str:
        """The table of the experiment's runs, with a query in its search box."""
        return self._page(f"experiments/{self.experiment_id}/runs", **({"searchFilter": query} if query else {}))

    def version(self, name: str, version: str) -> str:
        """The page of a version of a registered model."""
        return self._page(f"models/{quote(name)}/versions/{quote(version)}")

    def logged_model(self, model_id: str) -> str:
        """The page of a logged model."""
        return self._page(f"experiments/{self.experiment_id}/models/{quote(model_id)}")

    def models(self, name: str) -> str:
        """The page of a registered model with its versions."""
        return self._page(f"models/{quote(name)}")

    def _page(self, path: str, **query: str) -> str:
        return f"{self.base}#/{path}?{urlencode(query | {'workflowType': 'machine_learning'})}"


def list_pages() -> list[str]:
    """A line for each agent in the store: links to its runs and to its versions.

    :raises RegistryError: if MLflow does not answer.
    """
    client = connect()
    registered, lines = {model.name for model in client.search_registered_models()}, list[str]()
    for experiment in client.search_experiments():
        if experiment.name in registered:
            links = Links.of(client.uri, experiment.experiment_id)
            lines.append(f"{experiment.name}: runs {links.runs()}")
            lines.append(f"{experiment.name}: versions {links.models(experiment.name)}")
    return lines


def main() -> None:
    """Print where the pages of each agent are; ``make ui`` does."""
    try:
        lines = list_pages()
    except StillhouseError as error:
        lines = [str(error)]
    print(
        "\n".join(lines or [f"{LOCAL_ADDRESS}/#/experiments?workflowType=machine_learning (no agent has models yet)"])
    )
    print("Ctrl-C stops the server")


if __name__ == "__main__":
    main()
