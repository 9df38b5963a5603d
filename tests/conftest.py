"""Set before any test imports torch, Prefect or MLflow: see stillhouse.config.embedded_environment."""

import os
import tempfile

os.environ.setdefault("STILLHOUSE_HOME", tempfile.mkdtemp(prefix="stillhouse-tests-"))

from stillhouse import config

for _name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED",
              "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "GX_ANALYTICS_ENABLED"):  # fmt: skip
    os.environ.setdefault(_name, config.embedded_environment()[_name])
