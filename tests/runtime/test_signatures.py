"""The agent decides with, and hands out, only what a trusted key has signed and released last."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from stillhouse import config
from stillhouse.errors import NoChampionError, SignatureError
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.champions import Champions
from stillhouse.signing import Signer, load_signer, release_statement
from stillhouse.verifying import check_archive, read_keys
from tests.registry.test_signatures import envelope, stored
from tests.runtime.conftest import World
from tests.runtime.test_server import serving
from tests.test_signing import PEM, PUBLIC, SECRET

ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}
MODEL = "/v1/agents/flights/model"


def settings() -> config.AgentConfig:
    return config.load("flights")


@pytest.fixture(autouse=True)
def quiet(champion: World) -> None:
    """Followed when the test says so."""
    champion.write(runtime={"poll": "1h", "flush": "1h"})


def test_a_download_that_was_damaged_once_is_fetched_again_by_the_same_process(champion: World) -> None:
    (file,) = stored(champion.registry, "flights", "2").rglob("model.onnx")
    sound = file.read_bytes()
    with Agent("flights", flush=False) as agent:
        try:
            file.write_bytes(sound[: len(sound) // 2])
            champion.registry.promote("2")
            for _ in range(2):
                with pytest.raises(SignatureError, match="flights@2 arrived damaged"):
                    agent.follow(champion.registry)
            assert agent.decide(ROW).version == "flights@1"
        finally:
            file.write_bytes(sound)
        assert agent.follow(champion.registry) == "flights@2"
        assert agent.decide(ROW).version == "flights@2"


def test_a_champion_that_does_not_verify_is_told_and_the_one_in_memory_decides_on(champion: World) -> None:
    registry = champion.registry
    with Agent("flights", flush=False) as agent:
        agent._models = registry
        assert agent.follow(registry) == "flights@1"
        registry.promote("2")
        sound = envelope(registry, "2", "signature")
        registry.client.set_model_version_tag("flights", "2", "signature", sound.replace('\\"2\\"', '\\"3\\"'))
        agent._follow_quietly()
        problem = agent.status().troubled["champion"]
        assert "flights@2 cannot be used" in problem.text and "was altered" in problem.text
        assert agent.decide(ROW).version == "flights@1"
        registry.client.set_model_version_tag("flights", "2", "signature", sound)
        agent._follow_quietly()
        assert agent.decide(ROW).version == "flights@2" and not agent.status().troubled


def test_a_withdrawn_version_does_not_come_back_by_its_alias(champion: World) -> None:
    registry = champion.registry

    def point(version: str) -> None:
        registry.client.set_registered_model_alias("flights", "champion", version)

    with Agent("flights", follow=False, flush=False) as agent:
        agent.follow(registry)
        registry.promote("2")
        assert agent.follow(registry) == "flights@2"
        point("1")
        with pytest.raises(SignatureError, match="flights@1 was withdrawn: it is release 1 of flights, and release 2"):
            agent.follow(registry)
        point("3")
        with pytest.raises(SignatureError, match="flights@3 cannot be used: no signed release names it"):
            agent.follow(registry)
        assert agent.decide(ROW).version == "flights@2"
        # another version's release, or one that nobody trusted has signed, releases it no more than none
        for release in (envelope(registry, "2", "release"), Signer(SECRET).sign(release_statement("flights", "3", 9))):
            registry.client.set_model_version_tag("flights", "3", "release", release)
            with pytest.raises(SignatureError, match=r"flights@3 cannot be used: .*(is not what was released|trusted)"):
                agent.follow(registry)
        point("2")
        registry.rollback()  # is a release, of version 1 again
        assert agent.follow(registry) == "flights@1"
        point("2")
        with pytest.raises(SignatureError, match="flights@2 was withdrawn"):
            agent.follow(registry)


def test_a_roll_back_between_two_looks_withdraws_what_was_never_seen(champion: World) -> None:
    registry, champions = champion.registry, Champions(settings())
    assert champions.follow(registry).release_number == 1
    registry.promote("2")
    registry.rollback()
    assert champions.follow(registry).release_number == 3
    registry.client.set_registered_model_alias("flights", "champion", "2")
    with pytest.raises(SignatureError, match="flights@2 was withdrawn: it is release 2"):
        champions.follow(registry)


@pytest.mark.parametrize("file", ["variant.py", "manifest.json", "model.onnx", "more.py"])
def test_an_altered_copy_is_neither_loaded_nor_handed_out(champion: World, file: str) -> None:
    champions = Champions(settings())
    pointer = champions.follow(champion.registry)
    (champions.folder / pointer.folder / file).write_bytes(b"evil()")
    for use in (champions.load, champions.files):
        with pytest.raises(NoChampionError, match=f"damaged: its files have other checksums.*{file}"):
            use(pointer)
    again = champions.follow(champion.registry)
    assert again == pointer and champions.load(again).version == "flights@1"


def test_a_copy_of_another_key_or_another_agent_is_not_loaded(champion: World, monkeypatch: pytest.MonkeyPatch) -> None:
    champions = Champions(settings())
    pointer = champions.follow(champion.registry)
    signed = json.loads(pointer.signature)["statement"]
    evil = Signer(SECRET).sign(signed)
    with pytest.raises(SignatureError, match="not trusted here"):
        champions.load(pointer.model_copy(update={"signature": evil}))
    other = load_signer().sign(signed.replace('"agent":"flights"', '"agent":"router"'))
    with pytest.raises(SignatureError, match="of agent 'router'"):
        champions.load(pointer.model_copy(update={"signature": other}))
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)  # rotated, and not signed again
    with Agent("flights", follow=False, flush=False) as agent, pytest.raises(NoChampionError, match="not trusted"):
        agent.decide(ROW)


def test_only_the_teacher_that_the_champion_was_distilled_from_is_taken(champion: World) -> None:
    champion.cascade()
    champions = Champions(settings())
    pointer = champions.follow(champion.registry)
    assert champions.teacher(pointer) is not None
    others = envelope(champion.registry, "2", "signature", "flights-teacher")
    with pytest.raises(SignatureError, match="flights@1 was distilled from another"):
        champions.teacher(pointer.model_copy(update={"teacher_signature": others}))
    (limit,) = (champions.folder / pointer.teacher_folder).rglob("limit.txt")
    limit.write_text("99")
    with pytest.raises(NoChampionError, match=r"the teacher of flights@1.*limit\.txt"):
        champions.teacher(pointer)
    assert champions.follow(champion.registry) == pointer and limit.read_text() == "10.0"


def test_all_that_was_signed_again_is_taken_up_without_fetching(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, champions = champion.registry, Champions(settings())
    pointer = champions.follow(registry)
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", os.environ["STILLHOUSE_TRUSTED_KEYS"] + PUBLIC)
    monkeypatch.setenv("STILLHOUSE_SIGNING_KEY", PEM)
    registry.sign_again()
    monkeypatch.setattr(registry.models, "fetch", None)  # not called
    after = champions.follow(registry)
    monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)
    assert after.folder == pointer.folder and champions.load(after).version == "flights@1"
    with pytest.raises(SignatureError):
        champions.load(pointer)


def test_the_server_hands_out_what_a_device_can_check_and_never_an_altered_copy(
    champion: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = read_keys(os.environ["STILLHOUSE_TRUSTED_KEYS"])
    champions = Champions(settings())
    pointer = champions.follow(champion.registry)
    folder = champions.folder / pointer.folder
    shutil.copytree(folder, tmp_path / "sound")

    async def run() -> None:
        async with serving("flights") as client:
            (folder / "variant.py").write_bytes(b"print('not what was promoted')\n")
            refused = await client.get(MODEL)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_champion")
            assert "variant.py" in refused.json()["error"]["message"]
            champions.follow(champion.registry)  # as the keeper does
            given = await client.get(MODEL)
            (tmp_path / "a.tar.gz").write_bytes(given.content)
            verified, files = check_archive(tmp_path / "a.tar.gz", keys, agent="flights")
            assert (verified.model.version, verified.release.number) == ("1", 1)
            assert files["variant.py"] == (tmp_path / "sound" / "variant.py").read_bytes()

            (folder / "variant.py").write_bytes(b"print('again')\n")  # what was packed was checked
            assert (await client.get(MODEL)).content == given.content
            champion.registry.promote("2")
            champion.registry.rollback()
            champions.follow(champion.registry)
            later = await client.get(MODEL)  # the same version, released again: a device has to know
            (tmp_path / "b.tar.gz").write_bytes(later.content)
            assert check_archive(tmp_path / "b.tar.gz", keys, agent="flights")[0].release.number == 3
            assert later.headers["etag"] != given.headers["etag"]
            monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)
            assert (await client.get(MODEL)).status_code == 503

    asyncio.run(run())
