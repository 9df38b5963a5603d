"""Files are replaced atomically, and digests follow their definition."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stillhouse.files import atomic_file, atomic_folder, file_digest, tree_digest, write_atomic


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def test_a_file_is_replaced_atomically_without_leftovers(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "grün")
    assert file.read_bytes() == "grün".encode()
    write_atomic(file, b"\0\n", durable=True)
    assert file.read_bytes() == b"\0\n" and names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def refuse(self: Path, target: Path) -> None:
        assert self.read_text() == "new" and target.read_text() == "old"
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomic(file, "new")
    assert file.read_text() == "old" and names(tmp_path) == ["a"]
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "absent" / "a", "x")


def test_leftovers_of_a_killed_writer_do_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "a"
    with pytest.raises(ZeroDivisionError), atomic_file(file) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == []
    with atomic_file(file) as aside:
        name = aside.name
        aside.write_text("whole")
    (tmp_path / name).write_text("half of a longer text")
    write_atomic(file, "new")
    assert file.read_text() == "new" and names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_the_permissions_of_a_secret(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomic(tmp_path / "secret", "x", mode=0o600)
        write_atomic(tmp_path / "plain", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_replaced_atomically(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (tmp_path / "f.partial").mkdir()
    (tmp_path / "f.partial" / "of a killed one").touch()
    for content in ("first", "second"):
        with atomic_folder(folder) as partial:
            assert list(partial.iterdir()) == []
            (partial / content).touch()
        assert names(folder) == [content] and names(tmp_path) == ["f"]
    with pytest.raises(ZeroDivisionError), atomic_folder(folder) as partial:
        (partial / "third").touch()
        raise ZeroDivisionError
    assert names(folder) == ["second"] and names(tmp_path) == ["f"]


def test_digests_by_their_definition(tmp_path: Path) -> None:
    """SHA-256 of "abc" is a test vector of FIPS 180-2."""
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    assert file_digest(tmp_path / "b" / "x") == abc
    assert file_digest(tmp_path / "a", "md5") == "d41d8cd98f00b204e9800998ecf8427e"
    lines = f"a\0{hashlib.sha256().hexdigest()}\nb/x\0{abc}\n"
    assert tree_digest(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()
    assert tree_digest(tmp_path, exclude={"a"}) == hashlib.sha256(f"b/x\0{abc}\n".encode()).hexdigest()
