"""Checks that a model is the one that a refresh has signed. Needs cryptography, nothing else.

This file stands alone, so that it can be given to devices, once, together with a public key: it must never come from
where the models come from. ::

    python verifying.py champion.tar.gz --key flights.pub --agent flights --state last-release --into model/

or, in a program::

    keys = read_keys(Path("flights.pub").read_text())
    release = check_folder("model", keys, agent="flights", at_least=last_number)

What is signed is in two statements, JSON texts in an envelope with their signature (Ed25519, RFC 8032): the *model*
(agent, name, version, the SHA-256 of every file) and the *release* (agent, version, the number of the release). Numbers
grow with each promotion and each roll-back of an agent, so that whoever remembers the last one can tell a version that
was withdrawn. Nothing of a model is imported or parsed before its signature and its files were checked.

It must import nothing of stillhouse.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

__all__ = [
    "CONTEXT",
    "MODEL",
    "RELEASE",
    "SIGNATURE_FILE",
    "FilesDiffer",
    "Keys",
    "Model",
    "Release",
    "VerificationError",
    "Verified",
    "check_archive",
    "check_files",
    "check_folder",
    "check_release",
    "digests",
    "key_id",
    "read_files",
    "read_keys",
    "read_model",
    "read_release",
    "verify",
]

CONTEXT = b"stillhouse signature 1\n"
"""Stands before every statement that is signed, so that no signature of this key is one of something else."""

MODEL, RELEASE = "stillhouse model", "stillhouse release"

SIGNATURE_FILE = "signature.json"
"""Beside the files of a model that was handed out: its two envelopes, ``{"model": …, "release": …}``."""

_CHUNK = 2**20
_MAX_BYTES = 2**30
_MAX_FILES = 10_000

Keys = Mapping[str, Ed25519PublicKey]
"""Trusted public keys by :func:`key_id`."""


class VerificationError(ValueError):
    """Not signed by a trusted key, signed for something else, or withdrawn."""


class FilesDiffer(VerificationError):  # noqa: N818 - it says what is the case
    """The files are others than those that were signed: damaged, altered, missing, or more."""


@dataclass(frozen=True)
class Model:
    """What was signed about a model."""

    agent: str
    name: str
    """Of the registered model: the agent's (its variants), or the agent's with ``-student`` or ``-teacher``."""
    version: str | None
    """Of the registered model; None: it is no version yet."""
    model_id: str
    """In MLflow."""
    role: str
    payload: str
    """The folder among ``files`` that is handed out."""
    files: Mapping[str, str]
    """SHA-256 by path, of every file of the model in MLflow."""
    lineage: Mapping[str, str]
    """MLflow's id by role: what it was made from."""

    def below(self, folder: str) -> dict[str, str]:
        """SHA-256 by path of the files below ``folder``, paths relative to it."""
        prefix = f"{folder}/"
        return {path[len(prefix) :]: digest for path, digest in self.files.items() if path.startswith(prefix)}

    @property
    def handed_out(self) -> dict[str, str]:
        """SHA-256 by path of the files that are handed out."""
        return self.below(self.payload)


@dataclass(frozen=True)
class Release:
    """What was signed when a version became champion, by promotion or by roll-back."""

    agent: str
    version: str
    number: int
    """Grows by one with each release of the agent."""
    released_at: str
    """ISO 8601."""


class Verified(NamedTuple):
    """A model that may be used."""

    model: Model
    release: Release


# --------------------------------------------------------------------------- keys


def read_keys(pem: str) -> dict[str, Ed25519PublicKey]:
    """The public keys in a text: one PEM block after another.

    :raises VerificationError: if there is none, or one is no Ed25519 public key.
    """
    end = "-----END PUBLIC KEY-----"
    blocks = [f"{block}{end}\n" for block in pem.split(end)[:-1]]
    if not blocks:
        raise VerificationError("there is no public key (PEM, -----BEGIN PUBLIC KEY-----) in it")
    found = {}
    for block in blocks:
        try:
            key = load_pem_public_key(block[block.find("-----BEGIN") :].encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise VerificationError("a public key in it cannot be read: it is no PEM of an Ed25519 key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise VerificationError(f"a public key in it is of another kind than Ed25519: {type(key).__name__}")
        found[key_id(key)] = key
    return found


def key_id(key: Ed25519PublicKey) -> str:
    """16 hexadecimal digits that name a public key; for people, not for security."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


# --------------------------------------------------------------------------- statements


def read_model(envelope: str, keys: Keys) -> Model:
    """The statement about a model, once its signature was checked.

    :raises VerificationError: if no trusted key has signed it, or it is no such statement.
    """
    said = _statement(envelope, keys, MODEL)
    try:
        version = said["version"]
        return Model(
            agent=_text(said["agent"]),
            name=_text(said["name"]),
            version=None if version is None else _text(version),
            model_id=_text(said["model_id"]),
            role=_text(said["role"]),
            payload=_text(said["payload"]),
            files=_texts(said["files"]),
            lineage=_texts(said["lineage"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"the signed statement about the model is incomplete: {error}") from error


def read_release(envelope: str, keys: Keys) -> Release:
    """The statement about a release, once its signature was checked; raises as :func:`read_model`."""
    said = _statement(envelope, keys, RELEASE)
    try:
        number = said["number"]
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise TypeError(f"number {number!r}")
        return Release(_text(said["agent"]), _text(said["version"]), number, _text(said["released_at"]))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"the signed statement about the release is incomplete: {error}") from error


def _statement(envelope: str, keys: Keys, kind: str) -> dict[str, Any]:
    """What the envelope holds; nothing in it is believed, or even parsed, before its signature was checked."""
    try:
        outer = json.loads(envelope)
        text, name, signature = outer["statement"], outer["key"], base64.b64decode(outer["signature"], validate=True)
        message = CONTEXT + text.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error) as error:
        raise VerificationError("its signature cannot be read: it is damaged") from error
    key = keys.get(name) if isinstance(name, str) else None
    if key is None:
        raise VerificationError(
            f"it is signed by key {str(name)[:16]!r}, which is not trusted here; trusted are: "
            f"{', '.join(sorted(keys)) or 'none'}"
        )
    try:
        key.verify(signature, message)
    except InvalidSignature:
        raise VerificationError(f"its signature is not that of key {name}: it was altered") from None
    said = json.loads(text)
    if not isinstance(said, dict) or said.get("type") != kind:
        raise VerificationError(f"what was signed is no statement about a {kind.rpartition(' ')[2]}")
    return said


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {_text(name): _text(each) for name, each in dict(value).items()}


# --------------------------------------------------------------------------- files


def digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there with ``/``, in order.

    :raises FilesDiffer: if something there is no plain file: a link leads to what may change.
    """
    return {name: _digest(path) for name, path in _walk(Path(folder))}


def check_files(folder: str | Path, files: Mapping[str, str]) -> None:
    """See that a folder holds these files, whole, and no others.

    :param files: SHA-256 by path.
    :raises FilesDiffer: naming what is missing, what is more, and what is other than it was.
    """
    _compare(digests(folder), files)


def read_files(folder: str | Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """:func:`check_files`, and the very bytes that were checked, by path."""
    found = {name: path.read_bytes() for name, path in _walk(Path(folder))}
    _compare({name: hashlib.sha256(content).hexdigest() for name, content in found.items()}, files)
    return found


def _compare(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    differences = [
        ("others than were signed", [name for name, digest in wanted.items() if found.get(name, digest) != digest]),
        ("missing", [name for name in wanted if name not in found]),
        ("not signed", [name for name in found if name not in wanted]),
    ]
    told = [f"{how}: {', '.join(map(repr, sorted(names)[:5]))}" for how, names in differences if names]
    if told or not wanted:
        raise FilesDiffer("; ".join(told) or "no file of it was signed")


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted([*names, *(each for each in folders if Path(place, each).is_symlink())]):
            path = Path(place, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise FilesDiffer(f"{name!r} is no plain file, and only those are signed")
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    raise error


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


# --------------------------------------------------------------------------- what was handed out


def check_folder(
    folder: str | Path, keys: Keys, *, agent: str, at_least: int = 0, version: str | None = None
) -> Verified:
    """Check a model that was handed out and unpacked, before anything of it is used.

    :param agent: whose model it has to be.
    :param at_least: the number of the newest release that was seen before; an older one was withdrawn.
    :param version: that it has to be; None: any.
    :raises VerificationError: if it may not be used, with the reason.
    """
    found = {name: path for name, path in _walk(Path(folder)) if name != SIGNATURE_FILE}
    verified = _envelopes(Path(folder, SIGNATURE_FILE), keys, agent, at_least, version)
    _compare({name: _digest(path) for name, path in found.items()}, verified.model.handed_out)
    return verified


def check_archive(
    archive: str | Path,
    keys: Keys,
    *,
    agent: str,
    at_least: int = 0,
    version: str | None = None,
    max_bytes: int = _MAX_BYTES,
) -> tuple[Verified, dict[str, bytes]]:
    """Check a model that was handed out as ``.tar.gz``, in memory: nothing of it touches the disk unchecked.

    :param max_bytes: of the archive unpacked; more is refused before it is in memory.
    :returns: what was signed, and the files by path, the signature among them; see :func:`check_folder`.
    """
    files = dict(_members(Path(archive), max_bytes))
    signature = files.get(SIGNATURE_FILE)
    verified = _envelopes(None if signature is None else io.BytesIO(signature), keys, agent, at_least, version)
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != SIGNATURE_FILE}
    _compare(found, verified.model.handed_out)
    return verified, files


def _members(archive: Path, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    names = set[str]()
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=_limited(unpacked, max_bytes), mode="r|") as members:
            for member in members:
                if member.name in names or len(names) >= _MAX_FILES:
                    raise FilesDiffer(f"{member.name!r} is in it twice, or it holds too many files")
                names.add(member.name)
                content = members.extractfile(member) if member.isreg() else None
                if content is None:
                    raise FilesDiffer(f"{member.name!r} is no plain file, and only those are signed")
                yield member.name, content.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise VerificationError(f"it cannot be read as .tar.gz: {error}") from error


def _limited(stream: gzip.GzipFile, max_bytes: int) -> IO[bytes]:
    return cast(IO[bytes], _Limited(stream, max_bytes))  # all that tarfile asks of a stream is to read


class _Limited(io.RawIOBase):
    """As many bytes as are allowed, file names and headers of any length included: beyond, memory would be at stake."""

    def __init__(self, source: gzip.GzipFile, max_bytes: int) -> None:
        self._source, self._max, self._left = source, max_bytes, max_bytes + tarfile.RECORDSIZE

    def read(self, size: int = -1) -> bytes:
        content = self._source.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise VerificationError(f"it unpacks to more than {self._max:,} bytes")
        return content


def _envelopes(
    source: Path | io.BytesIO | None, keys: Keys, agent: str, at_least: int, version: str | None
) -> Verified:
    try:
        text = source.read_bytes() if isinstance(source, Path) else b"" if source is None else source.read()
        both = json.loads(text)
        model, release = _text(both["model"]), _text(both["release"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise VerificationError(f"there is no {SIGNATURE_FILE} that can be read: it is not signed") from error
    return check_release(read_model(model, keys), read_release(release, keys), agent, at_least, version)


def check_release(
    model: Model, release: Release, agent: str, at_least: int = 0, version: str | None = None
) -> Verified:
    """See that a model is a version of this agent, is the one that was released, and was not withdrawn.

    :raises VerificationError: if not.
    """
    if model.agent != agent or release.agent != agent or model.name != agent:
        raise VerificationError(f"it is signed as {model.name!r} of agent {model.agent!r}, not of agent {agent!r}")
    if model.version is None or model.version != release.version:
        raise VerificationError(f"version {model.version} is not what was released: that is version {release.version}")
    if version is not None and version != model.version:
        raise VerificationError(f"it is version {model.version}, not {version}")
    if release.number < at_least:
        raise VerificationError(
            f"version {model.version} was withdrawn: it is release {release.number}, and release {at_least} was seen "
            "here already"
        )
    return Verified(model, release)


# --------------------------------------------------------------------------- by hand


def main(arguments: Sequence[str] | None = None) -> int:
    """``python verifying.py``: 0 where the model may be used, 1 where not."""
    parser = argparse.ArgumentParser(
        prog="verifying.py", description="Check that a model was signed, before it is used."
    )
    parser.add_argument("model", type=Path, help="a folder, or a .tar.gz as GET …/model gives it")
    parser.add_argument(
        "--key", type=Path, action="append", required=True, help="a trusted public key, PEM; repeatable"
    )
    parser.add_argument("--agent", required=True, help="whose model it has to be")
    parser.add_argument("--state", type=Path, help="file that keeps the number of the newest release")
    parser.add_argument("--into", type=Path, help="new folder that an archive is unpacked into, once it was checked")
    given = parser.parse_args(arguments)
    try:
        keys = {name: key for file in given.key for name, key in _keys_in(file).items()}
        verified = verify(given.model, keys, agent=given.agent, state=given.state, into=given.into)
    except (VerificationError, OSError) as error:
        print(f"{given.model}: {error}", file=sys.stderr)
        return 1
    print(f"{given.agent}@{verified.model.version} (release {verified.release.number}) is as it was signed")
    return 0


def verify(
    source: Path,
    keys: Keys,
    *,
    agent: str,
    state: Path | None = None,
    into: Path | None = None,
    version: str | None = None,
) -> Verified:
    """Check a folder or an archive, unpack an archive into a new folder, and remember the number of the release.

    :raises VerificationError: if the model may not be used; then nothing was written.
    """
    at_least = _remembered(state)
    if source.is_dir():
        if into is not None:
            raise VerificationError("a folder is unpacked already: leave out where it is to be unpacked")
        files: dict[str, bytes] = {}
        verified = check_folder(source, keys, agent=agent, at_least=at_least, version=version)
    else:
        verified, files = check_archive(source, keys, agent=agent, at_least=at_least, version=version)
    if into is not None:
        _unpack(files, into)
    if state is not None and verified.release.number > at_least:
        partial = state.with_name(f"{state.name}.partial")
        partial.write_text(f"{verified.release.number}\n", encoding="utf-8")
        partial.replace(state)
    return verified


def _keys_in(file: Path) -> Keys:
    try:
        return read_keys(file.read_text(encoding="utf-8"))
    except (VerificationError, OSError, UnicodeError) as error:
        raise VerificationError(f"not checked, since the key {file} cannot be read: {error}") from error


def _remembered(state: Path | None) -> int:
    if state is None or not state.exists():
        return 0
    text = state.read_text(encoding="utf-8", errors="replace").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise VerificationError(f"{state} holds no number of a release: it is damaged")
    return int(text)


def _unpack(files: Mapping[str, bytes], into: Path) -> None:
    """Write files that were checked: their paths are signed, and those of no archive lead elsewhere."""
    if into.exists():
        raise VerificationError(f"{into} is there already: name a new folder, and move it into place")
    partial = into.with_name(f".{into.name}.partial-{os.getpid()}")
    for name, content in files.items():
        path = partial / name
        if ".." in path.parts or not path.is_relative_to(partial):
            raise VerificationError(f"{name!r} leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    partial.replace(into)


if __name__ == "__main__":
    sys.exit(main())
