"""The server hands out only archives that a device can verify."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from stillhouse import config
from stillhouse.runtime.champions import Champions
from stillhouse.verifying import check_archive, read_keys
from tests.runtime.conftest import Installation
from tests.serving.test_server import running_server
from tests.test_signing import PUBLIC

MODEL = "/v1/agents/flights/model"


@pytest.fixture(autouse=True)
def without_polling(promoted: Installation) -> None:
    """The agent follows the registry only when the test calls it."""
    promoted.write(runtime={"poll": "1h", "flush": "1h"})


def test_a_device_can_verify_the_archive_and_an_altered_copy_is_not_handed_out(
    promoted: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = read_keys(os.environ["STILLHOUSE_TRUSTED_KEYS"])
    champions = Champions(config.load("flights"))
    pointer = champions.follow(promoted.registry)
    folder = champions.folder / pointer.folder
    shutil.copytree(folder, tmp_path / "intact")

    async def request_models() -> None:
        async with running_server("flights") as client:
            (folder / "variant.py").write_bytes(b"print('not what was promoted')\n")
            rejected = await client.get(MODEL)
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "no_champion")
            assert "variant.py" in rejected.json()["error"]["message"]
            champions.follow(promoted.registry)  # as the housekeeper does
            first = await client.get(MODEL)
            (tmp_path / "a.tar.gz").write_bytes(first.content)
            verified, files = check_archive(tmp_path / "a.tar.gz", keys, agent="flights")
            assert (verified.model.version, verified.release.number) == ("1", 1)
            assert files["variant.py"] == (tmp_path / "intact" / "variant.py").read_bytes()

            (folder / "variant.py").write_bytes(b"print('again')\n")  # the archive was packed from verified bytes
            assert (await client.get(MODEL)).content == first.content
            promoted.registry.promote("2")
            promoted.registry.rollback()
            champions.follow(promoted.registry)
            later = await client.get(MODEL)  # the same version, released again: the archive differs
            (tmp_path / "b.tar.gz").write_bytes(later.content)
            assert check_archive(tmp_path / "b.tar.gz", keys, agent="flights")[0].release.number == 3
            assert later.headers["etag"] != first.headers["etag"]
            monkeypatch.setenv("STILLHOUSE_TRUSTED_KEYS", PUBLIC)
            assert (await client.get(MODEL)).status_code == 503

    asyncio.run(request_models())
