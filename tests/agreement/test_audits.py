"""The audit's draw: at its share, by a secret key, the same everywhere."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from stillhouse.agreement.audits import AuditDraw, load_audit_draw
from stillhouse.errors import ConfigError

IDS = [f"row-{i}" for i in range(20_000)]


def test_the_share_is_kept_and_a_larger_one_holds_the_smaller() -> None:
    draw = AuditDraw(b"a key of the test")
    small, large = draw.mask(IDS, 0.05), draw.mask(IDS, 0.2)
    assert 0.045 < sum(small) / len(IDS) < 0.055 and 0.19 < sum(large) / len(IDS) < 0.21
    assert all(b for a, b in zip(small, large, strict=True) if a)
    assert all(draw.mask(IDS, 1.0)) and not any(draw.mask(IDS, 0.0))


def test_another_key_draws_other_rows() -> None:
    first, second = AuditDraw(b"one").mask(IDS, 0.05), AuditDraw(b"two").mask(IDS, 0.05)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    assert both / len(IDS) < 0.005


def test_the_key_is_made_once_and_nobody_else_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    drawn = load_audit_draw().mask(IDS, 0.05)
    key = tmp_path / "home" / "keys" / "audit.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and load_audit_draw().mask(IDS, 0.05) == drawn
    key.write_text("no key")
    with pytest.raises(ConfigError, match="not the key of an audit"):
        load_audit_draw()
