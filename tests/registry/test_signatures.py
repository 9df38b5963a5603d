"""Models of a refresh are signed; a model that differs from its signature is not used, registered or promoted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.errors import SignatureError
from stillhouse.registry import Lineage, Registry
from stillhouse.signing import Signer, load_signer, model_statement, read_signed_release, release_statement
from stillhouse.verifying import digests
from tests.registry.conftest import Life, log_variant, rows, scorecard, variant_folder
from tests.test_signing import PEM, PUBLIC, SECRET


def stored(registry: Registry, name: str, version: str = "1") -> Path:
    """The folder of a version's files in MLflow's store."""
    source = registry.client.get_model_version(name, version).source
    return Path(
        registry.client.get_logged_model(source.removeprefix("models:/")).artifact_location.removeprefix("file://")
    )


def envelope(registry: Registry, version: str, tag: str, name: str = "flights") -> str:
    return str(registry.client.get_model_version(name, version).tags[tag])


@pytest.fixture
def isolated() -> Any:
    """Restores a file of the store that all tests share."""

    @contextmanager
    def restored(file: Path) -> Iterator[bytes]:
        original = file.read_bytes()
        try:
            yield original
        finally:
            file.write_bytes(original)

    return restored


def put(registry: Registry, version: str, tag: str, value: str) -> None:
    registry.client.set_model_version_tag("flights", version, tag, value)


def releases_of(registry: Registry, version: str) -> int:
    return read_signed_release(envelope(registry, version, "release"), version).number


def releases(registry: Registry) -> dict[str, int]:
    """Number by version."""
    tags = {
        entry.version: registry.models.tags(registry.version("flights", entry.version)) for entry in registry.versions()
    }
    return {
        version: read_signed_release(version_tags["release"], version).number
        for version, version_tags in tags.items()
        if "release" in version_tags
    }


def test_each_file_of_each_version_is_signed_as_it_was_made(life: Life) -> None:
    models = life.refresh("r1")
    for role, ref in models.items():
        signed = life.registry.models.signed(ref)
        folder = stored(life.registry, ref.name)
        assert (signed.agent, signed.name, signed.version) == ("flights", ref.name, "1")
        assert dict(signed.files) == digests(folder)
        assert digests(life.registry.models.fetch(ref)) == signed.handed_out
        assert signed.role == ("variant" if role == "fp32" else role)
    variant = life.registry.models.signed(models["fp32"])
    assert set(variant.handed_out) == {"manifest.json", "model.onnx", "values.py", "variant.py"}
    assert variant.lineage == {
        role: life.registry.models.signed(models[role]).model_id for role in ("teacher", "student")
    }
    secret = life.registry.client.search_model_versions("name = 'flights'")[0].tags["signature"]
    assert "PRIVATE" not in secret


# one variant's code, one teacher's data, one student's graph
@pytest.mark.parametrize(
    "name, file", [("flights", "variant.py"), ("flights-teacher", "limit.txt"), ("flights-student", "model.pt2")]
)
def test_a_store_that_was_altered_gives_nothing_and_heals(three: Registry, name: str, file: str, isolated: Any) -> None:
    ref = three.version(name, "1")
    (stored_file,) = stored(three, name).rglob(file)
    with isolated(stored_file) as original:
        stored_file.write_bytes(b"print()\n" + original)
        for _ in range(2):
            with pytest.raises(SignatureError, match=f"{name}@1 arrived damaged.*others than were signed.*{file}"):
                three.models.fetch(ref)
    assert next(three.models.fetch(ref).rglob(file)).read_bytes() == original  # by the same process


def test_a_download_that_was_damaged_later_is_fetched_again(three: Registry) -> None:
    ref = three.version("flights", "1")
    folder = three.models.fetch(ref)
    original = digests(folder)
    for alter in (
        lambda: (folder / "model.onnx").write_bytes(b"half"),
        lambda: (folder / "variant.py").unlink(),
        lambda: (folder / "sitecustomize.py").write_text("evil()"),
    ):
        alter()
        assert digests(three.models.fetch(ref)) == original
    inode = folder.stat().st_ino
    assert three.models.fetch(ref).stat().st_ino == inode  # an intact folder is not downloaded again
    assert not list(folder.parent.glob(".*"))


def test_a_students_weights_are_checked_like_the_rest(life: Life, tmp_path: Path) -> None:
    native = tmp_path / "native"
    native.mkdir()
    (native / "weights.bin").write_bytes(b"weights")
    registry = life.registry
    run_id, _ = registry.runs.open_refresh("r1", tags={}, params={})
    student = registry.register(
        registry.models.log_student(
            run_id,
            torch.nn.Linear(3, 2),
            np.zeros((2, 3), np.float32),
            scorecard("student", "student"),
            {},
            Lineage(),
            native,
        ),
        "flights-student",
    )
    folder = variant_folder(tmp_path / "fp32", "fp32")
    lineage = Lineage(student=student)
    variant = log_variant(registry, run_id, folder, scorecard("fp32", "variant"), {}, lineage, rows())
    files = registry.models.student_files(variant)
    (files / "weights.bin").write_bytes(b"others")
    assert (registry.models.student_files(variant) / "weights.bin").read_bytes() == b"weights"
    (stored_file,) = stored(registry, "flights-student").rglob("weights.bin")
    stored_file.write_bytes(b"others")
    (files / "weights.bin").unlink()
    with pytest.raises(SignatureError, match=r"the student of fp32.*weights\.bin"):
        registry.models.student_files(variant)


def test_one_version_does_not_pass_as_another_nor_one_agents_as_anothers(three: Registry) -> None:
    put(three, "2", "signature", envelope(three, "1", "signature"))
    with pytest.raises(SignatureError, match=r"flights@2 cannot be used: it is signed as flights@1"):
        three.models.fetch(three.version("flights", "2"))
    put(three, "2", "signature", envelope(three, "2", "signature", "flights-student"))
    with pytest.raises(SignatureError, match="it is signed as flights-student@2"):
        three.promote("2")
    other = json.loads(envelope(three, "1", "signature"))["statement"].replace('"agent":"flights"', '"agent":"router"')
    put(three, "1", "signature", load_signer().sign(other))
    with pytest.raises(SignatureError, match="of agent 'router'"):
        three.models.fetch(three.version("flights", "1"))
    three.client.delete_model_version_tag("flights", "3", "signature")
    with pytest.raises(SignatureError, match="it is not signed"):
        three.promote("3")
    assert three.champion() is None and not releases(three)


def test_what_others_have_signed_is_neither_registered_nor_used(life: Life) -> None:
    models = life.refresh("r1")
    ref = life.registry.version("flights", "1")
    signed = life.registry.models.signed(ref)
    put(life.registry, "1", "signature", Signer(SECRET).sign(model_statement(signed)))
    with pytest.raises(SignatureError, match=r"signed by key .* not trusted here"):
        life.registry.models.fetch(ref)
    folder = variant_folder(life.folder / "again", "fp32")
    run = life.registry.models.tags(ref)["refresh_run"]
    logged = log_variant(
        life.registry, run, folder, scorecard("fp32", "variant"), {}, Lineage(student=models["student"]), rows()
    )
    life.registry.client.delete_logged_model_tag(logged.uri.removeprefix("models:/"), "signature")
    with pytest.raises(SignatureError, match="not signed"):
        life.registry.register(logged, "flights")
    assert len(life.registry.versions()) == 1


def test_a_registration_that_was_killed_before_it_was_signed_is_finished(three: Registry) -> None:
    ref = three.version("flights", "1")
    signature = envelope(three, "1", "signature")
    three.client.delete_model_version_tag("flights", "1", "signature")
    three.register(ref, "flights")
    assert envelope(three, "1", "signature") == signature


@pytest.mark.slow
def test_each_promotion_and_roll_back_is_a_release_of_its_own(three: Registry) -> None:
    for version in "123":
        three.promote(version)
    assert releases(three) == {"1": 1, "2": 2, "3": 3}
    three.promote("3")  # it is champion already
    three.rollback()
    assert releases(three) == {"1": 1, "2": 4, "3": 3}
    three.promote("3")
    assert releases(three) == {"1": 1, "2": 4, "3": 5}
    # one under a key that is trusted no longer releases nothing, and machines may have seen its number
    put(three, "1", "release", Signer(SECRET).sign(release_statement("flights", "1", 20)))
    three.promote("1")
    assert releases(three) == {"1": 21, "2": 4, "3": 5}
    for nonsense in ("nothing", "[]", Signer(SECRET).sign(release_statement("flights", "3", 10**99))):
        put(three, "3", "release", nonsense)
        three.promote("1")
    three.client.set_registered_model_alias("flights", "champion", "2")
    three.promote("2")  # whose alias somebody had moved
    assert releases_of(three, "2") == 22


def test_a_roll_back_to_what_does_not_verify_moves_nothing(three: Registry) -> None:
    three.promote("1")
    three.promote("2")
    put(three, "1", "signature", "nothing")
    with pytest.raises(SignatureError, match="flights@1"):
        three.rollback()
    assert three.champion().version == "2" and not three.versions()[1].rolled_back
    three.promote("3")
    assert three.rollback().version == "2"


def test_without_the_private_key_nothing_is_promoted(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    three.promote("1")
    three.promote("2")
    monkeypatch.delenv("STILLHOUSE_SIGNING_KEY")
    for move in (lambda: three.promote("3"), three.rollback):
        with pytest.raises(SignatureError, match="no signing key here"):
            move()
    assert (
        three.champion().version == "2"
        and not three.versions()[1].rolled_back
        and three.models.fetch(three.champion()).exists()
    )


def test_all_statements_are_signed_again_with_a_new_key(three: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    three.promote("1")
    old, before = os.environ["STILLHOUSE_TRUSTED_KEYS"], three.models.signed(three.version("flights", "1"))
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", old + PUBLIC)
    put(three, "2", "signature", "nothing")
    assert three.sign_again() == 2 * 9 - 1 + 1  # versions and logged models but for one, and one release
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)
    assert three.models.signed(three.version("flights", "1")) == before
    assert releases(three) == {"1": 1}
    with pytest.raises(SignatureError, match="flights@2"):
        three.models.signed(three.version("flights", "2"))
    three.promote("3")


def test_mlflow_loads_what_was_checked_as_a_whole(three: Registry, tmp_path: Path) -> None:
    ref = three.version("flights", "1")
    folder = three.models.fetch_whole(ref, tmp_path / "model")
    assert digests(folder) == dict(three.models.signed(ref).files)
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(str(folder))
    assert model.predict(rows()[["wind", "hour", "origin"]].head(1)).shape == (1, 3)
