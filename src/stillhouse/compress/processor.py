"""Which processor this is: int8 arithmetic, its speed and its rounding, depends on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from stillhouse.records import Record

__all__ = ["Processor", "parse_cpuinfo", "processor"]

# The instruction sets that ONNX Runtime's float32 and int8 kernels are chosen by.
_FLAGS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


class Processor(Record):
    """A processor's model name and those of its instruction sets that matter here."""

    name: str
    flags: tuple[str, ...] = ()


@cache
def processor() -> Processor:
    """This machine's processor; where there is no ``/proc/cpuinfo``, only the name that Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> Processor:
    """The first processor in the text of ``/proc/cpuinfo`` (x86: ``flags``, ARM: ``Features``)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = (fields.get("flags") or fields.get("Features") or "").split()
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Processor(name=name, flags=tuple(flag for flag in _FLAGS if flag in present))
