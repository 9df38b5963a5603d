"""The door's settings: ``STILLHOUSE_HOME/gateway/gateway.yaml``, which may be absent, and its secret key."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from stillhouse.config import home
from stillhouse.config.base import PositiveDuration, Section
from stillhouse.config.bounded_yaml import read_yaml
from stillhouse.config.explain import explain_errors
from stillhouse.errors import ConfigError

__all__ = ["GatewaySettings", "Price", "gateway_folder", "load_settings", "secret_key"]

_KEY_BYTES = 32


class Price(Section):
    """What a model costs, in any unit."""

    per_million_input: float = Field(default=0.0, ge=0, description="price of a million tokens sent")
    per_million_output: float = Field(default=0.0, ge=0, description="price of a million tokens answered")


class GatewaySettings(Section):
    """The keys of ``gateway.yaml``; all have defaults.

    >>> GatewaySettings().retention.days
    30
    """

    tenant: Literal["credential", "header", "joined"] = Field(
        default="credential", description="what tells tenants apart: the caller's credential, a header, or nothing"
    )
    tenant_header: str | None = Field(default=None, description="the header, for tenant: header")
    credential: str | None = Field(
        default=None, description="the header that identifies a caller, where callers send several credentials"
    )
    accepted_for: PositiveDuration = Field(
        default=timedelta(minutes=10), description="how long a credential that the upstream accepted counts"
    )
    retention: PositiveDuration = Field(default=timedelta(days=30), description="how long requests are kept")
    max_tasks: int = Field(default=200, ge=1, le=10_000, description="tasks that are recorded")
    max_tasks_per_tenant: int = Field(default=50, ge=1, le=10_000)
    max_labels: int = Field(
        default=200, ge=2, le=1000, description="a task without a schema whose answers are more is not closed"
    )
    max_waiting: int = Field(default=1000, ge=1, le=1_000_000, description="unwritten records; more are dropped")
    max_waiting_bytes: int = Field(default=64 * 2**20, ge=2**20, le=2**34, description="size of unwritten records")
    max_record_bytes: int = Field(
        default=2**20, ge=2**10, le=2**28, description="a request or an answer that is larger is not recorded"
    )
    connect_timeout: PositiveDuration = Field(
        default=timedelta(seconds=10), description="how long to wait for a connection to the upstream"
    )
    prices: dict[str, Price] = Field(default_factory=dict, description="by model, as requested")

    @field_validator("tenant_header", "credential")
    @classmethod
    def _require_header(cls, value: str | None) -> str | None:
        if value is not None and not (value.isascii() and value.replace("-", "").replace("_", "").isalnum()):
            raise ValueError(f"{value!r} is no name of a header")
        return value

    @model_validator(mode="after")
    def _require_tenant_header(self) -> GatewaySettings:
        if (self.tenant == "header") != (self.tenant_header is not None):
            raise ValueError("tenant: header and tenant_header: belong together")
        return self


def gateway_folder() -> Path:
    """The folder of the door's settings, key and records."""
    return home() / "gateway"


def load_settings() -> GatewaySettings:
    """Read ``gateway.yaml``; the defaults if there is none.

    :raises ConfigError: naming the file, the line, the key and the remedy.
    """
    path = gateway_folder() / "gateway.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return GatewaySettings()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    try:
        root, content = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from error
    if content is None:
        return GatewaySettings()
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1: must be a mapping with the keys {', '.join(GatewaySettings.model_fields)}")
    try:
        return GatewaySettings.model_validate(content)
    except ValidationError as error:
        messages = explain_errors(error, root, content, GatewaySettings.model_json_schema())
        raise ConfigError("\n".join(f"{path}:{message}" for message in messages)) from error


def secret_key() -> bytes:
    """The key of this installation's hashes and draws; made at the first use, readable by its owner only.

    :raises ConfigError: if the file is damaged, or cannot be made.
    """
    path = gateway_folder() / "secret.key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = path.with_name(f".{secrets.token_hex(8)}.key")
            try:
                with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(secrets.token_hex(_KEY_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
                with suppress(FileExistsError):  # another process was first: its key counts
                    os.link(new, path)
            finally:
                new.unlink(missing_ok=True)
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no hexadecimal number"
        raise ConfigError(f"{path}: cannot be read or made ({reason})") from None
    if len(key) != _KEY_BYTES:
        raise ConfigError(
            f"{path}: must hold {2 * _KEY_BYTES} hexadecimal digits; without the right key, callers and tenants get "
            "other hashes: restore the file, or remove it to begin anew"
        )
    return key
