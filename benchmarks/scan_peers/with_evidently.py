"""evidently's drift preset on two Parquet files: ``python with_evidently.py REFERENCE CURRENT [METHOD]``.

``METHOD`` is its drift method for numbers; without it, evidently chooses.
"""

import json
import sys

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
from usage import cpu, peak_mb

reference, current, *method = sys.argv[1:]
start = cpu()
preset = DataDriftPreset(num_method=method[0]) if method else DataDriftPreset()
run = Report([preset]).run(pd.read_parquet(current), pd.read_parquet(reference))
scores = {
    metric["config"]["column"]: float(metric["value"])
    for metric in run.dict()["metrics"]
    if "column" in metric["config"]
}
print(json.dumps({"cpu_s": cpu() - start, "peak_mb": peak_mb(), "columns": scores}))
