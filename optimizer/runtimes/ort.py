"""ONNX Runtime, with exactly the execution provider that was asked for (:mod:`._ort_providers` has their table).

What is asked and not got is an error here: ONNX Runtime itself falls back to its CPU kernels when a provider cannot
load, or cannot run a node, and says so only in its log. Every session is opened with
``session.record_ep_graph_assignment_info`` and its nodes are counted by the provider that really has them. A provider
that compiles does so for shapes that it is told (:mod:`._ort_shapes`), and never again behind anybody's back.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import BadInput, MlOptError
from optimizer.runtime import Availability, Provider, Runtime, SessionOptions
from optimizer.runtimes._feeds import Limits, check_feeds
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._ort_context import compile_context
from optimizer.runtimes._ort_errors import ort_errors, plain
from optimizer.runtimes._ort_gpu import tf32_allowed, without_tf32
from optimizer.runtimes._ort_kernels import Watch
from optimizer.runtimes._ort_open import asked_of, session_options, vendor_session
from optimizer.runtimes._ort_providers import PROVIDERS, ProviderRow, check_got, devices_of, library
from optimizer.runtimes._ort_recorded import NONE, OPTIONS, run_options, same
from optimizer.runtimes._ort_shapes import Shapes, check_shapes, shapes_of
from optimizer.runtimes._tiny import TINY
from optimizer.types import JSON, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PROVIDERS", "RUNTIME", "OrtSession"]

#: ONNX Runtime's element types that numpy can hold.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


class OrtSession:
    """An ONNX file opened by ONNX Runtime with exactly the provider that was asked for."""

    def __init__(
        self,
        session: Any,
        path: Path,
        row: ProviderRow,
        limits: Limits,
        facts: dict[str, JSON],
        watch: Watch | None,
        shapes: Shapes | None = None,
        release: Callable[[], None] | None = None,
        again: Callable[[Mapping[str, str]], Any] | None = None,
    ) -> None:
        self._session = session
        self._again = again
        # Options of a run that is not to be recorded; of none, as long as nothing can be.
        self._plain: tuple[Any, ...] = ()
        self._recordings = 0
        self._watch = watch
        self._path = path
        self._row = row
        self._limits = limits
        self._profile = shapes.profile if shapes else None
        # A session that nobody closes gives the environment back when it is collected.
        self._release = weakref.finalize(self, release) if release else None
        self.facts = facts
        self.inputs = _specs("input", session.get_inputs(), path)
        self.outputs = _specs("output", session.get_outputs(), path)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once; raises :class:`BadInput` naming the input that does not fit."""
        self._check(feeds)
        with ort_errors(self._path, self.facts["provider"]):
            arrays = self._session.run(None, dict(feeds), *self._plain)
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def _check(self, feeds: Mapping[str, NDArray[np.generic]]) -> None:
        check_feeds(self.inputs, feeds, self._limits)
        check_shapes(self._profile, feeds, self.facts["provider"])

    def bind(self, feeds: Mapping[str, NDArray[np.generic]]) -> Callable[[], None]:
        """Inputs copied to the provider's device once, outputs written into its buffers of the first run.

        With the CUDA provider a call is one CUDA graph where the model can be recorded; ``facts["cuda_graph"]`` says
        whether it is. The first call to be bound opens the model once more for that, so that it is nothing for a
        session that other threads run at the same time.
        """
        self._check(feeds)
        self._open_to_record()
        binding = self._bound(feeds)
        options: tuple[Any, ...] = ()
        if self._plain:
            found = self._record(binding)
            if found is None:
                return self.bind(feeds)
            options = found
        run, path, provider = self._session.run_with_iobinding, self._path, self.facts["provider"]

        def call() -> None:
            try:
                run(binding, *options)
            except Exception:
                with ort_errors(path, provider):
                    raise

        return call

    def _bound(self, feeds: Mapping[str, NDArray[np.generic]]) -> Any:
        """A binding whose buffers are filled: it has run once."""
        import onnxruntime

        device = self._row.device
        with ort_errors(self._path, self.facts["provider"]):
            binding = self._session.io_binding()
            for name, array in feeds.items():
                value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
                binding.bind_ortvalue_input(name, value)
            for spec in self.outputs:
                binding.bind_output(spec.name, device)
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding, *self._plain)
            filled = binding.get_outputs()
            binding.clear_binding_outputs()
            for spec, value in zip(self.outputs, filled, strict=True):
                binding.bind_ortvalue_output(spec.name, value)
        return binding

    def _open_to_record(self) -> None:
        """Open the model so that its runs can be recorded; where that is refused, it stays as it is."""
        if self._again is None or self._plain:
            return
        try:
            self._session = self._again(OPTIONS)
        except MlOptError as error:
            self._cannot_record(error.message)
            return
        self._plain = (run_options(library(), NONE),)
        self.facts["cuda_graph"] = True

    def _record(self, binding: Any) -> tuple[Any, ...] | None:
        """Record a bound run; None where that fails: the model is then open as it was at first."""
        import numpy as np
        import onnxruntime

        self._recordings += 1
        options = run_options(onnxruntime, self._recordings)
        wanted = [value.numpy() for value in binding.get_outputs()]
        why = "its replay answers otherwise"
        try:
            # Into other memory: what the replay does not write, it does not get right by chance.
            binding.clear_binding_outputs()
            for spec, array in zip(self.outputs, wanted, strict=True):
                place = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(array), self._row.device, 0)
                binding.bind_ortvalue_output(spec.name, place)
            self._session.run_with_iobinding(binding, options)
            if same(wanted, [value.numpy() for value in binding.get_outputs()]):
                return (options,)
        except Exception as error:
            why = plain(str(error))
        assert self._again is not None
        self._session = None
        self._session = self._again({})
        self._plain = ()
        self._cannot_record(why)
        return None

    def _cannot_record(self, why: str) -> None:
        self._again = None
        self.facts |= {"cuda_graph": False, "why_no_cuda_graph": why}

    def runs(self) -> dict[str, JSON] | None:
        """Products by what they were computed in, read from ONNX Runtime's profile (:mod:`._ort_kernels`)."""
        return self._watch.read(self._session, self._path, self.facts["provider"]) if self._watch else None

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its arena and threads with it."""
        self._session = None
        if self._watch:
            self._watch.close()
        if self._release:
            self._release()


def _specs(what: str, args: list[Any], path: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for index, arg in enumerate(args):
        if arg.type == "tensor(bfloat16)":
            raise BadInput(
                f"{path}: {what} {arg.name!r} is bfloat16, which numpy cannot hold",
                "keep a model's inputs and outputs in float32; `ml-opt cast --to bf16` does",
            )
        if arg.type not in _DTYPES:
            raise BadInput(f"{path}: {what} {arg.name!r} is {arg.type}; only tensors of plain numbers can be used")
        dims = [d if d is not None else f"dim_{index}_{place}" for place, d in enumerate(arg.shape)]
        specs.append(TensorSpec(arg.name, _DTYPES[arg.type], tuple(dims)))
    return tuple(specs)


def _open(path: Path, options: SessionOptions, *, model: Mapping[str, JSON]) -> OrtSession:
    """Open an ``.onnx`` file.

    Raises:
        BadInput: the file cannot be used.
        MissingPiece: the provider cannot load on this machine.
        GateFailed: the provider loaded, and some of the graph was given to another one.
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    return _opened(str(path), path, options, model)


def _opened(source: str | bytes, path: Path, options: SessionOptions, model: Mapping[str, JSON]) -> OrtSession:
    row = PROVIDERS[options.provider.name]
    asked = asked_of(options, row)
    started = time.perf_counter()
    onnxruntime = library()
    devices = devices_of(onnxruntime, options.provider.name, row, asked.precision)
    if row.compiles and isinstance(source, str):
        asked = replace(asked, shapes=shapes_of(path, model))
    facts: dict[str, JSON] = {
        "provider": options.provider.name,
        "precision": asked.precision,
        "threads": asked.threads,
        "nodes": {},
        "load_seconds": 0.0,
        "onnxruntime": onnxruntime.__version__,
    }
    release = None
    if row.device == "cuda":
        facts["tf32"] = tf32_allowed(options, asked.shapes)
    if row.compiles:
        profile = asked.shapes.profile if asked.shapes else None
        facts["profile"] = profile.to_json() if profile else None
        release = None if facts["tf32"] else without_tf32()
    try:
        settings = session_options(onnxruntime, asked)
        watch = Watch(settings) if options.watch else None

        def opened(more: Mapping[str, str] | None = None) -> Any:
            return vendor_session(onnxruntime, source, path, row, asked, settings, devices, more)

        session = opened()
        facts["nodes"] = check_got(onnxruntime, session, options.provider.name, row, path)
    except BaseException:
        if release:
            release()
        raise
    if row.device == "cpu":
        facts["huge_pages"] = onto_huge_pages()
    facts["load_seconds"] = time.perf_counter() - started
    limits = model.get("limits") or {}
    again = opened if row.records and options.extra.keys().isdisjoint(OPTIONS) else None
    return OrtSession(session, path, row, limits, facts, watch, asked.shapes, release, again)


def _available(provider: str) -> Availability:
    """Try a provider for real, with a model of one node."""
    try:
        session = _opened(TINY, Path("a model of one node"), SessionOptions(Provider(provider), threads=1), {})
    except MlOptError as error:
        return Availability(provider, False, error.message, error.hint)
    facts: dict[str, JSON] = {"onnxruntime": session.facts["onnxruntime"]}
    row = PROVIDERS[provider]
    if row.plugin:
        facts["plugin"] = row.plugin_version
    session.close()
    return Availability(provider, True, facts=facts)


RUNTIME = Runtime(
    name="onnxruntime",
    help="ONNX Runtime and its execution providers.",
    providers={name: row.precisions for name, row in PROVIDERS.items()},
    open=_open,
    available=_available,
    compile=compile_context,
    onnx=True,
)
