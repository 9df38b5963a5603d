"""Kolmogorov–Smirnov and Wasserstein-1 of every number by scipy: ``python with_scipy.py REFERENCE CURRENT``.

Reads one column at a time with pyarrow, the cheapest way; categories and booleans are left out.
"""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import ks_2samp, wasserstein_distance
from usage import cpu, peak_mb


def is_number(data_type: pa.DataType) -> bool:
    """Whether the column is a number or a date, as in stillhouse."""
    return bool(pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_date32(data_type))


def read_values(file: str, name: str) -> np.ndarray:
    """The non-missing values of a column, as float64."""
    column = pq.read_table(file, columns=[name]).column(0).drop_null()
    numeric = column.cast(pa.int32()) if pa.types.is_date32(column.type) else column
    return numeric.to_numpy().astype(np.float64)


reference, current = sys.argv[1:]
start = cpu()
distances = {}
for field in pq.read_schema(reference):
    if is_number(field.type):
        sides = [read_values(file, field.name) for file in (reference, current)]
        distances[field.name] = [float(ks_2samp(*sides).statistic), float(wasserstein_distance(*sides))]
print(json.dumps({"cpu_s": cpu() - start, "peak_mb": peak_mb(), "columns": distances}))
