"""What int8 and bf16 are on the processor that tests run on."""

from __future__ import annotations

from optimizer.environment import cpu_facts, has_bf16, has_vnni
from optimizer.quantizing.promise import saturation

__all__ = ["BF16", "EXACT", "SATURATES", "VNNI"]

VNNI, BF16 = (has(cpu_facts()["features"]) for has in (has_vnni, has_bf16))
#: What every quantizer says where sums of int8 products saturate; nothing elsewhere.
SATURATES = saturation(reduce_range=False)
#: Options with which int8 is exact here.
EXACT = {"reduce_range": True} if SATURATES else {}
