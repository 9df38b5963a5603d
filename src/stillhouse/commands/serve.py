"""``stillhouse serve``: serve agents over HTTP."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse import config
from stillhouse.commands.arguments import AGENT_HELP, complete_agent
from stillhouse.commands.output import console
from stillhouse.errors import ConfigError

if TYPE_CHECKING:
    from stillhouse.gateway.door import DoorSettings

__all__ = ["serve"]


def serve(
    agents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AGENT]...",
            help=f"{AGENT_HELP}; none is needed with --upstream",
            parser=config.choose_agent,
            autocompletion=complete_agent,
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; an address other than loopback needs STILLHOUSE_TOKENS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0: any free port")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="number of worker processes")] = 1,
    max_body: Annotated[str, typer.Option(metavar="SIZE", help="largest size of a request: 64KiB, 1MiB")] = "1MiB",
    max_rows: Annotated[
        int, typer.Option(min=1, help="largest number of observations or outcomes in one request")
    ] = 1024,
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="pass all other requests on to this language model's server, and record its closed questions",
        ),
    ] = None,
    abstain: Annotated[
        bool,
        typer.Option(
            "--abstain", help="with --upstream: answer 422 where an agent's champion may not answer, not pass on"
        ),
    ] = False,
) -> None:
    """Serve agents over HTTP: decisions, outcomes, models and teacher answers.

    Each decision is on this machine's disk before it is returned, and is later
    flushed into the knowledge base. A new champion is loaded without a pause.
    After SIGTERM the server answers the open requests and ends. See
    docs/how-to/serve.md, or GET /openapi.json.

    If the environment variable STILLHOUSE_TOKENS holds tokens, separated by
    commas, each client needs one of them as bearer token.

    With --upstream the server stands in front of a language model: clients change
    the address only. See docs/how-to/front-door.md.

    For example:

        stillhouse serve flights
        stillhouse serve --upstream https://api.openai.com/v1
        STILLHOUSE_TOKENS=secret stillhouse serve flights router --host 0.0.0.0 --workers 4
    """
    if missing := [name for name in _REQUIRED_PACKAGES if find_spec(name) is None]:
        raise ConfigError(f"`stillhouse serve` needs {', '.join(missing)}: pip install 'stillhouse[serve]'")
    from stillhouse.serving.http import RequestLimits
    from stillhouse.serving.supervisor import Settings, parse_tokens
    from stillhouse.serving.supervisor import serve as run_server

    limits = RequestLimits(max_body=_parse_size(max_body), max_rows=max_rows)
    tokens = parse_tokens(os.environ.get("STILLHOUSE_TOKENS"))
    door = None if upstream is None else _open_door(upstream, abstain)
    if abstain and door is None:
        raise ConfigError("--abstain needs --upstream: it says what to do instead of passing a request on")
    settings = Settings(tuple(agents or ()), host, port, workers, limits, tokens, door)
    served = [*settings.agents, *([] if door is None else [f"{door.upstream} (passed on)"])]
    text = f"serving {', '.join(served)} on"
    code = run_server(
        settings,
        lambda address: console.print(text, address, f"({settings.access})", soft_wrap=True),
    )
    raise typer.Exit(code)


def _open_door(upstream: str, abstain: bool) -> DoorSettings:
    """The door's settings; the installation's key is made here, before the workers need it."""
    from stillhouse.gateway.door import DoorSettings
    from stillhouse.gateway.settings import load_settings, secret_key
    from stillhouse.gateway.upstream import UpstreamAddress

    address = UpstreamAddress.parse(upstream)
    secret_key()
    return DoorSettings(address, load_settings(), abstain)


_REQUIRED_PACKAGES = ("httpcore", "httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")


def _parse_size(text: str) -> int:
    """Parse a size such as ``64KiB``; the result is in bytes."""
    match = re.fullmatch(r"(\d{1,10})(B|KiB|MiB)?", text.strip())
    size = int(match[1]) * {None: 1, "B": 1, "KiB": 2**10, "MiB": 2**20}[match[2]] if match else 0
    if not 2**10 <= size <= 2**30:
        raise typer.BadParameter(f"{text!r} is not a size from 1KiB to 1024MiB", param_hint="--max-body")
    return size
