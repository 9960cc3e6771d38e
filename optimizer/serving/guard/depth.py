"""How deep JSON is nested, told before it is parsed."""

from __future__ import annotations

import re

__all__ = ["MOST", "too_deep"]

#: Levels of objects and lists in one request. A tensor of five dimensions takes nine, a schema for an answer some more.
MOST = 64

#: A string, to its end or to that of the text: no place is looked at twice, whatever is escaped.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))


def too_deep(body: bytes | memoryview, most: int = MOST) -> bool:
    """Whether a JSON text opens more than ``most`` levels at once. What is no JSON may be told either way.

    A text with fewer brackets than that is answered at the speed of counting bytes, which is nearly every one.
    """
    import numpy as np

    text = bytes(body)
    if text.count(b"[") + text.count(b"{") <= most:
        return False
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _OTHERS), np.uint8)
    # In ASCII what opens and what closes differ by two, and so in the second bit: [ 0x5B, ] 0x5D, { 0x7B, } 0x7D.
    steps = np.where(brackets & 2, 1, -1).astype(np.int8)
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > most)
