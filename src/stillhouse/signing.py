"""Keys and signatures: a refresh signs the models that it releases, and every user of a model verifies it.

``STILLHOUSE_HOME/keys/`` holds ``signing.key`` (private, mode 0600, created at first use) and ``trusted/<id>.pub``. The
private key may come from a secret instead (``STILLHOUSE_SIGNING_KEY`` or ``STILLHOUSE_SIGNING_KEY_FILE``), the trusted
keys from other files (``STILLHOUSE_TRUSTED_KEYS``). Only registering, promoting and rolling back need the private key.
It is never logged and never sent to MLflow.

>>> import os
>>> from tempfile import TemporaryDirectory
>>> from unittest.mock import patch
>>> with TemporaryDirectory() as folder, patch.dict(os.environ, {"STILLHOUSE_HOME": folder}):
...     envelope = load_signer().sign(release_statement("flights", "7", number=1))
...     read_signed_release(envelope, "flights@7").version
'7'
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

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
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
    MODEL,
    RELEASE,
    SIGNATURE_PREFIX,
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
    "claimed_release_number",
    "distrust",
    "load_signer",
    "make_next_key",
    "model_statement",
    "read_signed_model",
    "read_signed_release",
    "release_statement",
    "require_released",
    "signing_key_id",
    "trust",
    "trusted_keys",
    "trusted_keys_location",
]

_KEY, _KEY_FILE, _TRUSTED = "STILLHOUSE_SIGNING_KEY", "STILLHOUSE_SIGNING_KEY_FILE", "STILLHOUSE_TRUSTED_KEYS"

_MAX_CLAIMED_NUMBER = 10**15
"""Limit for release numbers without a trusted signature, so that they cannot push new numbers out of every integer."""

_Statement = TypeVar("_Statement", Model, Release)


# --------------------------------------------------------------------------- statements


def model_statement(model: Model) -> str:
    """The statement about a model that is signed, as JSON."""
    return _to_json(
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
    """The statement that is signed when a version becomes champion, as JSON.

    :param number: greater than the numbers of all earlier releases of the agent.
    """
    released_at = datetime.now(UTC).isoformat(timespec="seconds")
    return _to_json({"type": RELEASE, "agent": agent, "version": version, "number": number, "released_at": released_at})


def claimed_release_number(envelope: str) -> int:
    """The number in a release envelope, whose signature is not verified; 0 if it holds no usable number."""
    try:
        number = json.loads(json.loads(envelope)["statement"])["number"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return number if type(number) is int and 0 < number <= _MAX_CLAIMED_NUMBER else 0


def _to_json(statement: Mapping[str, Any]) -> str:
    return json.dumps(statement, sort_keys=True, separators=(",", ":"))


# --------------------------------------------------------------------------- signing


class Signer:
    """Signs with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    def sign(self, statement: str) -> str:
        """The statement with its signature as an envelope (JSON). Deterministic: Ed25519 uses no random numbers."""
        signature = base64.b64encode(self._key.sign(SIGNATURE_PREFIX + statement.encode())).decode()
        return json.dumps({"statement": statement, "key": self.key_id, "signature": signature})

    def sign_again(self, envelope: str) -> str:
        """The statement of ``envelope``, signed with this key.

        :raises SignatureError: if no trusted key has signed it.
        """
        keys = trusted_keys()
        try:
            statement: str = json.loads(envelope)["statement"]
            read: Callable[[str, Keys], Model | Release] = (
                read_release if json.loads(statement).get("type") == RELEASE else read_model
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SignatureError("a signature cannot be read: it is damaged") from error
        try:
            read(envelope, keys)
        except VerificationError as error:
            raise SignatureError(str(error)) from error
        return self.sign(statement)


def load_signer() -> Signer:
    """A signer with the private key of this machine, which is created at first use.

    The first key of a home is trusted in that home. A key that is not trusted where it signs is refused, because its
    signatures could not be used there.

    :raises ConfigError: if the key cannot be read, or other users may read its file.
    :raises SignatureError: if the key is not trusted here, or there is no key but another key is trusted here.
    """
    key = _secret_key()
    if key is None:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(_folder() / "signing.lock"):
            key = _read_key(_key_file()) or _create_first_key()
            _trust_if_first(key)
    else:
        _trust_if_first(key)
    signer = Signer(key)
    if signer.key_id not in trusted_keys():
        raise SignatureError(
            f"the signing key {signer.key_id} is not trusted here, so nobody here could use its signatures: "
            f"`stillhouse keys trust FILE` with its public key, or correct {_TRUSTED}"
        )
    return signer


def signing_key_id() -> str | None:
    """The id of the key that signs here; None if there is none yet.

    :raises ConfigError: as :func:`load_signer`.
    """
    key = _secret_key() or _read_key(_key_file())
    return None if key is None else key_id(key.public_key())


def _secret_key() -> Ed25519PrivateKey | None:
    """The key from the environment."""
    text, file = os.environ.get(_KEY), os.environ.get(_KEY_FILE)
    if text is not None:
        return _parse_key(text, _KEY)
    if file is None:
        return None
    try:
        return _parse_key(Path(file).read_text(encoding="utf-8"), f"{_KEY_FILE} ({file})")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_KEY_FILE} names {file!r}, which cannot be read: {type(error).__name__}") from None


def _read_key(file: Path) -> Ed25519PrivateKey | None:
    """The private key in a file of the home; None if the file does not exist."""
    try:
        if os.name == "posix" and (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            raise ConfigError(
                f"{file} is a private key that others may read (mode {mode:o}): chmod 600 {file}, and replace the key "
                "if it may have been read (docs/how-to/sign-models.md)"
            )
        return _parse_key(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {type(error).__name__}") from None


def _parse_key(pem: str, source: str) -> Ed25519PrivateKey:
    """Parse a PEM text. It is a secret, so no part of it may go into an error."""
    key: object = None
    with suppress(Exception):  # OpenSSL's errors may quote the text
        key = load_pem_private_key(pem.strip().encode(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{source} holds no Ed25519 private key in PEM without a password; make one with: "
            "openssl genpkey -algorithm ed25519"
        )
    return key


def _create_first_key() -> Ed25519PrivateKey:
    """Create the home's key; the caller holds the lock."""
    if _TRUSTED in os.environ or any(_trusted_folder().glob("*.pub")):
        raise SignatureError(
            f"there is no signing key here ({_key_file()}), but others' keys are trusted here: refresh, promote and "
            f"roll back on the machine with that key, or set {_KEY_FILE} to its file"
        )
    key = Ed25519PrivateKey.generate()
    _write_key(_key_file(), key)
    return key


def _write_key(file: Path, key: Ed25519PrivateKey) -> None:
    """Write the file atomically, and readable by the owner only from the beginning."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(file, pem, durable=True, mode=0o600)


def _to_pem(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _trust_if_first(key: Ed25519PrivateKey) -> None:
    if _TRUSTED not in os.environ and not any(_trusted_folder().glob("*.pub")):
        trust(_to_pem(key.public_key()))


# --------------------------------------------------------------------------- trusting


def trusted_keys() -> Keys:
    """The trusted public keys by id: those in ``STILLHOUSE_TRUSTED_KEYS`` if it is set, otherwise those of the home.

    :raises ConfigError: if a key cannot be read, or the variable is set and names no key.
    """
    keys = {name: key for source, pem in _trusted_texts() for name, key in _public_keys(pem, source).items()}
    if not keys and _TRUSTED in os.environ:
        raise ConfigError(
            f"{_TRUSTED} is set and names no key: files or folders of public keys, separated by {os.pathsep!r}, or PEM"
        )
    return keys


def trusted_keys_location() -> str:
    """The location of the trusted keys, for messages."""
    return str(_trusted_folder()) if _TRUSTED not in os.environ else f"as {_TRUSTED} says"


def trust(pem: str, source: str = "the file") -> list[str]:
    """Trust public keys in this home; returns their ids.

    :param source: of the keys, for messages.
    :raises ConfigError: if they cannot be read.
    """
    keys = _public_keys(pem, source)
    folder = _trusted_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in keys.items():
        write_atomic(folder / f"{name}.pub", _to_pem(key).encode())
    return list(keys)


def distrust(name: str) -> None:
    """Remove a trusted key from this home.

    :param name: id of the key.
    :raises ConfigError: if it is not trusted here, or it is the key that signs here.
    """
    files = {key: file for file in _trusted_folder().glob("*.pub") for key in _public_keys(_read(file), str(file))}
    if name not in files:
        raise ConfigError(f"no key {name!r} is trusted in {_trusted_folder()}; there are: {', '.join(files) or 'none'}")
    if name == signing_key_id():
        raise ConfigError(f"key {name} signs here: let another key sign first (stillhouse keys new, then rotate)")
    files[name].unlink()


def _trusted_texts() -> Iterable[tuple[str, str]]:
    """Source and PEM text of the trusted keys."""
    value = os.environ.get(_TRUSTED)
    if value is None:
        return [(str(file), _read(file)) for file in sorted(_trusted_folder().glob("*.pub"))]
    if "-----BEGIN" in value:
        return [(_TRUSTED, value)]
    texts = []
    for part in filter(None, value.split(os.pathsep)):
        files = sorted(Path(part).glob("*.pub")) if Path(part).is_dir() else [Path(part)]
        texts += [(str(file), _read(file)) for file in files]
    return texts


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the public key {file} cannot be read: {error}") from error


def _public_keys(pem: str, source: str) -> Keys:
    try:
        return read_keys(pem)
    except VerificationError as error:
        raise ConfigError(f"{source}: {error}") from error


# --------------------------------------------------------------------------- rotation


def make_next_key() -> str:
    """Create and trust the key that will sign after :func:`adopt_next_key`; returns its id. A second call creates none.

    :raises ConfigError: if keys come from the environment, or the current key cannot be read.
    """
    _require_own_keys()
    load_signer()  # creates the current key if there is none
    with FileLock(_folder() / "signing.lock"):
        key = _read_key(_next_key_file())
        if key is None:
            key = Ed25519PrivateKey.generate()
            _write_key(_next_key_file(), key)
        trust(_to_pem(key.public_key()))
    return key_id(key.public_key())


def adopt_next_key() -> tuple[str, str]:
    """Replace the private key by the next key; returns the ids of the old and the new key.

    :raises ConfigError: if there is no next key.
    """
    _require_own_keys()
    with FileLock(_folder() / "signing.lock"):
        old, new = _read_key(_key_file()), _read_key(_next_key_file())
        if old is None or new is None:
            raise ConfigError("there is no next key here; create it first: stillhouse keys new")
        _next_key_file().replace(_key_file())
    return key_id(old.public_key()), key_id(new.public_key())


def _require_own_keys() -> None:
    if variables := [name for name in (_KEY, _KEY_FILE, _TRUSTED) if name in os.environ]:
        raise ConfigError(f"keys come from {', '.join(variables)}: change them there, not in this home")


# --------------------------------------------------------------------------- verifying


def read_signed_model(envelope: str | None, label: str) -> Model:
    """Verify the signature of a model and return its statement; ``label`` names the model in an error.

    :raises SignatureError: if no trusted key has signed it.
    """
    return _verify(read_model, envelope, label)


def read_signed_release(envelope: str | None, label: str) -> Release:
    """Verify the signature of a release and return its statement; as :func:`read_signed_model`."""
    if not envelope:
        raise SignatureError(
            f"{label} cannot be used: no signed release names it, so it was not promoted by stillhouse (moving an "
            "alias in MLflow releases nothing): python -m flows promote"
        )
    return _verify(read_release, envelope, label)


def require_released(model: Model, release: Release, agent: str, label: str, at_least: int = 0) -> None:
    """Raise unless the model belongs to this agent, is the released version, and was not withdrawn.

    :param at_least: number of the newest release that was seen here.
    :raises SignatureError: if one of these does not hold.
    """
    try:
        check_release(model, release, agent, at_least)
    except VerificationError as error:
        raise SignatureError(f"{label} cannot be used: {error}") from error


def _verify(read: Callable[[str, Keys], _Statement], envelope: str | None, label: str) -> _Statement:
    keys = trusted_keys()
    if not keys:
        raise SignatureError(
            f"{label} cannot be used: no key is trusted here. Copy STILLHOUSE_HOME/keys/trusted of the machine that "
            f"refreshes to {_trusted_folder()}, or name its files in {_TRUSTED} (docs/how-to/sign-models.md)"
        )
    if not envelope:
        raise SignatureError(
            f"{label} cannot be used: it is not signed. A refresh signs its models; a model from before models were "
            "signed has to be made again"
        )
    try:
        return read(envelope, keys)
    except VerificationError as error:
        raise SignatureError(f"{label} cannot be used: {error}") from error


# --------------------------------------------------------------------------- paths


def _folder() -> Path:
    return home() / "keys"


def _key_file() -> Path:
    return _folder() / "signing.key"


def _next_key_file() -> Path:
    return _folder() / "next.key"


def _trusted_folder() -> Path:
    return _folder() / "trusted"
