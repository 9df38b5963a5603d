"""``stillhouse keys``, ``sign`` and ``verify-model``, with an agent on two machines and a device."""

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
from stillhouse.runtime.champions import Champions
from stillhouse.serving.archive import pack
from tests.runtime.conftest import Installation
from tests.test_signing import PUBLIC

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in this process; it raises the errors that `main` prints without a traceback."""

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


def trusted_ids(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "keys" / "trusted").glob("*.pub")}


@pytest.mark.usefixtures("own_keys")
def test_a_key_is_made_distributed_and_rotated(command: Command, tmp_path: Path) -> None:
    assert "no key signs here yet" in command("keys", "show").output
    command("keys", "rotate", fails=ConfigError)
    new = command("keys", "new").output.split()[1]  # makes a first key too, if there is none
    (old,) = trusted_ids(tmp_path / "refresher") - {new}
    assert old in command("keys", "show").output
    for name in (old, new):
        command("keys", "trust", str(tmp_path / "refresher" / "keys" / "trusted" / f"{name}.pub"), home="server")
    assert trusted_ids(tmp_path / "server") == {old, new}
    assert f"key {new} signs here from now on" in command("keys", "rotate").output
    for home in ("refresher", "server"):
        command("keys", "distrust", old, home=home)
        assert trusted_ids(tmp_path / home) == {new}
    command("keys", "distrust", new, fails=ConfigError)
    (tmp_path / "none.pub").write_text("nothing")
    command("keys", "trust", str(tmp_path / "none.pub"), fails=ConfigError)
    command("keys", "trust", str(tmp_path / "not there"), fails=ConfigError)


def test_a_device_verifies_a_model(promoted: Installation, command: Command, tmp_path: Path) -> None:
    champions = Champions(config.load("flights"))
    pointer = champions.follow(promoted.registry)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(pack(champions.read_files(pointer), pointer.version).content)
    (tmp_path / "flights.pub").write_text(os.environ["STILLHOUSE_TRUSTED_KEYS"])
    (tmp_path / "other.pub").write_text(PUBLIC)
    verify = ("verify-model", str(archive), "--agent", "flights", "--state", str(tmp_path / "last"))

    result = command(*verify, "--key", str(tmp_path / "flights.pub"), "--into", str(tmp_path / "device"))
    assert "flights@1 (release 1) is as it was signed" in result.output
    command("verify-model", str(tmp_path / "device"), "--agent", "flights")  # with the trusted keys of STILLHOUSE_HOME
    for options in (("--key", str(tmp_path / "other.pub")), ("--version", "2"), ("--agent", "router")):
        command(*verify, *options, fails=SignatureError)
    (tmp_path / "last").write_text("2")
    result = command(*verify, fails=SignatureError)
    assert "withdrawn" in str(result.exception)
    command("verify-model", str(archive), fails=ConfigError)
    command("verify-model", str(tmp_path / "not there"), "--agent", "flights", fails=ConfigError)


def test_a_version_in_mlflow_is_verified(promoted: Installation, command: Command, tmp_path: Path) -> None:
    into = tmp_path / "checked"
    result = command("verify-model", "models:/flights@champion", "--into", str(into), home="")
    assert "flights@1 is as it was signed" in result.output and (into / "MLmodel").is_file()
    command("verify-model", "models:/flights@champion", "--into", str(into), home="", fails=ConfigError)
    command("verify-model", "models:/flights-student/2", "--agent", "flights", home="")
    promoted.registry.client.set_registered_model_alias("flights", "champion", "2")
    result = command("verify-model", "models:/flights@champion", home="", fails=SignatureError)
    assert "no signed release names it" in str(result.exception)
    shutil.rmtree(promoted.home / "models", ignore_errors=True)


def test_sign_signs_all_models_again(promoted: Installation, command: Command) -> None:
    assert "signatures of models of flights are by key" in command("sign", "flights", home="").output
