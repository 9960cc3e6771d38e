"""Answers that are kept: off unless it is asked for, and for models whose answer follows from their inputs alone.

What is kept is found by the whole of what decides it: which artifact answers, as what it was loaded and on what it
runs, and every byte of the inputs with their names, types and shapes. A digest of that says where to look; the whole
is compared with what lies there, so that two requests with one digest get their own answers. Another version of a
model, another variant and another provider have other keys: nothing has to be thrown away when one changes.

Text generators are never asked here: they sample, and they do not go through the batcher.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from optimizer.digest import digest_json
from optimizer.engines.flavors import FLAVORS
from optimizer.environment import cpu_facts, version_of
from optimizer.runtimes._ort_gpu import RTX
from optimizer.serving.kept import Kept
from optimizer.serving.tensors import DATATYPES, datatype, from_bytes, to_bytes
from optimizer.serving.waiting import answers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimizer.runtime import Session
    from optimizer.serving.call import Call
    from optimizer.serving.metrics import Metrics
    from optimizer.serving.served import Served
    from optimizer.types import JSON

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["FACTS", "Cache", "answered", "key_of", "pack", "unpack"]

#: Parameters of V2 that say how an answer is sent, and in what time, and not what it is.
_FORM = frozenset({"binary_data_output", "timeout", "priority"})

#: What a session says of what it got that may show in an answer; those of its libraries are what was really loaded.
FACTS = ("provider", "precision", "threads", "tf32", "flavor", "gpu", "onnxruntime", "openvino",
          *(flavor.module for flavor in FLAVORS.values()))  # fmt: skip
#: Distributions that bring kernels, among them those of ONNX Runtime's providers, whose sessions do not name them.
_LIBRARIES = ("ml-opt", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", *RTX, "openvino",
              *(name for flavor in FLAVORS.values() for name in flavor.distributions))  # fmt: skip


class Cache:
    """The answers of a server's models.

    Args:
        kept: where they lie.
        metrics: of the server; counts hits and misses there.
        digest: of a key, by which it is looked for.
    """

    def __init__(
        self, kept: Kept, metrics: Metrics, digest: Callable[[bytes], bytes] = lambda key: hashlib.sha256(key).digest()
    ) -> None:
        from prometheus_client import Counter, Gauge

        self.kept = kept
        self._digest = digest
        self._identities: WeakKeyDictionary[Session, str] = WeakKeyDictionary()
        labels, registry = ("model", "version"), metrics.registry
        self._hits = Counter("ml_cache_hits", "Answers that were kept before.", labels, registry=registry)
        self._misses = Counter("ml_cache_misses", "Answers that were not.", labels, registry=registry)
        self._gauges: tuple[Gauge, Gauge] | None = None
        if kept.local:
            several = "livesum"  # of workers, each of which keeps its own
            self._gauges = (
                Gauge("ml_cache_bytes", "Bytes of kept answers and their keys.", registry=registry,
                      multiprocess_mode=several),
                Gauge("ml_cache_entries", "Answers that are kept.", registry=registry, multiprocess_mode=several),
            )  # fmt: skip

    def key(self, served: Served, feeds: Arrays, parameters: Mapping[str, JSON]) -> bytes:
        """The whole of what decides an answer; see :func:`key_of`."""
        session = served.session
        assert session is not None
        identity = self._identities.get(session)
        if identity is None:
            identity = self._identities[session] = _identity(served)
        return key_of(identity, feeds, parameters)

    async def find(self, served: Served, keys: Sequence[bytes]) -> list[dict[str, NDArray[np.generic]] | None]:
        """The answers that were kept for these very keys, looked for together; None where there is none."""
        start = time.perf_counter()
        found: list[dict[str, NDArray[np.generic]] | None] = [None] * len(keys)
        for place, lying in enumerate(await self.kept.get([self._digest(key) for key in keys])):
            if lying is not None and lying[0] == keys[place]:
                with contextlib.suppress(Exception):  # what others wrote into Redis may be anything
                    found[place] = unpack(lying[1])
        took = (time.perf_counter() - start) / max(1, len(keys))
        for each in found:
            part, counter = ("cache_miss", self._misses) if each is None else ("cache_hit", self._hits)
            served.statistics.add(part, took)
            counter.labels(served.name, served.version).inc()
        return found

    async def keep(self, key: bytes, outputs: Arrays) -> None:
        """Keep an answer, unless it holds values that have no form here."""
        packed = pack(outputs)
        if packed is not None:
            await self.kept.put(self._digest(key), key, packed)
            if self._gauges is not None:
                size, entries = self._gauges
                size.set(self.kept.size)
                entries.set(self.kept.entries)

    async def close(self) -> None:
        """Give connections back."""
        await self.kept.close()


async def answered(
    call: Call, served: Served, requests: Sequence[Arrays], end: float, parameters: Mapping[str, JSON] | None = None
) -> list[dict[str, NDArray[np.generic]]]:
    """Answers to requests in their order: those that are kept, and the others' from the model's queue.

    Args:
        call: of the client; its ``times`` tell of ``cache_hit`` where all were kept, of ``cache_miss`` else.
        served: the model; it has a queue.
        requests: inputs of each.
        end: when they have to be answered, by ``time.perf_counter()``.
        parameters: of the request.

    Raises:
        Problem: as the queue and the model have it.
    """
    cache, batcher = call.state.cache, served.batcher
    assert batcher is not None
    found: list[Any] = [None] * len(requests)
    keys: list[bytes] = []
    if cache is not None:
        start = time.perf_counter()
        keys = [cache.key(served, feeds, parameters or {}) for feeds in requests]
        found = list(await cache.find(served, keys))
        hits = sum(each is not None for each in found)
        call.times["cache_hit" if hits == len(found) else "cache_miss"] = time.perf_counter() - start
        call.notes["cache"] = f"{hits} of {len(found)}"
    left = [place for place, each in enumerate(found) if each is None]
    if left:
        tickets = batcher.submit_all([requests[place] for place in left], end, call.id)
        for place, outputs in zip(left, await answers(call, tickets), strict=True):
            found[place] = outputs
            if cache is not None:
                await cache.keep(keys[place], outputs)
        if served.metrics is not None:
            for ticket in tickets:
                served.metrics.wait.observe(ticket.waited)
    return found


def key_of(identity: str, feeds: Arrays, parameters: Mapping[str, JSON]) -> bytes:
    """A text that says identity, parameters, and every input's name, type, shape and bytes, so that no two read alike.

    Args:
        identity: of the model.
        feeds: its inputs, in any order.
        parameters: of the request; those that only say how it is sent are left out.
    """
    told = {name: value for name, value in parameters.items() if name not in _FORM}
    blobs = [(name, feeds[name], to_bytes(feeds[name])) for name in sorted(feeds)]
    tensors = [[name, array.dtype.name, list(array.shape), len(blob)] for name, array, blob in blobs]
    head = json.dumps([identity, tensors, told], sort_keys=True).encode()
    return b"".join((len(head).to_bytes(8, "little"), head, *(blob for _, _, blob in blobs)))


def pack(outputs: Arrays) -> bytes | None:
    """Arrays as bytes: a head in JSON, and each one's values as V2 sends them; None where one has no such form."""
    import numpy as np

    tensors, blobs = [], []
    for name, array in outputs.items():
        if array.dtype == object:
            if not all(isinstance(each, str) for each in array.ravel()):
                return None
        elif array.dtype.name not in DATATYPES.values() or array.dtype != np.dtype(array.dtype.name).newbyteorder("<"):
            return None
        blobs.append(to_bytes(array))
        tensors.append([name, datatype(array.dtype.name), list(array.shape), len(blobs[-1])])
    head = json.dumps(tensors).encode()
    return b"".join((len(head).to_bytes(8, "little"), head, *blobs))


def unpack(packed: bytes) -> dict[str, NDArray[np.generic]]:
    """What :func:`pack` was given; nobody may write into these arrays.

    Raises:
        Exception: of any kind: this was not written by :func:`pack`.
    """
    start = 8 + int.from_bytes(packed[:8], "little")
    found = {}
    for name, kind, shape, size in json.loads(packed[8:start]):
        # A copy of its own, as numbers have to lie where their type wants them.
        found[name] = from_bytes(memoryview(packed[start : start + size]), kind, tuple(shape), name)
        start += size
    return found


def _identity(served: Served) -> str:
    """Whose answers these are: what was loaded, of which content, and what computes it.

    A file that is no artifact has no digest that covers all of it: its answers are good for as long as it is loaded.
    """
    if served.artifact is None:
        return uuid.uuid4().hex
    manifest, facts, cpu = served.artifact.manifest, served.facts, cpu_facts()
    return digest_json(
        {
            "ref": served.ref,
            "key": manifest.key,
            "files": manifest.files,
            "runs": {name: facts.get(name) for name in FACTS},
            # Another kernel rounds otherwise.
            "versions": {name: version_of(name) or "" for name in _LIBRARIES},
            "cpu": [cpu[name] for name in ("vendor", "model", "features")],
            "gpus": served.gpus,
        }
    )
