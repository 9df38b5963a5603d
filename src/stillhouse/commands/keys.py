"""``stillhouse keys``, ``sign``, ``verify-model``: who signs, who is trusted, whether a model is what was signed."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from stillhouse.errors import ConfigError, RegistryError, SignatureError

if TYPE_CHECKING:
    from stillhouse.verifying import Keys

__all__ = ["keys", "sign", "verify_model"]

console = Console()

keys = typer.Typer(no_args_is_help=True, help="The keys that models are signed with, and those that are trusted here.")


@keys.command()
def show() -> None:
    """The key that signs here, and the keys that are trusted here."""
    from stillhouse import signing

    signs, trusted = signing.signing_key_id(), signing.trusted_keys()
    table = Table("key", "trusted here", "signs here", box=None)
    for name in sorted({*trusted, *([signs] if signs else [])}):
        table.add_row(name, "yes" if name in trusted else "no", "yes" if name == signs else "no")
    console.print(table)
    print(f"public keys: {signing.trusted_keys_location()}")
    if signs is None:
        print("no key signs here yet: the first refresh makes one, where no other key is trusted")


@keys.command()
def trust(file: Annotated[Path, typer.Argument(help="one or more public keys, PEM")]) -> None:
    """Trust public keys in this home: models that they have signed may be used here."""
    from stillhouse import signing

    for name in signing.trust(_text(file), str(file)):
        print(f"key {name} is trusted here")


@keys.command()
def distrust(
    name: Annotated[str, typer.Argument(metavar="KEY", help="its id, as `stillhouse keys show` has it")],
) -> None:
    """Trust a key in this home no longer: what it has signed cannot be used here any more."""
    from stillhouse import signing

    signing.distrust(name)
    print(f"key {name} is trusted here no longer")


@keys.command()
def new() -> None:
    """Make the key that is to sign next, so that its public key can be given to all who verify before it signs."""
    from stillhouse import signing

    name = signing.make_next_key()
    print(
        f"key {name} is trusted here and does not sign yet. Give {signing.trusted_keys_location()}/{name}.pub to every "
        "machine and device that verifies, then: stillhouse keys rotate"
    )


@keys.command()
def rotate() -> None:
    """Let the next key sign from now on; the private key of before is deleted."""
    from stillhouse import signing

    before, after = signing.adopt_next_key()
    print(
        f"key {after} signs here from now on. Then, for each agent: stillhouse sign AGENT; and once every machine "
        f"has followed: stillhouse keys distrust {before}"
    )


def sign(agent: Annotated[str, typer.Argument(help="name of an agent file in agents/, such as flights")]) -> None:
    """Sign again, with the key that signs here, all of an agent's models that a trusted key has signed."""
    from stillhouse import config, signing
    from stillhouse.registry import Registry

    config.load(agent)
    count = Registry(agent).sign_again()
    print(f"{count} signatures of models of {agent} are by key {signing.signing_key_id()} now")


def verify_model(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="a folder or .tar.gz of GET …/model, or models:/…")],
    key: Annotated[
        list[Path] | None, typer.Option(help="a public key to trust, repeatable; default: those of this home")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="whose model it has to be; default: the name in models:/…")] = None,
    version: Annotated[str | None, typer.Option(help="that it has to be")] = None,
    state: Annotated[Path | None, typer.Option(help="file that keeps the number of the newest release")] = None,
    into: Annotated[Path | None, typer.Option(help="new folder for the files, once they were checked")] = None,
) -> None:
    """Check that a model is what a trusted key has signed, file by file, before anything of it is used.

    With models:/… all files are checked that MLflow keeps; mlflow.pyfunc.load_model then takes the folder of --into.
    """
    from stillhouse import signing
    from stillhouse.verifying import VerificationError, verify

    trusted = signing.trusted_keys() if key is None else _keys_of(key)
    found = re.fullmatch(r"models:/+([^/@]+)[/@](.+)", source)
    if found is not None:
        if key is not None or state is not None or version is not None:
            raise ConfigError(
                "--key, --state and --version are for a folder or an archive; models:/… names a version, "
                "and is checked with the keys of this home"
            )
        _verify_registered(agent or found[1], found[1], found[2], into)
        return
    if agent is None:
        raise ConfigError("--agent says whose model it has to be, such as --agent flights")
    if not Path(source).exists():
        raise ConfigError(f"{source}: there is no such folder or archive")
    try:
        checked = verify(Path(source), trusted, agent=agent, state=state, into=into, version=version)
    except (VerificationError, OSError) as error:
        raise SignatureError(f"{source} must not be used: {error}") from error
    print(f"{agent}@{checked.model.version} (release {checked.release.number}) is as it was signed")


def _verify_registered(agent: str, name: str, alias_or_version: str, into: Path | None) -> None:
    """A version in MLflow, all of its files; as champion, that it was released, too."""
    from stillhouse import signing
    from stillhouse.registry import Registry

    if into is not None and into.exists():
        raise ConfigError(f"--into {into} is there already: name a new folder")
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


def _keys_of(files: list[Path]) -> Keys:
    from stillhouse.verifying import VerificationError, read_keys

    found = {}
    for file in files:
        try:
            found.update(read_keys(_text(file)))
        except VerificationError as error:
            raise ConfigError(f"--key {file}: {error}") from error
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
