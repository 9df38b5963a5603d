"""Training histories and update probes that were stored under old names are still read."""

from __future__ import annotations

import json

from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.online import UpdateProbe


def test_old_names_of_a_training_history_are_read() -> None:
    change = {"step": 9, "setting": "made_up_rows", "value": 1.0, "reason": "lower loss"}
    stored = {"history": [], "changes": [change], "steps": 9, "stopped": False, "rows": 40, "control": None}
    stored |= {"uncontrolled": 2, "uncontrolled_why": "no difference", "untried": 1}
    history = TrainingHistory.model_validate_json(json.dumps(stored))
    assert (history.refreshes_without_control, history.control_skipped_because) == (2, "no difference")
    assert history.refreshes_without_synthetic_comparison == 1 and history.synthetic_rows_helped
    assert TrainingHistory.model_validate_json(history.model_dump_json()) == history


def test_old_names_of_an_update_probe_are_read() -> None:
    probe = UpdateProbe.model_validate({"rows": 99, "before": 0.3, "after": 0.1, "harmless": 0.2})
    assert probe.null_mean == 0.2 and probe.passed
    assert UpdateProbe.model_validate_json(probe.model_dump_json()) == probe
