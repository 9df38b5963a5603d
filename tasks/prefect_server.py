"""The Prefect server for a flow that is run by hand: a temporary one on loopback, unless the settings name one.

The temporary server runs in a child process that exits when this process ends, even by SIGKILL: the child reads a pipe,
and the operating system closes the writing end when this process ends. (The temporary server that Prefect itself starts
would keep running.) If the server stops during a run, the run ends with one error sentence; Prefect's client would
retry for minutes. Completed work is kept.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from stillhouse.errors import RuntimeStateError

if TYPE_CHECKING:
    import uvicorn

__all__ = ["ensure_server", "without_heartbeats"]

_START_TIMEOUT_S = 180.0  # a server starts slowly on a busy machine
_MAX_OUTAGE_S = 30.0  # of a server that the settings name: it may be restarting
_POLL_S = 1.0


def ensure_server() -> Callable[[], None]:
    """Make sure that the flows of this process have a Prefect server. Call it before Prefect is imported.

    A temporary server has its address at once and starts in parallel with the remaining imports of this process.

    :returns: a function that waits until the server answers; call it before the first flow runs.
    :raises RuntimeStateError: if no server can be started, or the server that the settings name does not answer.
    """
    if named := os.environ.get("PREFECT_API_URL"):
        _require_answer(named)
        _watch(lambda: _reachable(named), _MAX_OUTAGE_S, named)
        return lambda: None
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C must not stop the server before the run has reported its end
        )
    atexit.register(_stop, server)
    if _has_settings():  # the child process reads them, because they may name a server
        _use(server)
        return lambda: None
    os.environ["PREFECT_API_URL"] = url
    return lambda: _use(server)


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Disable the heartbeats of flow runs in this context: nothing monitors a run by hand, and it ends a second sooner.

    Prefect's heartbeat thread sleeps in steps of one second, and a flow waits for the thread to end.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _use(server: subprocess.Popen[bytes]) -> None:
    """Wait for the started server, or for the address of the server that Prefect's settings name."""
    url, is_own = _read_address(server)
    if is_own:
        os.environ["PREFECT_API_URL"] = url
        _watch(lambda: server.poll() is None, 0.0, url)
    else:
        _require_answer(url)
        _watch(lambda: _reachable(url), _MAX_OUTAGE_S, url)


def _has_settings() -> bool:
    """Return whether a file exists in which Prefect looks for the address of a server."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    if profiles.exists() or Path("prefect.toml").exists():
        return True
    return any(
        file.exists() and word in file.read_text(encoding="utf-8", errors="replace")
        for file, word in ((Path(".env"), "PREFECT_"), (Path("pyproject.toml"), "[tool.prefect"))
    )


def _read_address(server: subprocess.Popen[bytes]) -> tuple[str, bool]:
    """Return the server's address, and whether it is the server that was started."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], _START_TIMEOUT_S)
    kind, _, url = server.stdout.readline().decode().strip().partition(" ") if ready else ("", "", "")
    if kind not in ("own", "named"):
        raise RuntimeStateError(
            f"a Prefect server for this run did not start{'' if ready else f' within {_START_TIMEOUT_S:.0f} s'}; "
            "set PREFECT_API_URL to the address of a running server (`make prefect` starts one), or try again"
        )
    return url, kind == "own"


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()


def _watch(is_up: Callable[[], bool], max_outage_s: float, url: str) -> None:
    """Start a thread that ends this process when the server has been down for more than ``max_outage_s``."""
    ending = threading.Event()
    atexit.register(ending.set)

    def poll() -> None:
        last_up = time.monotonic()
        while not ending.wait(_POLL_S):
            if is_up():
                last_up = time.monotonic()
            elif time.monotonic() - last_up > max_outage_s and not ending.is_set():
                print(
                    f"RuntimeStateError: the Prefect server at {url} stopped answering during the run. Completed work "
                    "is kept: run the same command again",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    threading.Thread(target=poll, name="prefect-server-watch", daemon=True).start()


def _require_answer(url: str) -> None:
    """Check the server before the run begins; Prefect's client would fail later, with a traceback."""
    if problem := _find_problem(url):
        raise RuntimeStateError(
            f"the Prefect server {url!r}, which PREFECT_API_URL or the profile names, {problem}. Start it, correct the "
            "address, or unset it: the run then starts a temporary server"
        )


def _find_problem(url: str) -> str | None:
    """Return why no run can use this server; None if it answers."""
    try:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            return "is no address: an address begins with http:// or https:// and ends with /api"
        if not _reachable(url):
            return "does not answer"
        if urlsplit(url).scheme == "http":  # https may need the certificates in Prefect's settings
            urlopen(f"{url.rstrip('/')}/health", timeout=10).close()
    except HTTPError as error:
        return f"is no Prefect API: it answers {error.code} at /health (an address ends with /api)"
    except (OSError, HTTPException) as error:
        return f"does not answer: {error}"
    except (ValueError, OverflowError) as error:
        return f"is no address: {error}"
    return None


def _reachable(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


# --------------------------------------------------------------------------- in the child process


def main() -> None:
    """Run a Prefect server until standard input ends; if Prefect's settings name a server, only print its address."""
    servers: list[uvicorn.Server] = []

    def exit_with_parent() -> None:
        sys.stdin.buffer.read()
        for server in servers:  # empty while Prefect is being imported, which takes seconds
            server.should_exit = True
            time.sleep(5)
        os._exit(0)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_URL

    if named := PREFECT_API_URL.value():
        print("named", named, flush=True)
        return
    listener = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on"))
    servers.append(server)

    def announce() -> None:
        while not server.started:
            time.sleep(0.05)
        print("own", f"http://127.0.0.1:{listener.getsockname()[1]}/api", flush=True)

    threading.Thread(target=announce, daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
