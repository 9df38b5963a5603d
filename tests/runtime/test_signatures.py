"""The agent decides only with a version that a trusted key has signed and released last."""

from __future__ import annotations

import json
import os

import pytest

from stillhouse import config
from stillhouse.errors import NoChampionError, SignatureError
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.champions import Champions
from stillhouse.signing import Signer, load_signer, release_statement
from tests.registry.test_signatures import envelope, stored
from tests.runtime.conftest import Installation
from tests.test_signing import PEM, PUBLIC, SECRET

ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}


def load_config() -> config.AgentConfig:
    return config.load("flights")


@pytest.fixture(autouse=True)
def without_polling(promoted: Installation) -> None:
    """The agent follows the registry only when the test calls it."""
    promoted.write(runtime={"poll": "1h", "flush": "1h"})


def test_a_damaged_download_is_fetched_again_by_the_same_process(promoted: Installation) -> None:
    (file,) = stored(promoted.registry, "flights", "2").rglob("model.onnx")
    intact = file.read_bytes()
    with Agent("flights", flush=False) as agent:
        try:
            file.write_bytes(intact[: len(intact) // 2])
            promoted.registry.promote("2")
            for _ in range(2):
                with pytest.raises(SignatureError, match="flights@2 arrived damaged"):
                    agent.follow(promoted.registry)
            assert agent.decide(ROW).version == "flights@1"
        finally:
            file.write_bytes(intact)
        assert agent.follow(promoted.registry) == "flights@2"
        assert agent.decide(ROW).version == "flights@2"


def test_an_unverified_champion_is_reported_and_the_loaded_one_decides_on(promoted: Installation) -> None:
    registry = promoted.registry
    with Agent("flights", flush=False) as agent:
        agent._registry = registry
        assert agent.follow(registry) == "flights@1"
        registry.promote("2")
        signature = envelope(registry, "2", "signature")
        registry.client.set_model_version_tag("flights", "2", "signature", signature.replace('\\"2\\"', '\\"3\\"'))
        agent._try_follow()
        problem = agent.status().open_problems["champion"]
        assert "flights@2 cannot be used" in problem.text and "was altered" in problem.text
        assert agent.decide(ROW).version == "flights@1"
        registry.client.set_model_version_tag("flights", "2", "signature", signature)
        agent._try_follow()
        assert agent.decide(ROW).version == "flights@2" and not agent.status().open_problems


def test_an_alias_cannot_bring_back_a_withdrawn_version(promoted: Installation) -> None:
    registry = promoted.registry

    def set_alias(version: str) -> None:
        registry.client.set_registered_model_alias("flights", "champion", version)

    with Agent("flights", follow=False, flush=False) as agent:
        agent.follow(registry)
        registry.promote("2")
        assert agent.follow(registry) == "flights@2"
        set_alias("1")
        with pytest.raises(SignatureError, match="flights@1 was withdrawn: it is release 1 of flights, and release 2"):
            agent.follow(registry)
        set_alias("3")
        with pytest.raises(SignatureError, match="flights@3 cannot be used: no signed release names it"):
            agent.follow(registry)
        assert agent.decide(ROW).version == "flights@2"
        # neither another version's release, nor one signed by an untrusted key, releases this version
        for release in (envelope(registry, "2", "release"), Signer(SECRET).sign(release_statement("flights", "3", 9))):
            registry.client.set_model_version_tag("flights", "3", "release", release)
            with pytest.raises(SignatureError, match=r"flights@3 cannot be used: .*(is not what was released|trusted)"):
                agent.follow(registry)
        set_alias("2")
        registry.rollback()  # a new release of version 1
        assert agent.follow(registry) == "flights@1"
        set_alias("2")
        with pytest.raises(SignatureError, match="flights@2 was withdrawn"):
            agent.follow(registry)


def test_a_rollback_between_two_polls_withdraws_a_version_that_was_never_seen(promoted: Installation) -> None:
    registry, champions = promoted.registry, Champions(load_config())
    assert champions.follow(registry).release_number == 1
    registry.promote("2")
    registry.rollback()
    assert champions.follow(registry).release_number == 3
    registry.client.set_registered_model_alias("flights", "champion", "2")
    with pytest.raises(SignatureError, match="flights@2 was withdrawn: it is release 2"):
        champions.follow(registry)


@pytest.mark.parametrize("file", ["variant.py", "manifest.json", "model.onnx", "more.py"])
def test_an_altered_copy_is_neither_loaded_nor_read(promoted: Installation, file: str) -> None:
    champions = Champions(load_config())
    pointer = champions.follow(promoted.registry)
    (champions.folder / pointer.folder / file).write_bytes(b"evil()")
    for use in (champions.load, champions.read_files):
        with pytest.raises(NoChampionError, match=f"damaged: its files have other checksums.*{file}"):
            use(pointer)
    new_pointer = champions.follow(promoted.registry)
    assert new_pointer == pointer and champions.load(new_pointer).version == "flights@1"


def test_a_copy_of_another_key_or_another_agent_is_not_loaded(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    champions = Champions(load_config())
    pointer = champions.follow(promoted.registry)
    statement = json.loads(pointer.signature)["statement"]
    untrusted = Signer(SECRET).sign(statement)
    with pytest.raises(SignatureError, match="not trusted here"):
        champions.load(pointer.model_copy(update={"signature": untrusted}))
    other = load_signer().sign(statement.replace('"agent":"flights"', '"agent":"router"'))
    with pytest.raises(SignatureError, match="of agent 'router'"):
        champions.load(pointer.model_copy(update={"signature": other}))
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)  # the key was rotated, but the models were not signed again
    with Agent("flights", follow=False, flush=False) as agent, pytest.raises(NoChampionError, match="not trusted"):
        agent.decide(ROW)


def test_only_the_champions_own_teacher_is_accepted(promoted: Installation) -> None:
    promoted.write_cascade()
    champions = Champions(load_config())
    pointer = champions.follow(promoted.registry)
    assert champions.teacher_folder(pointer) is not None
    other_signature = envelope(promoted.registry, "2", "signature", "flights-teacher")
    with pytest.raises(SignatureError, match="flights@1 was distilled from another"):
        champions.teacher_folder(pointer.model_copy(update={"teacher_signature": other_signature}))
    (limit,) = (champions.folder / pointer.teacher_folder).rglob("limit.txt")
    limit.write_text("99")
    with pytest.raises(NoChampionError, match=r"the teacher of flights@1.*limit\.txt"):
        champions.teacher_folder(pointer)
    assert champions.follow(promoted.registry) == pointer and limit.read_text() == "10.0"


def test_new_signatures_are_used_without_fetching_the_files(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, champions = promoted.registry, Champions(load_config())
    pointer = champions.follow(registry)
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", os.environ["STILLHOUSE_TRUSTED_KEYS"] + PUBLIC)
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    registry.sign_again()
    monkeypatch.setattr(registry.models, "fetch", None)  # not called
    new_pointer = champions.follow(registry)
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)
    assert new_pointer.folder == pointer.folder and champions.load(new_pointer).version == "flights@1"
    with pytest.raises(SignatureError):
        champions.load(pointer)
