"""This machine's processor: the speed and the rounding of int8 arithmetic depend on it."""

from __future__ import annotations

from functools import cache

from stillhouse import variant
from stillhouse.records import Record

__all__ = ["Processor", "processor"]


class Processor(Record):
    """A processor's model name, and those of its instruction sets that int8 arithmetic depends on."""

    name: str
    flags: tuple[str, ...] = ()

    @property
    def sums_without_saturation(self) -> bool:
        """Whether pairs of 8-bit products are summed in more than 16 bits: with VNNI, and on every ARM processor."""
        return not {"avx", "avx2", "avx512f"} & set(self.flags) or bool({"avx512_vnni", "avx_vnni"} & set(self.flags))


@cache
def processor() -> Processor:
    """This machine's processor."""
    return Processor.model_validate(variant.processor())
