"""Keys are created at first use, trusted by their home, never shown, and replaced in order."""

from __future__ import annotations

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from stillhouse import signing, verifying
from stillhouse.errors import ConfigError, SignatureError
from stillhouse.signing import load_signer, read_signed_release, release_statement, trusted_keys

SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PEM = SECRET.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = SECRET.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STILLHOUSE_SIGNING_KEY", "STILLHOUSE_SIGNING_KEY_FILE", "STILLHOUSE_TRUSTED_KEYS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def envelope(number: int = 1) -> str:
    return load_signer().sign(release_statement("flights", "7", number))


def test_the_first_use_makes_a_key_for_this_user_alone_that_the_home_trusts(home: Path) -> None:
    assert signing.signing_key_id() is None and not trusted_keys()
    first = load_signer()
    file = home / "keys" / "signing.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert set(trusted_keys()) == {first.key_id} and load_signer().key_id == first.key_id
    assert (home / "keys" / "trusted" / f"{first.key_id}.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----")
    assert read_signed_release(envelope(), "flights@7").version == "7"


def test_concurrent_first_uses_create_one_key(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        key_ids = {signer.key_id for signer in pool.map(lambda _: load_signer(), range(8))}
    assert len(key_ids) == 1 and set(trusted_keys()) == key_ids


def test_a_killed_first_use_is_finished_by_the_next(home: Path) -> None:
    first = load_signer().key_id
    (home / "keys" / "trusted" / f"{first}.pub").unlink()  # killed between the two files
    assert load_signer().key_id == first and set(trusted_keys()) == {first}


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_may_read_is_refused(home: Path, mode: int) -> None:
    load_signer()
    (home / "keys" / "signing.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_signer()


def test_a_secret_signs_in_the_place_of_a_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    name = load_signer().key_id
    assert set(trusted_keys()) == {name} and not (home / "keys" / "signing.key").exists()
    monkeypatch.delenv("STILLHOUSE_SIGNING_KEY")
    (tmp_path / "secret").write_text(PEM)
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY_FILE", str(tmp_path / "secret"))
    assert load_signer().key_id == name


@pytest.mark.parametrize("text", ["", "nothing", PUBLIC, PEM.replace("M", "N")])
def test_an_invalid_secret_is_reported_without_being_shown(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", text)
    with caplog.at_level(logging.DEBUG), pytest.raises(ConfigError, match="STILLHOUSE_SIGNING_KEY holds no") as caught:
        load_signer()
    line = text.splitlines()[1] if "\n" in text else "no such line"
    assert line not in str(caught.value) and line not in caplog.text and caught.value.__cause__ is None
    monkeypatch.delenv("STILLHOUSE_SIGNING_KEY")
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY_FILE", str(tmp_path / "not there"))
    with pytest.raises(ConfigError, match="not there"):
        load_signer()


def test_where_others_keys_are_trusted_no_key_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signing.trust(PUBLIC)
    with pytest.raises(SignatureError, match="others' keys are trusted here"):
        load_signer()
    assert not (home / "keys" / "signing.key").exists()
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    assert set(trusted_keys()) == {load_signer().key_id}


def test_a_file_without_a_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "old.csv"
    file.write_text("id,when")
    with pytest.raises(ConfigError, match=r"old\.csv: there is no public key"):
        signing.trust(file.read_text(), str(file))
    for name in ("old.csv", "nowhere.pub"):
        assert verifying.main(["champion.tar.gz", "--key", str(tmp_path / name), "--agent", "flights"]) == 1
        assert f"the key {tmp_path / name} cannot be read" in capsys.readouterr().err


def test_trusted_keys_may_be_named_from_outside(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = envelope()
    (tmp_path / "one.pub").write_text(PUBLIC)
    for value in (PUBLIC, str(tmp_path / "one.pub"), str(tmp_path)):
        monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", value)
        assert len(trusted_keys()) == 1  # those of the home are not used any more
        with pytest.raises(SignatureError, match="not trusted here"):
            read_signed_release(signed, "flights@7")
        with pytest.raises(SignatureError, match="not trusted here, so nobody here could use"):
            load_signer()
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", os.pathsep.join([str(tmp_path), str(home / "keys" / "trusted")]))
    assert read_signed_release(signed, "flights@7").number == 1
    for nothing in ("", str(home), os.pathsep):
        monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", nothing)
        with pytest.raises(ConfigError, match="STILLHOUSE_TRUSTED_KEYS is set and names no key"):
            trusted_keys()
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", str(tmp_path / "not there"))
    with pytest.raises(ConfigError, match="not there"):
        trusted_keys()


def test_nothing_passes_where_no_key_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    signed = envelope()
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "another"))
    with pytest.raises(SignatureError, match="no key is trusted here"):
        read_signed_release(signed, "flights@7")


def test_a_key_is_replaced_in_order(home: Path) -> None:
    old, signed = load_signer().key_id, envelope(4)
    with pytest.raises(ConfigError, match="no next key"):
        signing.adopt_next_key()
    following = signing.make_next_key()
    assert signing.make_next_key() == following  # once, until it is adopted
    assert load_signer().key_id == old and set(trusted_keys()) == {old, following}
    with pytest.raises(ConfigError, match="signs here"):
        signing.distrust(old)
    assert signing.adopt_next_key() == (old, following)
    assert load_signer().key_id == following and read_signed_release(signed, "flights@7").number == 4
    again = load_signer().sign_again(signed)
    signing.distrust(old)
    assert set(trusted_keys()) == {following} and not (home / "keys" / "next.key").exists()
    assert read_signed_release(again, "flights@7").number == 4
    with pytest.raises(SignatureError, match="not trusted here"):
        read_signed_release(signed, "flights@7")
    with pytest.raises(SignatureError, match="not trusted here"):
        load_signer().sign_again(signed)
    with pytest.raises(ConfigError, match="no key 'abc'"):
        signing.distrust("abc")


def test_keys_from_the_environment_are_not_rotated_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    for action in (signing.make_next_key, signing.adopt_next_key):
        with pytest.raises(ConfigError, match="STILLHOUSE_SIGNING_KEY"):
            action()
