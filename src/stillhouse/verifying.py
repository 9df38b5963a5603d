"""Verify that a model is the one that a refresh has signed. Requires only the cryptography package.

This file is self-contained, so that it can be installed on devices once, together with a public key. It must never come
from the same source as the models. ::

    python verifying.py champion.tar.gz --key flights.pub --agent flights --state last-release --into model/

or, in a program::

    keys = read_keys(Path("flights.pub").read_text())
    release = check_folder("model", keys, agent="flights", at_least=last_number)

Two statements are signed, each a JSON text in an envelope with its signature (Ed25519, RFC 8032): the *model* (agent,
name, version, SHA-256 of every file) and the *release* (agent, version, release number). The number grows with each
promotion and roll-back of an agent, so a device that stores the last number detects a withdrawn version. No part of a
model is imported or parsed before its signature and its files are verified.

This module must not import stillhouse.
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
    "MODEL",
    "RELEASE",
    "SIGNATURE_FILE",
    "SIGNATURE_PREFIX",
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

SIGNATURE_PREFIX = b"stillhouse signature 1\n"
"""Prefix of every signed statement, so that a signature made for another purpose with this key never verifies here."""

MODEL, RELEASE = "stillhouse model", "stillhouse release"

SIGNATURE_FILE = "signature.json"
"""File next to a distributed model with its two envelopes, ``{"model": …, "release": …}``."""

_CHUNK_BYTES = 2**20
_MAX_BYTES = 2**30
_MAX_FILES = 10_000

Keys = Mapping[str, Ed25519PublicKey]
"""Trusted public keys by :func:`key_id`."""


class VerificationError(ValueError):
    """The model is not signed by a trusted key, is signed as another model, or was withdrawn."""


class FilesDiffer(VerificationError):  # noqa: N818 - names the state of the files
    """The files differ from the signed ones: damaged, altered, missing, or additional."""


@dataclass(frozen=True)
class Model:
    """The signed statement about a model."""

    agent: str
    name: str
    """Registered model: the agent's name (variants), with the suffix ``-student`` or ``-teacher`` for those."""
    version: str | None
    """Version of the registered model; None for a logged model that is no version yet."""
    model_id: str
    """Id of the logged model in MLflow."""
    role: str
    payload: str
    """The folder among ``files`` that is distributed."""
    files: Mapping[str, str]
    """SHA-256 by path of every file of the model in MLflow."""
    lineage: Mapping[str, str]
    """MLflow's ids of its ancestors, by role."""

    def below(self, folder: str) -> dict[str, str]:
        """SHA-256 by path of the files below ``folder``; the paths are relative to it."""
        prefix = f"{folder}/"
        return {path[len(prefix) :]: digest for path, digest in self.files.items() if path.startswith(prefix)}

    @property
    def handed_out(self) -> dict[str, str]:
        """SHA-256 by path of the distributed files."""
        return self.below(self.payload)


@dataclass(frozen=True)
class Release:
    """The statement that is signed when a version becomes champion, by promotion or by roll-back."""

    agent: str
    version: str
    number: int
    """Increases by one with each release of the agent."""
    released_at: str
    """ISO 8601."""


class Verified(NamedTuple):
    """The statements about a model that passed verification."""

    model: Model
    release: Release


# --------------------------------------------------------------------------- keys


def read_keys(pem: str) -> dict[str, Ed25519PublicKey]:
    """The public keys in a text of PEM blocks, by :func:`key_id`.

    :raises VerificationError: if there is none, or one of them is no Ed25519 public key.
    """
    end = "-----END PUBLIC KEY-----"
    blocks = [f"{block}{end}\n" for block in pem.split(end)[:-1]]
    if not blocks:
        raise VerificationError("there is no public key (PEM, -----BEGIN PUBLIC KEY-----) in it")
    keys = {}
    for block in blocks:
        try:
            key = load_pem_public_key(block[block.find("-----BEGIN") :].encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise VerificationError("a public key in it cannot be read: it is no PEM of an Ed25519 key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise VerificationError(f"a public key in it is of another kind than Ed25519: {type(key).__name__}")
        keys[key_id(key)] = key
    return keys


def key_id(key: Ed25519PublicKey) -> str:
    """16 hexadecimal digits that name a public key; a short name without security value."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


# --------------------------------------------------------------------------- statements


def read_model(envelope: str, keys: Keys) -> Model:
    """Verify the envelope of a model and return its statement.

    :raises VerificationError: if no trusted key has signed it, or it is no statement about a model.
    """
    statement = _read_statement(envelope, keys, MODEL)
    try:
        version = statement["version"]
        return Model(
            agent=_text(statement["agent"]),
            name=_text(statement["name"]),
            version=None if version is None else _text(version),
            model_id=_text(statement["model_id"]),
            role=_text(statement["role"]),
            payload=_text(statement["payload"]),
            files=_texts(statement["files"]),
            lineage=_texts(statement["lineage"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"the signed statement about the model is incomplete: {error}") from error


def read_release(envelope: str, keys: Keys) -> Release:
    """Verify the envelope of a release and return its statement; raises as :func:`read_model`."""
    statement = _read_statement(envelope, keys, RELEASE)
    try:
        number = statement["number"]
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise TypeError(f"number {number!r}")
        return Release(_text(statement["agent"]), _text(statement["version"]), number, _text(statement["released_at"]))
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"the signed statement about the release is incomplete: {error}") from error


def _read_statement(envelope: str, keys: Keys, kind: str) -> dict[str, Any]:
    """The statement in the envelope, which is parsed only after its signature is verified."""
    try:
        outer = json.loads(envelope)
        text, name, signature = outer["statement"], outer["key"], base64.b64decode(outer["signature"], validate=True)
        message = SIGNATURE_PREFIX + text.encode()
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
    statement = json.loads(text)
    if not isinstance(statement, dict) or statement.get("type") != kind:
        raise VerificationError(f"the signed text is no statement about a {kind.rpartition(' ')[2]}")
    return statement


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {_text(name): _text(item) for name, item in dict(value).items()}


# --------------------------------------------------------------------------- files


def digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a folder by its relative path (with ``/``), sorted.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     size = Path(folder, "model.onnx").write_bytes(b"weights")
    ...     files = digests(folder)
    ...     check_files(folder, files)  # raises FilesDiffer if a file differs
    >>> list(files)
    ['model.onnx']

    :raises FilesDiffer: if an entry is no plain file; the target of a link may change.
    """
    return {name: _digest(path) for name, path in _walk(Path(folder))}


def check_files(folder: str | Path, files: Mapping[str, str]) -> None:
    """Check that a folder holds exactly these files.

    :param files: SHA-256 by path.
    :raises FilesDiffer: naming missing, additional and altered files.
    """
    _compare(digests(folder), files)


def read_files(folder: str | Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """Check the files as :func:`check_files` does; returns the checked content by path."""
    contents = {name: path.read_bytes() for name, path in _walk(Path(folder))}
    _compare({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}, files)
    return contents


def _compare(actual: Mapping[str, str], signed: Mapping[str, str]) -> None:
    differences = [
        ("others than were signed", [name for name, digest in signed.items() if actual.get(name, digest) != digest]),
        ("missing", [name for name in signed if name not in actual]),
        ("not signed", [name for name in actual if name not in signed]),
    ]
    messages = [f"{kind}: {', '.join(map(repr, sorted(names)[:5]))}" for kind, names in differences if names]
    if messages or not signed:
        raise FilesDiffer("; ".join(messages) or "no file of it was signed")


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        for name in sorted([*names, *(child for child in folders if Path(parent, child).is_symlink())]):
            path = Path(parent, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise FilesDiffer(f"{name!r} is no plain file, and only those are signed")
            yield path.relative_to(folder).as_posix(), path


def _raise(error: OSError) -> None:
    raise error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


# --------------------------------------------------------------------------- distributed models


def check_folder(
    folder: str | Path, keys: Keys, *, agent: str, at_least: int = 0, version: str | None = None
) -> Verified:
    """Verify an unpacked model before any use.

    :param agent: expected agent.
    :param at_least: number of the newest release seen so far; an older release was withdrawn.
    :param version: expected version; None: any.
    :raises VerificationError: with the reason, if the model must not be used.
    """
    paths = {name: path for name, path in _walk(Path(folder)) if name != SIGNATURE_FILE}
    verified = _read_envelopes(Path(folder, SIGNATURE_FILE), keys, agent, at_least, version)
    _compare({name: _digest(path) for name, path in paths.items()}, verified.model.handed_out)
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
    """Verify a model in a ``.tar.gz`` in memory, without writing unverified files to disk; see :func:`check_folder`.

    :param max_bytes: limit of the unpacked size; a larger archive is refused before it is unpacked in memory.
    :returns: the statements, and the content of all files by path, including the signature.
    """
    files = dict(_members(Path(archive), max_bytes))
    signature = files.get(SIGNATURE_FILE)
    verified = _read_envelopes(None if signature is None else io.BytesIO(signature), keys, agent, at_least, version)
    actual = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != SIGNATURE_FILE}
    _compare(actual, verified.model.handed_out)
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
    return cast(IO[bytes], _Limited(stream, max_bytes))  # tarfile only calls read()


class _Limited(io.RawIOBase):
    """Limits the unpacked bytes, including names and headers of any length, so an archive cannot exhaust memory."""

    def __init__(self, source: gzip.GzipFile, max_bytes: int) -> None:
        self._source, self._max_bytes, self._remaining = source, max_bytes, max_bytes + tarfile.RECORDSIZE

    def read(self, size: int = -1) -> bytes:
        content = self._source.read(size)
        self._remaining -= len(content)
        if self._remaining < 0:
            raise VerificationError(f"it unpacks to more than {self._max_bytes:,} bytes")
        return content


def _read_envelopes(
    source: Path | io.BytesIO | None, keys: Keys, agent: str, at_least: int, version: str | None
) -> Verified:
    try:
        text = source.read_bytes() if isinstance(source, Path) else b"" if source is None else source.read()
        envelopes = json.loads(text)
        model, release = _text(envelopes["model"]), _text(envelopes["release"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise VerificationError(f"there is no readable {SIGNATURE_FILE}: it is not signed") from error
    return check_release(read_model(model, keys), read_release(release, keys), agent, at_least, version)


def check_release(
    model: Model, release: Release, agent: str, at_least: int = 0, version: str | None = None
) -> Verified:
    """Check that a model is a version of this agent, is the released version, and was not withdrawn.

    :raises VerificationError: if one of these does not hold.
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


# --------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """``python verifying.py``: returns 0 if the model may be used, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="verifying.py", description="Verify the signature of a model before it is used."
    )
    parser.add_argument("model", type=Path, help="a folder, or a .tar.gz as GET …/model gives it")
    parser.add_argument(
        "--key", type=Path, action="append", required=True, help="a trusted public key, PEM; repeatable"
    )
    parser.add_argument("--agent", required=True, help="expected agent")
    parser.add_argument("--state", type=Path, help="file that stores the number of the newest release")
    parser.add_argument("--into", type=Path, help="new folder for the files of a verified archive")
    options = parser.parse_args(arguments)
    try:
        keys = {name: key for file in options.key for name, key in _keys_in(file).items()}
        verified = verify(options.model, keys, agent=options.agent, state=options.state, into=options.into)
    except (VerificationError, OSError) as error:
        print(f"{options.model}: {error}", file=sys.stderr)
        return 1
    print(f"{options.agent}@{verified.model.version} (release {verified.release.number}) is as it was signed")
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
    """Verify a folder or an archive, unpack an archive into a new folder, and store the release number.

    :param state: file with the number of the newest release seen so far.
    :param into: new folder for the files of an archive.
    :raises VerificationError: if the model must not be used; then nothing is written.
    """
    at_least = _read_state(state)
    if source.is_dir():
        if into is not None:
            raise VerificationError("a folder is unpacked already: omit the target folder")
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


def _read_state(state: Path | None) -> int:
    if state is None or not state.exists():
        return 0
    text = state.read_text(encoding="utf-8", errors="replace").strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise VerificationError(f"{state} holds no number of a release: it is damaged")
    return int(text)


def _unpack(files: Mapping[str, bytes], into: Path) -> None:
    """Write verified files. Their paths are signed; a path that leads out of the folder is refused all the same."""
    if into.exists():
        raise VerificationError(f"{into} exists already: name a new folder, and move it into place")
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
