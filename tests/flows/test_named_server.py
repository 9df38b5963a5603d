"""A Prefect server that the settings name and that is not there: said at once, before anything is begun."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from stillhouse.errors import RuntimeStateError
from tasks.prefect_server import ensure_server


class _Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """A web server that is not a Prefect server."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/api", "does not answer"),
        ("http://127.0.0.1:99999/api", "is no address: Port out of range"),
        ("http://[::1/api", "is no address"),
        ("somewhere", "begins with http://"),
    ],
)
def test_unreachable_named_server_is_refused_at_once(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(RuntimeStateError, match=message):
        ensure_server()


def test_web_server_that_is_no_prefect_server_is_refused(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", site)
    with pytest.raises(RuntimeStateError, match=r"answers 404 at /health \(an address ends with /api\)"):
        ensure_server()
