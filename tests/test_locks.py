"""The locks of an agent: a run that waits for one says so."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from filelock import Timeout

from stillhouse.locks import refresh_lock


@pytest.mark.usefixtures("agents")
def test_waiting_for_a_lock_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    held, waiting = threading.Event(), threading.Event()

    def hold() -> None:
        with refresh_lock("toy"):
            held.set()
            waiting.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    with caplog.at_level(logging.INFO, logger="stillhouse"):
        with pytest.raises(Timeout):
            refresh_lock("toy").acquire(timeout=0)
        assert not caplog.records
        threading.Timer(0.2, waiting.set).start()
        with refresh_lock("toy") as lock:
            assert Path(lock.lock_file).stem == lock.name == "refresh-toy"
    holder.join()
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "toy: waiting for the refresh lock: another run on this machine holds it"
    assert second.startswith("toy: got the refresh lock after")
