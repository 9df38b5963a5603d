"""The requests that were begun and are not carried out: one file per agent and request, without a row's content."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from stillhouse import config
from stillhouse.errors import StoreError
from stillhouse.files import write_atomic
from stillhouse.records import PendingForget

__all__ = ["begin", "end", "pending"]


def begin(request: PendingForget) -> None:
    """Write the request; it survives a power failure."""
    folder = _folder(request.agent)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{request.request_id}.json", request.model_dump_json(), durable=True, mode=0o600)


def pending(agent: str) -> list[PendingForget]:
    """The requests that were begun, the oldest first.

    :raises StoreError: if one cannot be read.
    """
    requests = list[PendingForget]()
    for file in sorted(_folder(agent).glob("*.json")):
        try:
            requests.append(PendingForget.model_validate_json(file.read_bytes()))
        except ValidationError as error:
            raise StoreError(f"{file} is no request to forget: remove it, and ask for the rows again") from error
    return sorted(requests, key=lambda request: request.requested_at)


def end(request: PendingForget) -> None:
    """Remove a request that was carried out."""
    (_folder(request.agent) / f"{request.request_id}.json").unlink(missing_ok=True)


def _folder(agent: str) -> Path:
    return config.home() / "forgetting" / agent
