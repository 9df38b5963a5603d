"""stillhouse's scan: ``python with_stillhouse.py COMMAND``.

Commands: ``scan FILE``, ``compare REFERENCE CURRENT`` and ``compare_known PROFILE CURRENT``.
"""

import json
import sys
from pathlib import Path

import pyarrow.parquet  # noqa: F401  (imports are not counted, on any side)
from usage import cpu, peak_mb

from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.profile import Profile
from stillhouse.drift.scan import scan

command, first_file, *other_files = sys.argv[1:]
start = cpu()
profiles = [Profile.from_bytes(Path(first_file).read_bytes()) if command == "compare_known" else scan(first_file)]
profiles += [scan(file, like=profiles[0]) for file in other_files]
drifts = compare_profiles(*profiles) if len(profiles) == 2 else ()
distances = {drift.column: [drift.psi, drift.ks, drift.wasserstein] for drift in drifts}
print(json.dumps({"cpu_s": cpu() - start, "peak_mb": peak_mb(), "columns": distances}))
