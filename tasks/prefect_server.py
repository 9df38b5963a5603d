"""The Prefect server of a flow that is run by hand: one of its own on loopback, unless the settings name one.

A server of its own lives in a process that ends with this one, however this one ends: it holds the reading end of a
pipe whose writing end the operating system closes for a process that is killed. (The temporary server that Prefect
starts by itself would stay.) A server that goes away in the middle ends the run in a sentence: Prefect's client would
try again for minutes, and what was done so far is kept.
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

_START = 180.0  # seconds that a server may take to start, on a busy machine
_PATIENCE = 30.0  # seconds that a server of others may be away: it may be restarting
_PAUSE = 1.0  # seconds between two looks


def ensure_server() -> Callable[[], None]:
    """See that flows of this process have a server; to be called before Prefect is imported.

    A server of its own starts beside what this process still has to import: its address is known at once.

    :returns: to be called before the first flow runs: waits until the server answers.
    :raises RuntimeStateError: if none can be started, or the one that the settings name does not answer.
    """
    if named := os.environ.get("PREFECT_API_URL"):
        _require_answer(named)
        _watch(lambda: _reachable(named), _PATIENCE, named)
        return lambda: None
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,  # Ctrl-C ends the run first, which still tells the server
        )
    atexit.register(_stop, server)
    if _has_settings():  # they may name a server: that process reads them
        _use(server)
        return lambda: None
    os.environ["PREFECT_API_URL"] = url
    return lambda: _use(server)


@contextmanager
def without_heartbeats() -> Iterator[None]:
    """Within, flow runs send no heartbeats: a run by hand has nobody who watches for them, and ends a second sooner.

    Prefect's heartbeat thread sleeps in steps of a second, and a flow waits for it to end.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _use(server: subprocess.Popen[bytes]) -> None:
    """Wait for the server that was started, or for the name of the one that Prefect's settings have."""
    url, own = _answer(server)
    if own:
        os.environ["PREFECT_API_URL"] = url
        _watch(lambda: server.poll() is None, 0.0, url)
    else:
        _require_answer(url)
        _watch(lambda: _reachable(url), _PATIENCE, url)


def _has_settings() -> bool:
    """Whether there is a file in which Prefect would look for the address of a server."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    if profiles.exists() or Path("prefect.toml").exists():
        return True
    return any(
        file.exists() and word in file.read_text(encoding="utf-8", errors="replace")
        for file, word in ((Path(".env"), "PREFECT_"), (Path("pyproject.toml"), "[tool.prefect"))
    )


def _answer(server: subprocess.Popen[bytes]) -> tuple[str, bool]:
    """The server's address, and whether it is the one that was started."""
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], _START)
    kind, _, url = server.stdout.readline().decode().strip().partition(" ") if ready else ("", "", "")
    if kind not in ("own", "named"):
        raise RuntimeStateError(
            f"a Prefect server for this run did not start {f'within {_START:.0f} s' if not ready else 'at all'}; "
            "let PREFECT_API_URL name one that runs (`make prefect` starts one), or try again"
        )
    return url, kind == "own"


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()


def _watch(there: Callable[[], bool], patience: float, url: str) -> None:
    """End this process soon after the server has gone away."""
    ending = threading.Event()
    atexit.register(ending.set)

    def look() -> None:
        seen = time.monotonic()
        while not ending.wait(_PAUSE):
            if there():
                seen = time.monotonic()
            elif time.monotonic() - seen > patience and not ending.is_set():
                print(
                    f"RuntimeStateError: the Prefect server at {url} has gone away in the middle of the run. What was "
                    "done so far is kept: run the same command again",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    threading.Thread(target=look, name="prefect-server-watch", daemon=True).start()


def _require_answer(url: str) -> None:
    """Before anything is begun: Prefect's client would say it late, and in a traceback."""
    if wrong := _fault(url):
        raise RuntimeStateError(
            f"the Prefect server {url!r}, which PREFECT_API_URL or the profile names, {wrong}. Start it there, correct "
            "the address, or unset it: then this run has a server of its own"
        )


def _fault(url: str) -> str | None:
    """Why no run can go on there; None where a server answers."""
    try:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            return "is no address: it begins with http:// or https://, and ends with /api"
        if not _reachable(url):
            return "does not answer"
        if urlsplit(url).scheme == "http":  # https may need certificates that Prefect's settings name
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


# --------------------------------------------------------------------------- inside the server's process


def main() -> None:
    """Serve until standard input ends, unless Prefect's settings name a server: then only say which."""
    serving: list[uvicorn.Server] = []

    def end_with_the_parent() -> None:
        sys.stdin.buffer.read()
        for server in serving:  # none while Prefect is imported, which takes seconds
            server.should_exit = True
            time.sleep(5)
        os._exit(0)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_URL

    if named := PREFECT_API_URL.value():
        print("named", named, flush=True)
        return
    listening = socket.socket(fileno=int(sys.argv[1]))
    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True, final=True), log_level="error", lifespan="on"))
    serving.append(server)

    def announce() -> None:
        while not server.started:
            time.sleep(0.05)
        print("own", f"http://127.0.0.1:{listening.getsockname()[1]}/api", flush=True)

    threading.Thread(target=announce, daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    main()
