"""Keys and signatures: what a refresh releases is signed, and whoever uses a model checks that it was.

``STILLHOUSE_HOME/keys/`` holds ``signing.key`` (private, mode 0600, made at first use) and ``trusted/<id>.pub``. The
private key may come from a secret instead (``STILLHOUSE_SIGNING_KEY`` or ``STILLHOUSE_SIGNING_KEY_FILE``), the trusted
keys from elsewhere (``STILLHOUSE_TRUSTED_KEYS``). A private key is needed where models are registered, promoted and
rolled back, and nowhere else. It is never logged, and never goes to MLflow.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from filelock import FileLock

from stillhouse.config import home
from stillhouse.errors import ConfigError, SignatureError
from stillhouse.files import write_atomic
from stillhouse.verifying import (
    CONTEXT,
    MODEL,
    RELEASE,
    Keys,
    Model,
    Release,
    VerificationError,
    check_release,
    key_id,
    read_keys,
    read_model,
    read_release,
)

__all__ = [
    "Signer",
    "adopt_next_key",
    "claimed_number",
    "distrust",
    "make_next_key",
    "model_statement",
    "release_statement",
    "signed_model",
    "signed_release",
    "signer",
    "signing_key_id",
    "trust",
    "trusted_keys",
    "trusted_place",
    "verified",
]

_KEY, _KEY_FILE, _TRUSTED = "STILLHOUSE_SIGNING_KEY", "STILLHOUSE_SIGNING_KEY_FILE", "STILLHOUSE_TRUSTED_KEYS"

_LARGEST_CLAIM = 10**15
"""A number that nobody trusted has signed may not lead numbers out of what every reader can hold."""

_Statement = TypeVar("_Statement", Model, Release)


# --------------------------------------------------------------------------- statements


def model_statement(model: Model) -> str:
    """What is signed about a model."""
    return _text(
        {
            "type": MODEL,
            "agent": model.agent,
            "name": model.name,
            "version": model.version,
            "model_id": model.model_id,
            "role": model.role,
            "payload": model.payload,
            "files": dict(model.files),
            "lineage": dict(model.lineage),
        }
    )


def release_statement(agent: str, version: str, number: int) -> str:
    """What is signed when a version becomes champion.

    :param number: greater than those of all releases of the agent before.
    """
    released_at = datetime.now(UTC).isoformat(timespec="seconds")
    return _text({"type": RELEASE, "agent": agent, "version": version, "number": number, "released_at": released_at})


def claimed_number(envelope: str) -> int:
    """The number of a release, whoever has signed it, as far as it may be one; else 0."""
    try:
        number = json.loads(json.loads(envelope)["statement"])["number"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return number if type(number) is int and 0 < number <= _LARGEST_CLAIM else 0


def _text(statement: Mapping[str, Any]) -> str:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"))


# --------------------------------------------------------------------------- signing


class Signer:
    """Signs with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    def sign(self, statement: str) -> str:
        """The statement in an envelope with its signature; the same bytes each time."""
        signature = base64.b64encode(self._key.sign(CONTEXT + statement.encode())).decode()
        return json.dumps({"statement": statement, "key": self.key_id, "signature": signature})

    def sign_again(self, envelope: str) -> str:
        """The same statement under this key.

        :raises SignatureError: if no trusted key has signed it.
        """
        keys = trusted_keys()
        try:
            statement: str = json.loads(envelope)["statement"]
            reader: Callable[[str, Keys], Model | Release] = (
                read_release if json.loads(statement).get("type") == RELEASE else read_model
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SignatureError("a signature cannot be read: it is damaged") from error
        try:
            reader(envelope, keys)
        except VerificationError as error:
            raise SignatureError(str(error)) from error
        return self.sign(statement)


def signer() -> Signer:
    """With the private key of this machine, which is made at first use.

    The first key of a home is trusted there. A key that is not trusted where it signs is refused, since nobody there
    could use what it signs.

    :raises ConfigError: if the key cannot be read, or others may read its file.
    :raises SignatureError: if it is not trusted here, or there is none and others' keys are trusted here.
    """
    key = _secret()
    if key is None:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(_folder() / "signing.lock"):
            key = _kept_key(_key_file()) or _first_key()
            _trust_if_first(key)
    else:
        _trust_if_first(key)
    found = Signer(key)
    if found.key_id not in trusted_keys():
        raise SignatureError(
            f"the signing key {found.key_id} is not trusted here, so nobody here could use what it signs: "
            f"`stillhouse keys trust FILE` with its public key, or correct {_TRUSTED}"
        )
    return found


def signing_key_id() -> str | None:
    """Of the key that signs here; None where there is none (yet).

    :raises ConfigError: as :func:`signer`.
    """
    key = _secret() or _kept_key(_key_file())
    return None if key is None else key_id(key.public_key())


def _secret() -> Ed25519PrivateKey | None:
    """The key from the environment."""
    text, file = os.environ.get(_KEY), os.environ.get(_KEY_FILE)
    if text is not None:
        return _private_key(text, _KEY)
    if file is None:
        return None
    try:
        return _private_key(Path(file).read_text(encoding="utf-8"), f"{_KEY_FILE} ({file})")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_KEY_FILE} names {file!r}, which cannot be read: {type(error).__name__}") from None


def _kept_key(file: Path) -> Ed25519PrivateKey | None:
    """The key in a file of the home; None where there is none."""
    try:
        if os.name == "posix" and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            raise ConfigError(
                f"{file} is a private key that others may read (mode {mode:o}): chmod 600 {file}, and change it if it "
                "may have been read (docs/how-to/sign-models.md)"
            )
        return _private_key(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}") from None


def _private_key(pem: str, where: str) -> Ed25519PrivateKey:
    """Nothing of the text goes into an error: it is a secret."""
    key: object = None
    with suppress(Exception):  # whatever OpenSSL has to say about it
        key = load_pem_private_key(pem.strip().encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{where} holds no Ed25519 private key in PEM without a password; make one with: "
            "openssl genpkey -algorithm ed25519"
        )
    return key


def _first_key() -> Ed25519PrivateKey:
    """Make the home's key; with the lock held."""
    if _TRUSTED in os.environ or any(_trusted_folder().glob("*.pub")):
        raise SignatureError(
            f"there is no signing key here ({_key_file()}), and others' keys are trusted here: refresh, promote and "
            f"roll back where that key is, or give it in {_KEY_FILE}"
        )
    key = Ed25519PrivateKey.generate()
    _write_key(_key_file(), key)
    return key


def _write_key(file: Path, key: Ed25519PrivateKey) -> None:
    """At once, and for nobody else to read, at no moment."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(file, pem, durable=True, mode=0o600)


def _trust_if_first(key: Ed25519PrivateKey) -> None:
    if _TRUSTED not in os.environ and not any(_trusted_folder().glob("*.pub")):
        trust(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


# --------------------------------------------------------------------------- trusting


def trusted_keys() -> Keys:
    """The public keys that are trusted here: those that ``STILLHOUSE_TRUSTED_KEYS`` names, else those of the home.

    :raises ConfigError: if one cannot be read, or the variable is set and names none.
    """
    found = {name: key for where, pem in _trusted_texts() for name, key in _public_keys(pem, where).items()}
    if not found and _TRUSTED in os.environ:
        raise ConfigError(
            f"{_TRUSTED} is set and names no key: files or folders of public keys, separated by {os.pathsep!r}, or PEM"
        )
    return found


def trusted_place() -> str:
    """Where the trusted keys are."""
    return str(_trusted_folder()) if _TRUSTED not in os.environ else f"as {_TRUSTED} says"


def trust(pem: str, where: str = "the file") -> list[str]:
    """Trust public keys in this home from now on; returns their ids.

    :param where: they come from, for messages.
    :raises ConfigError: if they cannot be read.
    """
    found = _public_keys(pem, where)
    folder = _trusted_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in found.items():
        write_atomic(folder / f"{name}.pub", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return list(found)


def distrust(name: str) -> None:
    """Trust a key of this home no longer.

    :raises ConfigError: if there is no such key, or it is the one that signs here.
    """
    known = {key: file for file in _trusted_folder().glob("*.pub") for key in _public_keys(_read(file), str(file))}
    if name not in known:
        raise ConfigError(f"no key {name!r} is trusted in {_trusted_folder()}; there are: {', '.join(known) or 'none'}")
    if name == signing_key_id():
        raise ConfigError(f"key {name} signs here: let another sign first (stillhouse keys new, then rotate)")
    known[name].unlink()


def _trusted_texts() -> Iterable[tuple[str, str]]:
    """Where public keys are, and what is there."""
    given = os.environ.get(_TRUSTED)
    if given is None:
        return [(str(file), _read(file)) for file in sorted(_trusted_folder().glob("*.pub"))]
    if "-----BEGIN" in given:
        return [(_TRUSTED, given)]
    found = []
    for part in filter(None, given.split(os.pathsep)):
        files = sorted(Path(part).glob("*.pub")) if Path(part).is_dir() else [Path(part)]
        found += [(str(file), _read(file)) for file in files]
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the public key {file} cannot be read: {error}") from error


def _public_keys(pem: str, where: str) -> Keys:
    try:
        return read_keys(pem)
    except VerificationError as error:
        raise ConfigError(f"{where}: {error}") from error


# --------------------------------------------------------------------------- rotation


def make_next_key() -> str:
    """Make the key that is to sign next, trusted here from now on; returns its id. Made once until it is adopted.

    :raises ConfigError: if keys come from the environment, or the key that signs cannot be read.
    """
    _require_own_keys()
    signer()  # there is one that signs now
    with FileLock(_folder() / "signing.lock"):
        key = _kept_key(_next_file())
        if key is None:
            key = Ed25519PrivateKey.generate()
            _write_key(_next_file(), key)
        trust(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
    return key_id(key.public_key())


def adopt_next_key() -> tuple[str, str]:
    """Let the next key sign from now on, and forget the private key of before; returns the ids of both.

    :raises ConfigError: if there is no next key.
    """
    _require_own_keys()
    with FileLock(_folder() / "signing.lock"):
        before, following = _kept_key(_key_file()), _kept_key(_next_file())
        if before is None or following is None:
            raise ConfigError("no next key was made here: stillhouse keys new")
        _next_file().replace(_key_file())
    return key_id(before.public_key()), key_id(following.public_key())


def _require_own_keys() -> None:
    if taken := [name for name in (_KEY, _KEY_FILE, _TRUSTED) if name in os.environ]:
        raise ConfigError(f"keys come from {', '.join(taken)}: they are changed there, not in this home")


# --------------------------------------------------------------------------- verifying


def signed_model(envelope: str | None, what: str) -> Model:
    """The statement about a model, checked; ``what`` names it in an error.

    :raises SignatureError: if no trusted key has signed it.
    """
    return _signed(read_model, envelope, what)


def signed_release(envelope: str | None, what: str) -> Release:
    """The statement about a release, checked; as :func:`signed_model`."""
    if not envelope:
        raise SignatureError(
            f"{what} cannot be used: no signed release names it, so it was not promoted by stillhouse (an alias that "
            "is moved in MLflow alone releases nothing): python -m flows promote"
        )
    return _signed(read_release, envelope, what)


def verified(model: Model, release: Release, agent: str, what: str, at_least: int = 0) -> None:
    """See that a model is this agent's, is what was released, and was not withdrawn.

    :param at_least: the number of the newest release that was seen here.
    :raises SignatureError: if not.
    """
    try:
        check_release(model, release, agent, at_least)
    except VerificationError as error:
        raise SignatureError(f"{what} cannot be used: {error}") from error


def _signed(read: Callable[[str, Keys], _Statement], envelope: str | None, what: str) -> _Statement:
    keys = trusted_keys()
    if not keys:
        raise SignatureError(
            f"{what} cannot be used: no key is trusted here. Copy STILLHOUSE_HOME/keys/trusted of the machine that "
            f"refreshes to {_trusted_folder()}, or name its files in {_TRUSTED} (docs/how-to/sign-models.md)"
        )
    if not envelope:
        raise SignatureError(
            f"{what} cannot be used: it is not signed. A refresh signs what it makes; what was made before models were "
            "signed has to be made again"
        )
    try:
        return read(envelope, keys)
    except VerificationError as error:
        raise SignatureError(f"{what} cannot be used: {error}") from error


# --------------------------------------------------------------------------- where they are


def _folder() -> Path:
    return home() / "keys"


def _key_file() -> Path:
    return _folder() / "signing.key"


def _next_file() -> Path:
    return _folder() / "next.key"


def _trusted_folder() -> Path:
    return _folder() / "trusted"
