"""Which processor this is: int8 arithmetic, its speed and its rounding, depends on it."""

from __future__ import annotations

from functools import cache

from stillhouse import variant
from stillhouse.records import Record

__all__ = ["Processor", "processor"]


class Processor(Record):
    """A processor's model name and those of its instruction sets that matter here."""

    name: str
    flags: tuple[str, ...] = ()

    @property
    def adds_whole_products(self) -> bool:
        """Whether pairs of 8-bit products are summed without an end at 16 bits: with VNNI, and on all of ARM."""
        return not {"avx", "avx2", "avx512f"} & set(self.flags) or bool({"avx512_vnni", "avx_vnni"} & set(self.flags))


@cache
def processor() -> Processor:
    """This machine's processor."""
    return Processor.model_validate(variant.processor())
