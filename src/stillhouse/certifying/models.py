"""Load the models that a verdict names, afresh from MLflow: a copy on this machine would hide an exchanged file."""

from __future__ import annotations

from pathlib import Path

from stillhouse.certifying.findings import Findings
from stillhouse.errors import RegistryError
from stillhouse.evaluate.sources import describe_model
from stillhouse.records import ModelSource
from stillhouse.registry import Registry

__all__ = ["fetch_model"]


def fetch_model(registry: Registry, source: ModelSource, version: str, folder: Path, findings: Findings) -> Path | None:
    """Download the files of a version, check their signature, and compare them with the recorded checksum.

    :param version: its number.
    :param folder: for the downloads.
    :returns: the folder with its files; None if they cannot be used, which is noted.
    """
    advice = "Restore MLflow's database and files from a backup"
    files = None
    with findings.noting_missing(f"model {source.name} ({source.role.replace('_', ' ')})", advice):
        ref = registry.version(registry.agent, version)
        if ref is None:
            raise RegistryError(f"MLflow has no version {version}")
        files = registry.models.fetch(ref, folder / f"{source.role}-{version}")
        findings.compare_model(source, describe_model(source.role, source.name, files))
    return files
