"""Ours: ``python with_stillhouse.py scan FILE``, ``compare REFERENCE CURRENT`` or ``compare_known PROFILE CURRENT``."""

import json
import sys
from pathlib import Path

import pyarrow.parquet  # noqa: F401  (an import, and so not counted, as those of the peers)
from usage import cpu, peak_mb

from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.profile import Profile
from stillhouse.drift.scan import scan

work, first, *rest = sys.argv[1:]
before = cpu()
profiles = [Profile.from_bytes(Path(first).read_bytes()) if work == "compare_known" else scan(first)]
profiles += [scan(file, like=profiles[0]) for file in rest]
drifts = compare_profiles(*profiles) if len(profiles) == 2 else ()
measured = {drift.column: [drift.psi, drift.ks, drift.wasserstein] for drift in drifts}
print(json.dumps({"cpu_s": cpu() - before, "peak_mb": peak_mb(), "columns": measured}))
