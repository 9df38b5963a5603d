"""Serve the page that decides in the browser: its files, the pinned key, and the champion of `stillhouse serve`.

The page itself is in `examples/web`. Any web server does the same: files, and one path that is passed on::

    python examples/device_page.py flights.pub http://127.0.0.1:8000 8080   # then http://127.0.0.1:8080/?agent=flights

ONNX Runtime Web comes from npm and is served from here, as everything else: `make .venv-peers/web/.installed` puts what
`environments/web` pins below `.venv-peers/web`. Only the standard library is needed.
"""

import contextlib
import http.server
import os
import re
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).parent / "web"
RUNTIME = ROOT / ".venv-peers" / "web" / "node_modules" / "onnxruntime-web" / "dist"
PASSED_ON = ("etag", "cache-control", "content-type", "stillhouse-version")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files by their name; `GET v1/agents/<agent>/model` is passed on, with the token in `STILLHOUSE_TOKEN`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *request, key: Path, server: str) -> None:
        self.key, self.upstream = key, server
        super().__init__(*request, directory=str(PAGE))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(r"/v1/agents/[\w-]+/model", path):
            self._pass_on(path)
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        if path == "/key.pub":
            return str(self.key)
        if path.startswith("/ort/"):
            return str(RUNTIME / Path(path).name)
        return super().translate_path(path)

    def _pass_on(self, path: str) -> None:
        headers = {"Authorization": f"Bearer {os.environ.get('STILLHOUSE_TOKEN', '')}"}
        if etag := self.headers["If-None-Match"]:
            headers["If-None-Match"] = etag
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.upstream + path, headers=headers), timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, "the server cannot be reached", str(error))
            return
        with answer:
            body = answer.read()
        self.send_response(answer.status)
        for name in PASSED_ON:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        if answer.status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """A line a request would hide the address."""


def make_server(key: Path, server: str, port: int = 0) -> http.server.ThreadingHTTPServer:
    """The server, on loopback; port 0: any free one."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, key=key, server=server.rstrip("/")))


def main(key: str, server: str, port: str = "0") -> None:
    """Serve until Ctrl-C."""
    if not (RUNTIME / "ort.wasm.min.mjs").exists():
        sys.exit(f"ONNX Runtime Web is not in {RUNTIME}: make .venv-peers/web/.installed")
    with make_server(Path(key).absolute(), server, int(port)) as page:
        print(f"http://127.0.0.1:{page.server_port}/", flush=True)
        page.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
