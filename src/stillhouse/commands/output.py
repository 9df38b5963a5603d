"""The console that all commands print to, and the format of numbers and records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from stillhouse.terminal import Console

if TYPE_CHECKING:
    from stillhouse.records import Record

__all__ = ["console", "format_number", "format_percent", "print_json"]

console = Console()


def format_number(value: float | None) -> str:
    """A number with four significant digits; empty for None.

    >>> format_number(0.123456), format_number(None)
    ('0.1235', '')
    """
    return "" if value is None else f"{value:.4g}"


def format_percent(share: float | None) -> str:
    """A share in percent; empty for None.

    >>> format_percent(0.5)
    '50.0%'
    """
    return "" if share is None else f"{share:.1%}"


def print_json(record: Record) -> None:
    """Print a record as one JSON object, never wrapped."""
    typer.echo(record.model_dump_json(indent=2))
