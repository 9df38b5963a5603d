"""Verification on a device refuses every kind of altered model."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import stillhouse.verifying
from stillhouse.serving.archive import pack
from stillhouse.signing import Signer, model_statement, release_statement
from stillhouse.verifying import (
    SIGNATURE_FILE,
    SIGNATURE_PREFIX,
    FilesDiffer,
    Model,
    VerificationError,
    check_archive,
    check_files,
    check_folder,
    digests,
    key_id,
    read_keys,
    read_model,
    read_release,
    verify,
)

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))
FILES = {"manifest.json": b"{}", "model.onnx": b"weights", "variant.py": b"print()", "more/values.py": b"1"}


def public(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


KEYS = read_keys(public(KEY))


def model_of(folder: Path, version: str = "7", agent: str = "flights") -> Model:
    files = {f"artifacts/fp32/{path}": digest for path, digest in digests(folder).items() if path != SIGNATURE_FILE}
    return Model(agent, agent, version, "m-7", "variant", "artifacts/fp32", files | {"MLmodel": "0" * 64}, {})


def sign(folder: Path, model: Model, number: int, key: Ed25519PrivateKey = KEY) -> None:
    signer = Signer(key)
    keys = {
        "model": signer.sign(model_statement(model)),
        "release": signer.sign(release_statement(model.agent, model.version or "", number)),
    }
    (folder / SIGNATURE_FILE).write_text(json.dumps(keys))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A distributed model: version 7, the third release."""
    model = tmp_path / "model"
    for name, content in FILES.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    sign(model, model_of(model), 3)
    return model


def archive_of(folder: Path, target: Path) -> Path:
    target.write_bytes(pack({name: (folder / name).read_bytes() for name in digests(folder)}, "flights@7").content)
    return target


def test_what_was_signed_passes_as_folder_and_as_archive(folder: Path, tmp_path: Path) -> None:
    checked = check_folder(folder, KEYS, agent="flights", at_least=3, version="7")
    assert (checked.model.version, checked.release.number) == ("7", 3)
    verified, files = check_archive(archive_of(folder, tmp_path / "a.tar.gz"), KEYS, agent="flights")
    assert verified == checked and set(files) == {*FILES, SIGNATURE_FILE} and files["variant.py"] == b"print()"


def link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def linked_folder(folder: Path) -> None:
    (folder / "more").rename(folder.parent / "elsewhere")
    (folder / "more").symlink_to(folder.parent / "elsewhere")


def bytecode(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "variant.cpython-311.pyc").write_bytes(b"other code")


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda folder: (folder / "variant.py").write_bytes(b"evil()"), "than were signed: 'variant.py'"),
    "weights": (lambda folder: (folder / "model.onnx").write_bytes(b"weightz"), "than were signed: 'model.onnx'"),
    "a file below": (lambda folder: (folder / "more" / "values.py").write_bytes(b"2"), "signed: 'more/values.py'"),
    "half a file": (lambda folder: (folder / "model.onnx").write_bytes(b"wei"), "than were signed: 'model.onnx'"),
    "missing": (lambda folder: (folder / "manifest.json").unlink(), "missing: 'manifest.json'"),
    "one more": (lambda folder: (folder / "site.py").write_bytes(b"evil()"), "not signed: 'site.py'"),
    "hidden": (lambda folder: (folder / ".pth").write_bytes(b""), "not signed: '.pth'"),
    "bytecode": (bytecode, "not signed: '__pycache__/variant.cpython-311.pyc'"),
    "a link": (link, "no plain file"),
    "a linked folder": (linked_folder, "no plain file"),
}


@pytest.mark.parametrize("way", ALTERED)
def test_no_altered_file_passes(folder: Path, way: str) -> None:
    alter, message = ALTERED[way]
    alter(folder)
    with pytest.raises(FilesDiffer, match=message):
        check_folder(folder, KEYS, agent="flights")


def test_another_agents_and_another_version_do_not_pass(folder: Path) -> None:
    with pytest.raises(VerificationError, match="signed as 'flights' of agent 'flights', not of agent 'router'"):
        check_folder(folder, KEYS, agent="router")
    with pytest.raises(VerificationError, match="is version 7, not 8"):
        check_folder(folder, KEYS, agent="flights", version="8")
    sign(folder, replace(model_of(folder), name="flights-student"), 3)
    with pytest.raises(VerificationError, match="flights-student"):
        check_folder(folder, KEYS, agent="flights")


def test_a_withdrawn_version_does_not_pass_and_a_roll_back_does(folder: Path) -> None:
    with pytest.raises(VerificationError, match="withdrawn: it is release 3, and release 4 was seen"):
        check_folder(folder, KEYS, agent="flights", at_least=4)
    sign(folder, model_of(folder), 5)  # what a roll-back to it signs
    assert check_folder(folder, KEYS, agent="flights", at_least=4).release.number == 5


def test_the_release_of_one_version_does_not_release_another(folder: Path) -> None:
    signatures = json.loads((folder / SIGNATURE_FILE).read_text())
    signatures["release"] = Signer(KEY).sign(release_statement("flights", "8", 9))
    (folder / SIGNATURE_FILE).write_text(json.dumps(signatures))
    with pytest.raises(VerificationError, match="version 7 is not what was released: that is version 8"):
        check_folder(folder, KEYS, agent="flights")


def test_only_trusted_keys_count_and_several_may_be_trusted(folder: Path) -> None:
    sign(folder, model_of(folder), 3, OTHER)
    with pytest.raises(VerificationError, match="not trusted here"):
        check_folder(folder, KEYS, agent="flights")
    keys = read_keys(public(KEY) + "\n" + public(OTHER))
    assert set(keys) == {key_id(KEY.public_key()), key_id(OTHER.public_key())}
    assert check_folder(folder, keys, agent="flights").release.number == 3


def altered_statement(envelope: dict[str, str]) -> object:
    return envelope.update(statement=envelope["statement"].replace('"7"', '"8"'))


def no_context(envelope: dict[str, str]) -> object:
    import base64

    return envelope.update(signature=base64.b64encode(KEY.sign(envelope["statement"].encode())).decode())


ENVELOPES: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "statement": (altered_statement, "was altered"),
    "another key's name": (lambda envelope: envelope.update(key="0" * 16), "not trusted here"),
    "without context": (no_context, "was altered"),
    "no base64": (lambda envelope: envelope.update(signature="?"), "cannot be read"),
    "no text": (lambda envelope: envelope.update(statement=7), "cannot be read"),  # type: ignore[arg-type,call-overload]
    "no signature": (lambda envelope: envelope.pop("signature"), "cannot be read"),
}


@pytest.mark.parametrize("way", ENVELOPES)
def test_no_altered_envelope_passes(folder: Path, way: str) -> None:
    alter, message = ENVELOPES[way]
    envelope = json.loads(Signer(KEY).sign(model_statement(model_of(folder))))
    alter(envelope)
    with pytest.raises(VerificationError, match=message):
        read_model(json.dumps(envelope), KEYS)


@pytest.mark.parametrize(
    "text", ["", "nothing", "[]", "null", "[" * 100_000, '{"statement": "\\ud800", "key": "", "signature": ""}']
)
def test_what_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(VerificationError, match="cannot be read"):
        read_model(text, KEYS)


def test_a_statement_of_one_kind_is_not_one_of_another(folder: Path) -> None:
    with pytest.raises(VerificationError, match="no statement about a release"):
        read_release(Signer(KEY).sign(model_statement(model_of(folder))), KEYS)
    with pytest.raises(VerificationError, match="no statement about a model"):
        read_model(Signer(KEY).sign(release_statement("flights", "7", 1)), KEYS)
    for text in ("{}", '{"type": "stillhouse model"}', '{"type": "stillhouse model", "agent": 7}', "[]", "7"):
        with pytest.raises(VerificationError, match=r"incomplete|no statement"):
            read_model(Signer(KEY).sign(text), KEYS)
    for number in (0, -1, 1.5, True, "9"):
        statement = json.loads(release_statement("flights", "7", 1)) | {"number": number}
        with pytest.raises(VerificationError, match="incomplete"):
            read_release(Signer(KEY).sign(json.dumps(statement)), KEYS)


def test_a_folder_without_signature_or_of_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / SIGNATURE_FILE).unlink()
    with pytest.raises(VerificationError, match="not signed"):
        check_folder(folder, KEYS, agent="flights")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FilesDiffer, match="no file of it was signed"):
        check_files(tmp_path / "empty", {})


def packed(path: Path, entries: Mapping[str, bytes], link: str | None = None) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link is not None:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    path.write_bytes(gzip.compress(plain.getvalue()))
    return path


def test_hostile_archives_are_refused_and_leave_nothing(folder: Path, tmp_path: Path) -> None:
    files = {name: (folder / name).read_bytes() for name in digests(folder)}
    into, file = tmp_path / "into", tmp_path / "a.tar.gz"
    for entries, hidden, message in (
        (files | {"../evil.py": b"x"}, None, "not signed: '../evil.py'"),
        (files | {"/tmp/evil.py": b"x"}, None, "not signed: "),
        (files, "passwd", "no plain file"),
        ({name: content for name, content in files.items() if name != SIGNATURE_FILE}, None, "not signed"),
        (files | {"variant.py": b"evil()"}, None, "than were signed: 'variant.py'"),
    ):
        with pytest.raises(VerificationError, match=message):
            verify(packed(file, entries, hidden), KEYS, agent="flights", into=into)
    file.write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(VerificationError, match="cannot be read as"):
        verify(file, KEYS, agent="flights", into=into)
    with pytest.raises(VerificationError, match="unpacks to more than 1,000 bytes"):
        check_archive(packed(file, files | {"zeros": bytes(10**6)}), KEYS, agent="flights", max_bytes=1000)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "a.tar.gz"}


def test_invalid_keys_are_reported() -> None:
    with pytest.raises(VerificationError, match="no public key"):
        read_keys("nothing")
    with pytest.raises(VerificationError, match="of another kind than Ed25519"):
        read_keys(public(X25519PrivateKey.generate()))
    with pytest.raises(VerificationError, match="cannot be read"):
        read_keys("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----")
    assert SIGNATURE_PREFIX.endswith(b"\n")


def test_a_device_needs_this_file_and_cryptography_alone(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(stillhouse.verifying.__file__, tmp_path / "verifying.py")
    (tmp_path / "flights.pub").write_text(public(KEY))
    archive = archive_of(folder, tmp_path / "champion.tar.gz")

    def device(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "verifying.py", archive.name, "--key", "flights.pub", "--agent", "flights"]
        return subprocess.run(
            [*command, "--state", "last", *options], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = device("--into", "unpacked")
    assert (done.returncode, done.stdout) == (0, "flights@7 (release 3) is as it was signed\n")
    assert digests(tmp_path / "unpacked") == digests(folder) and (tmp_path / "last").read_text() == "3\n"

    (tmp_path / "last").write_text("4\n")
    refused = device("--into", "again")
    assert refused.returncode == 1 and "withdrawn" in refused.stderr and not (tmp_path / "again").exists()


def test_invalid_text_invalid_gzip_and_a_bomb_are_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: (folder / name).read_bytes() for name in digests(folder)}
    file, pub = packed(tmp_path / "a.tar.gz", files), tmp_path / "flights.pub"
    pub.write_text(public(KEY))
    (tmp_path / "der.pub").write_bytes(b"\x30\x2a\xe4\xff")
    (tmp_path / "state").write_bytes(b"\xff\xfe")
    for options, message in (
        (["--key", str(tmp_path / "der.pub")], "der.pub cannot be read"),
        (["--key", str(pub), "--state", str(tmp_path / "state")], "no number of a release"),
    ):
        assert stillhouse.verifying.main([str(file), "--agent", "flights", *options]) == 1
        assert message in capsys.readouterr().err
    content = file.read_bytes()
    for end in range(0, len(content) - 60, 7):
        file.write_bytes(content[:end])
        with pytest.raises(VerificationError):
            check_archive(file, KEYS, agent="flights")
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.XHDTYPE, 8 * 2**20  # a name of 8 MiB, in 8 kB
    file.write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(header.size)))
    with pytest.raises(VerificationError, match="unpacks to more than 1,000 bytes"):
        check_archive(file, KEYS, agent="flights", max_bytes=1000)
