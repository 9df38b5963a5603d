"""Artifacts escape values from the data: no broken tables, links, images or headings."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from prefect.types.names import raise_on_name_alphanumeric_dashes_only

from stillhouse import pages
from stillhouse.records import Reason, SliceDrift, Verdict
from stillhouse.watching.publishing import format_slices
from tasks.common import artifact_key

VALUES = (
    "search|browse",
    "two\nlines",
    "<img src=x onerror=alert(1)>",
    "[a](http://b.c)",
    "`x|y`",
    "\u202ex",
    "\x1b[31m",
    "a\\|b",
)


@pytest.mark.parametrize("value", VALUES)
def test_slice_is_one_cell_of_one_row(value: str) -> None:
    drift = SliceDrift(
        slice=f"tool={value}", share_reference=0.1, share_current=0.2, rows=10, disagreement=0.1, excess=0
    )
    lines = [line for line in format_slices((drift,)).splitlines() if line.startswith("|")]
    assert len(lines) == 3 and {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {8}
    assert "<img" not in lines[2] and "](" not in lines[2].replace("\\]", "") and "\x1b" not in lines[2]


@pytest.mark.parametrize("value", VALUES)
def test_reason_is_one_list_item(value: str) -> None:
    reason = Reason(
        measure=f"{value}:test", value=0.8, threshold=0.1, failed=False, text=f"on place={value} (245 rows)"
    )
    verdict = Verdict(
        verdict_id="v1",
        kind="gate",
        agent="toy",
        as_of=datetime(2024, 1, 1, tzinfo=UTC),
        result="promoted",
        summary=f"# place={value}",
        reasons=(reason,),
    )
    assert (
        "\n" not in pages.format_reasons((reason,)) and "<img" not in pages.format_reasons((reason,)).split("`: ")[-1]
    )
    heading = pages.format_heading(verdict).splitlines()
    assert len(heading) == 5 and heading[2].startswith("\\# place=")


@pytest.mark.parametrize("agent", ["toy", "a_b", "a-b", "a1_"])
def test_artifact_key_is_valid_for_each_agent_name(agent: str) -> None:
    raise_on_name_alphanumeric_dashes_only(artifact_key("watch", agent))
