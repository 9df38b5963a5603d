"""A device: it pulls the champion, verifies it, decides without a network, and hands in its decisions exactly once.

It needs Python, numpy, onnxruntime and cryptography. Three files are installed over a channel that you trust: this one,
stillhouse's `verifying.py` and the public key; all else comes from `stillhouse serve` and is verified before it is
loaded. Observations are read from the standard input, a JSON object a line, and their decisions are printed. Without a
server nothing touches the network; with one, it hands in and pulls before the first line and after the last. ::

    python device.py AGENT KEY.pub FOLDER [SERVER] < observations.jsonl

A decision is in a file of `FOLDER/log`, with its checksum, and synced to the disk before it is returned. Each process
writes files of its own, and a file is removed when the server has its lines, of which it counts each once. So a kill
between any two steps, or an answer of the server that gets lost, neither loses a decision nor doubles one.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import threading
import urllib.request
import uuid
import zlib
from datetime import UTC, datetime
from pathlib import Path

from verifying import VerificationError, check_folder, read_keys, verify  # the file beside this one

sys.dont_write_bytecode = True  # a model's folder with other files than the signed ones does not pass
ROWS_PER_REQUEST, TIMEOUT_SECONDS, MAX_ANSWER_BYTES = 200, 20, 2**28


class Device:
    """One agent's champion and log in a folder, which one process at a time may use; threads may share it."""

    def __init__(self, agent: str, keys: dict, folder: Path) -> None:
        self.agent, self.keys, self.folder, self.log = agent, keys, folder, folder / "log"
        self.log.mkdir(parents=True, exist_ok=True)
        self._held, self._lock, self._file = (folder / "lock").open("w"), threading.Lock(), None
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends, however it does
        self.champion, self.state = None, {"release": 0}
        with contextlib.suppress(VerificationError, OSError):  # none yet, or damaged: the next pull brings it
            self.state = json.loads((folder / "state.json").read_text())
            self.champion = self._load(folder / self.state["model"])

    def _load(self, folder: Path) -> tuple:
        """Verify the files of a model, and only then import the reader among them; returns it with the version."""
        verified = check_folder(folder, self.keys, agent=self.agent, at_least=self.state["release"])
        spec = importlib.util.spec_from_file_location("variant", folder / "variant.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.Variant(folder), f"{self.agent}@{verified.model.version}"

    def pull(self, server: str) -> str | None:
        """Take over the server's champion, if it is another one; returns its version. On an error nothing changes."""
        known = {"If-None-Match": self.state["etag"]} if self.champion else {}
        status, content, etag = call(f"{server}/v1/agents/{self.agent}/model", headers=known)
        if status == 304:
            return None
        archive, is_a = self.folder / "champion.tar.gz", self.state.get("model") == "model-a"
        archive.write_bytes(content)
        folder = self.folder / ("model-b" if is_a else "model-a")  # the present one stays where it is
        shutil.rmtree(folder, ignore_errors=True)
        release = verify(archive, self.keys, agent=self.agent, into=folder).release.number
        champion, partial = self._load(folder), self.folder / "state.partial"  # refuses a release that was withdrawn
        state = {"model": folder.name, "etag": etag, "release": release}
        partial.write_text(json.dumps(state))
        os.sync()  # all of it is on the disk before the state names it
        partial.replace(self.folder / "state.json")
        self.champion, self.state = champion, state
        return champion[1]

    def decide(self, row: dict) -> dict:
        """Decide about one row, which may have an `observation_id` and `observed_at`; returns what was recorded."""
        if self.champion is None:
            raise SystemExit("there is no champion on this device, or it is damaged: a pull from the server brings it")
        now, (model, version) = datetime.now(UTC).isoformat(), self.champion
        action, probabilities = model.decide(row)
        row = {"observation_id": uuid.uuid4().hex, "observed_at": now} | row
        made = {"decision_id": uuid.uuid4().hex, "observation": row, "decided_at": now, "action": action}
        made |= {"probabilities": probabilities, "version": version}
        line = json.dumps(made, allow_nan=False).encode()
        with self._lock:
            file, self._file = self._file or (self.log / uuid.uuid4().hex).open("xb"), None
            file.write(b"%08x %s\n" % (zlib.crc32(line), line))
            file.flush()
            os.fsync(file.fileno()) if file.tell() > 10 + len(line) else os.sync()  # with its first line also its name
            self._file = file  # not after an error: another line would follow half of this one
        return made

    def hand_in(self, server: str) -> int:
        """Send the files of the log, and remove each one that the server has; returns the number of decisions."""
        with self._lock:  # the next decision begins another file
            self._file, paths, sent = None, sorted(self.log.iterdir()), 0
        for path in paths:
            lines = [line for line in path.read_bytes().splitlines() if line[:9] == b"%08x " % zlib.crc32(line[9:])]
            for first in range(0, len(lines), ROWS_PER_REQUEST):
                self._send(server, [line[9:] for line in lines[first : first + ROWS_PER_REQUEST]])
            path.unlink()
            sent += len(lines)
        return sent

    def _send(self, server: str, made: list[bytes]) -> None:
        """Send decisions in one request. What the server does not accept is set aside, and stops no other."""
        body, middle = b'{"decisions": [%s]}' % b", ".join(made), len(made) // 2
        status, content, _ = call(f"{server}/v1/agents/{self.agent}/handed-in", body)
        if status != 200 and middle:
            self._send(server, made[:middle])
            self._send(server, made[middle:])
        elif status != 200:
            (self.folder / f"refused-{uuid.uuid4().hex}").write_bytes(b"%s\n%s\n" % (content, made[0]))
            os.sync()

    def sync(self, server: str) -> None:
        """Hand in and pull. Whatever the network and the server do, the device decides on."""
        for step in (self.hand_in, self.pull):
            try:
                print(f"{step.__name__}: {step(server)}", file=sys.stderr)
            except Exception as error:
                print(f"{step.__name__}: not now, {error}", file=sys.stderr)


def call(url: str, body: bytes | None = None, headers: dict | None = None) -> tuple[int, bytes, str | None]:
    """Status, content and ETag of an answer with 200, 304, 413 or 422; any other is an error."""
    headers = {"Authorization": f"Bearer {os.environ.get('STILLHOUSE_TOKEN', '')}", **(headers or {})}
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return 200, answer.read(MAX_ANSWER_BYTES), answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        if error.code not in (304, 413, 422):
            raise
        return error.code, error.read(), None


def main(agent: str, key: str, folder: str, *server: str) -> None:
    """Decide about the rows of the standard input; with a server also hand in and pull, before and after."""
    device = Device(agent, read_keys(Path(key).read_text()), Path(folder))
    for address in server:
        device.sync(address)
    for line in sys.stdin:
        print(json.dumps(device.decide(json.loads(line))), flush=True)
    for address in server:
        device.sync(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
