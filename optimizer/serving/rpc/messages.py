"""The messages of ``open_inference.proto``, as classes.

Built at run time from the compiled description beside it, in a pool of their own: in the pool that all of a process
share, the names would collide with those of another client or server of the same protocol (tritonclient, kserve), and
code that protoc generates asks for a runtime of its own age.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

__all__ = ["PACKAGE", "message"]

#: Of every message, and of the service.
PACKAGE = "inference"
_COMPILED = Path(__file__).with_name("open_inference.desc")


@functools.cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def message(name: str) -> Any:
    """The class of a message; needs ``protobuf``.

    Args:
        name: as the file has it, e.g. ``ModelInferRequest``.
    """
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
