"""Set before any test imports torch, Prefect or MLflow: see stillhouse.config.embedded_environment."""

import os
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ or "STILLHOUSE_HOME" not in os.environ:  # each worker has its own
    os.environ["STILLHOUSE_HOME"] = tempfile.mkdtemp(prefix="stillhouse-tests-")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from stillhouse import config

# One key for all tests, whatever STILLHOUSE_HOME they have: stores are copied from one to another.
_KEY = Ed25519PrivateKey.from_private_bytes(b"the tests' own key, no secret: .")
os.environ["STILLHOUSE_SIGNING_KEY"] = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
os.environ["STILLHOUSE_TRUSTED_KEYS"] = (
    _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
)

for _name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED",
              "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "GX_ANALYTICS_ENABLED"):  # fmt: skip
    os.environ.setdefault(_name, config.embedded_environment()[_name])


@pytest.fixture(scope="session")
def clinc150() -> Path:
    """The folder of CLINC150: where STILLHOUSE_DATA names one, else beside the clone. Tests download nothing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.setdefault("STILLHOUSE_DATA", str(beside))) / "clinc150"
    if not (folder / "data_full.json").exists():
        pytest.skip(f"CLINC150 is not in {folder}; STILLHOUSE_DATA names the folder that has it as clinc150/")
    return folder
