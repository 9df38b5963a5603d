"""``stillhouse keys``, ``sign`` and ``verify-model``: signing keys, trusted keys, and the check of a signed model."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.commands.arguments import AgentName
from stillhouse.errors import ConfigError, RegistryError, SignatureError

if TYPE_CHECKING:
    from stillhouse.verifying import Keys

__all__ = ["keys", "sign", "verify_model"]

console = Console()

keys = typer.Typer(no_args_is_help=True, help="Manage the keys that sign models, and the keys that are trusted here.")


@keys.command()
def show() -> None:
    """Show the key that signs here and the keys that are trusted here."""
    from stillhouse import signing

    signing_key, trusted = signing.signing_key_id(), signing.trusted_keys()
    table = Table("key", "trusted here", "signs here", box=None)
    for name in sorted({*trusted, *([signing_key] if signing_key else [])}):
        table.add_row(name, "yes" if name in trusted else "no", "yes" if name == signing_key else "no")
    console.print(table)
    print(f"public keys: {signing.trusted_keys_location()}")
    if signing_key is None:
        print("no key signs here yet: the first refresh makes one, where no other key is trusted")


@keys.command()
def trust(file: Annotated[Path, typer.Argument(help="PEM file with one or more public keys")]) -> None:
    """Trust public keys in this home, so that models that they signed may be used here."""
    from stillhouse import signing

    for name in signing.trust(_read_text(file), str(file)):
        print(f"key {name} is trusted here")


@keys.command()
def distrust(
    name: Annotated[str, typer.Argument(metavar="KEY", help="id of the key, as shown by `stillhouse keys show`")],
) -> None:
    """Stop trusting a key in this home; models that it signed cannot be used here any more."""
    from stillhouse import signing

    signing.distrust(name)
    print(f"key {name} is trusted here no longer")


@keys.command()
def new() -> None:
    """Make the next signing key, so that its public key can be distributed before it signs anything."""
    from stillhouse import signing

    name = signing.make_next_key()
    print(
        f"key {name} is trusted here and does not sign yet. Give {signing.trusted_keys_location()}/{name}.pub to every "
        "machine and device that verifies, then: stillhouse keys rotate"
    )


@keys.command()
def rotate() -> None:
    """Sign with the next key from now on, and delete the previous private key."""
    from stillhouse import signing

    before, after = signing.adopt_next_key()
    print(
        f"key {after} signs here from now on. Then, for each agent: stillhouse sign AGENT; and once every machine "
        f"has followed: stillhouse keys distrust {before}"
    )


def sign(agent: AgentName) -> None:
    """Re-sign, with the current key, every model of an agent that a trusted key has signed."""
    from stillhouse import config, signing
    from stillhouse.registry import Registry

    config.load(agent)
    count = Registry(agent).sign_again()
    print(f"{count} signatures of models of {agent} are by key {signing.signing_key_id()} now")


def verify_model(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="a folder or .tar.gz from GET …/model, or models:/…")],
    key: Annotated[
        list[Path] | None,
        typer.Option(help="a public key to trust, repeatable; default: the trusted keys of this home"),
    ] = None,
    agent: Annotated[
        str | None, typer.Option(help="agent that the model must belong to; default: the name in models:/…")
    ] = None,
    version: Annotated[str | None, typer.Option(help="version that the model must have")] = None,
    state: Annotated[Path | None, typer.Option(help="file that stores the number of the newest release")] = None,
    into: Annotated[Path | None, typer.Option(help="new folder for the checked files")] = None,
) -> None:
    """Check each file of a model against the signature of a trusted key, before the model is used.

    With models:/… all files that MLflow stores are checked; load the folder of --into with mlflow.pyfunc.load_model.
    """
    from stillhouse import signing
    from stillhouse.verifying import VerificationError, verify

    trusted = signing.trusted_keys() if key is None else _read_keys(key)
    match = re.fullmatch(r"models:/+([^/@]+)[/@](.+)", source)
    if match is not None:
        if key is not None or state is not None or version is not None:
            raise ConfigError(
                "--key, --state and --version are for a folder or an archive; models:/… names a version, "
                "and is checked with the keys of this home"
            )
        _verify_registered(agent or match[1], match[1], match[2], into)
        return
    if agent is None:
        raise ConfigError("--agent is required: the agent that the model must belong to, such as --agent flights")
    if not Path(source).exists():
        raise ConfigError(f"{source}: no such folder or archive")
    try:
        checked = verify(Path(source), trusted, agent=agent, state=state, into=into, version=version)
    except (VerificationError, OSError) as error:
        raise SignatureError(f"{source} must not be used: {error}") from error
    print(f"{agent}@{checked.model.version} (release {checked.release.number}) is as it was signed")


def _verify_registered(agent: str, name: str, alias_or_version: str, into: Path | None) -> None:
    """Check all files of a version in MLflow and, for the champion, its signed release."""
    from stillhouse import signing
    from stillhouse.registry import Registry

    if into is not None and into.exists():
        raise ConfigError(f"--into {into} exists already: name a new folder")
    registry = Registry(agent)
    ref = registry.version(name, alias_or_version)
    if ref is None:
        raise RegistryError(f"models:/{name} has no version or alias {alias_or_version!r}")
    model = registry.models.signed(ref)
    if name == agent and alias_or_version == "champion":
        release = signing.read_signed_release(registry.models.envelopes(ref)[1], str(ref))
        signing.require_released(model, release, agent, str(ref))
    with TemporaryDirectory() as folder:
        registry.models.fetch_whole(ref, into or Path(folder, "model"))
    print(f"{ref} is as it was signed: {len(model.files)} files" + (f" in {into}" if into else ""))


def _read_keys(files: list[Path]) -> Keys:
    from stillhouse.verifying import VerificationError, read_keys

    keys_by_id = {}
    for file in files:
        try:
            keys_by_id.update(read_keys(_read_text(file)))
        except VerificationError as error:
            raise ConfigError(f"--key {file}: {error}") from error
    return keys_by_id


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
