"""``stillhouse keys``, ``sign`` and ``verify-model``, as a person who runs an agent on two machines and a device."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from stillhouse import config
from stillhouse.cli import app
from stillhouse.errors import ConfigError, SignatureError
from stillhouse.runtime.archive import pack
from stillhouse.runtime.champions import Champions
from tests.runtime.conftest import World
from tests.test_signing import PUBLIC

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in this process; what it raises is what `main` tells without a traceback."""

    def run(*arguments: str, home: str = "refresher", fails: type[Exception] | None = None) -> Result:
        if home:
            monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / home))
        result = CliRunner().invoke(app, arguments)
        if fails is None:
            assert result.exit_code == 0, (result.output, result.exception)
        else:
            assert isinstance(result.exception, fails), (result.output, result.exception)
        return result

    return run


@pytest.fixture
def own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STILLHOUSE_SIGNING_KEY", "STILLHOUSE_TRUSTED_KEYS"):
        monkeypatch.delenv(name)


def ids(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "keys" / "trusted").glob("*.pub")}


@pytest.mark.usefixtures("own_keys")
def test_a_key_is_made_given_away_and_replaced(command: Command, tmp_path: Path) -> None:
    assert "no key signs here yet" in command("keys", "show").output
    command("keys", "rotate", fails=ConfigError)
    following = command("keys", "new").output.split()[1]  # and the first one, if there was none
    (old,) = ids(tmp_path / "refresher") - {following}
    assert old in command("keys", "show").output
    for name in (old, following):
        command("keys", "trust", str(tmp_path / "refresher" / "keys" / "trusted" / f"{name}.pub"), home="server")
    assert ids(tmp_path / "server") == {old, following}
    assert f"key {following} signs here from now on" in command("keys", "rotate").output
    for home in ("refresher", "server"):
        command("keys", "distrust", old, home=home)
        assert ids(tmp_path / home) == {following}
    command("keys", "distrust", following, fails=ConfigError)
    (tmp_path / "none.pub").write_text("nothing")
    command("keys", "trust", str(tmp_path / "none.pub"), fails=ConfigError)
    command("keys", "trust", str(tmp_path / "not there"), fails=ConfigError)


def test_a_device_pulls_verifies_and_refuses(champion: World, command: Command, tmp_path: Path) -> None:
    champions = Champions(config.load("flights"))
    pointer = champions.follow(champion.registry)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack(champions.files(pointer), pointer.version).content)
    (tmp_path / "flights.pub").write_text(os.environ["STILLHOUSE_TRUSTED_KEYS"])
    (tmp_path / "other.pub").write_text(PUBLIC)
    given = ("verify-model", str(archive), "--agent", "flights", "--state", str(tmp_path / "last"))

    shown = command(*given, "--key", str(tmp_path / "flights.pub"), "--into", str(tmp_path / "device"))
    assert "flights@1 (release 1) is as it was signed" in shown.output
    command("verify-model", str(tmp_path / "device"), "--agent", "flights")  # with the keys of the home
    for more in (("--key", str(tmp_path / "other.pub")), ("--version", "2"), ("--agent", "router")):
        command(*given, *more, fails=SignatureError)
    (tmp_path / "last").write_text("2")
    told = command(*given, fails=SignatureError)
    assert "withdrawn" in str(told.exception)
    command("verify-model", str(archive), fails=ConfigError)
    command("verify-model", str(tmp_path / "not there"), "--agent", "flights", fails=ConfigError)


def test_a_version_in_mlflow_is_verified_as_a_whole(champion: World, command: Command, tmp_path: Path) -> None:
    into = tmp_path / "checked"
    shown = command("verify-model", "models:/flights@champion", "--into", str(into), home="")
    assert "flights@1 is as it was signed" in shown.output and (into / "MLmodel").is_file()
    command("verify-model", "models:/flights@champion", "--into", str(into), home="", fails=ConfigError)
    command("verify-model", "models:/flights-student/2", "--agent", "flights", home="")
    champion.registry.client.set_registered_model_alias("flights", "champion", "2")
    told = command("verify-model", "models:/flights@champion", home="", fails=SignatureError)
    assert "no signed release names it" in str(told.exception)
    shutil.rmtree(champion.home / "models", ignore_errors=True)


def test_all_is_signed_again(champion: World, command: Command) -> None:
    assert "signatures of models of flights are by key" in command("sign", "flights", home="").output
