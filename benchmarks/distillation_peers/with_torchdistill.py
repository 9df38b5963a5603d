"""Runs in a peer's environment: torchdistill's losses on given logits.

``python with_torchdistill.py IN.npz OUT.json``. The file holds ``logits`` and ``teacher`` ``[n, K]``, ``outcomes``
``[n]``, all known, ``temperature`` and ``weight`` of the labels.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torchdistill.losses.mid_level import KDLoss, LogitStdKDLoss


def main() -> None:
    """Write the value of each compared loss that torchdistill has."""
    inputs = np.load(sys.argv[1])
    logits, teacher_logits, labels = (torch.from_numpy(inputs[name]) for name in ("logits", "teacher", "outcomes"))
    temperature, weight = float(inputs["temperature"]), float(inputs["weight"])
    paths = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": temperature,
        "alpha": weight,
    }
    losses = {
        name: float(loss_class(**paths)({".": {"output": logits}}, {".": {"output": teacher_logits}}, labels))
        for name, loss_class in (("kd", KDLoss), ("standardised", LogitStdKDLoss))
    }
    Path(sys.argv[2]).write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
