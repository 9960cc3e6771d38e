"""onnxruntime-genai and its engine: several texts at once, guided ones too.

On a processor the engine batches statically: it takes up to four texts that wait (the number is written in its
scheduler, and no setting of ``genai_config.json`` changes it), and begins none before all of them are over. Only
graphs with PagedAttention, which run on GPUs, join a batch under way. So a cancelled text ends at once for its reader,
and its place is free when the rest of its batch has ended; :mod:`.ort_generator` frees it at the next step.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_threads
from optimizer.errors import BadInput, GateFailed, MissingPiece, MlOptError
from optimizer.generating.asked import check_asked, check_read
from optimizer.generating.config import read_config
from optimizer.generating.guide import check_schema, spaced
from optimizer.generating.stream import Stream
from optimizer.generator import Finish, GeneratorOptions, GeneratorRuntime, Piece, Sampling
from optimizer.runtimes._huge_pages import onto_huge_pages
from optimizer.runtimes._ort_decoder import Decoder
from optimizer.runtimes._ort_graph import open_session
from optimizer.runtimes._ort_load import NO_GPU, missing_library
from optimizer.runtimes._ort_providers import PROVIDERS, devices_of, library
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GENERATOR", "GenaiGenerator"]

#: What the engine batches without PagedAttention (``static_batch_size`` of its scheduler).
_STATIC = 4
_EVENTS = 64
#: Of :class:`Sampling`, what a turn of it has no word for.
_UNKNOWN = ("min_p", "presence_penalty", "frequency_penalty", "logit_bias")


@dataclass
class _Text:
    prompt: NDArray[np.int32]
    sampling: Sampling
    stream: Stream
    left: int
    stops: frozenset[int]
    request: Any = None
    turn: int = 0
    over: bool = False


class GenaiGenerator:
    """An open decoder; see :class:`optimizer.generator.Generator`. One thread drives the engine."""

    def __init__(self, folder: Path, options: GeneratorOptions) -> None:
        import onnxruntime_genai as og

        config = read_config(folder)
        config.need_decoder("onnxruntime-genai")
        if not config.file.is_file():
            raise BadInput(f"no such file: {config.file}", "the folder's genai_config.json names it as its decoder")
        started = time.perf_counter()
        self._threads = options.threads or cpu_threads()
        self._folder, self._provider, self._config = folder, options.provider, config
        self.context, self.vocabulary, self.end_tokens = config.context, config.vocabulary, config.end_tokens
        self.answers = config.answers
        self.facts: dict[str, JSON] = {}
        self._waiting: deque[_Text] = deque()
        self._texts: list[_Text] = []
        self._awake = threading.Condition()
        self._scoring = threading.Lock()
        self._scorer: Decoder | None = None
        self._closing = False
        # An engine takes orders from the thread that made it alone, so that thread opens it.
        opened: Future[tuple[int, bool]] = Future()
        self._thread = threading.Thread(target=self._work, args=(opened,), name="ml-opt-genai", daemon=True)
        self._thread.start()
        most, paged = opened.result()
        self._slots = options.slots or most
        if self._slots > most:
            self.close()
            raise BadInput(
                f"onnxruntime-genai writes at most {most} texts of this model at once, not {options.slots}",
                "leave the runtime out: ONNX Runtime's own loop takes any number",
            )
        self.facts = {
            "runtime": GENERATOR.name,
            "provider": options.provider,
            "threads": self._threads,
            "slots": self._slots,
            "batching": "continuous" if paged else "static",
            "huge_pages": onto_huge_pages() if options.provider == "cpu" else 0,
            "load_seconds": time.perf_counter() - started,
            "onnxruntime_genai": og.__version__,
        }

    def _open(self) -> tuple[int, bool]:
        """Open the engine; how many texts it writes at once, and whether it batches continuously."""
        import onnxruntime_genai as og

        og.set_log_options(enabled=False)
        if self._provider != "cpu":
            # It finds CUDA's libraries where the system has them, or where they are loaded already.
            devices_of(library(), self._provider, PROVIDERS[self._provider], "")
        try:
            asked = og.Config(str(self._folder))
            asked.clear_providers()
            if self._provider != "cpu":
                asked.append_provider(self._provider)
            # Its own default costs half the speed. The artifact's file stays as it is.
            session = {"intra_op_num_threads": self._threads}
            asked.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
            self._model = og.Model(asked)
            self._engine = og.Engine(self._model)
        except Exception as error:
            raise _translated(error, self._folder, self._provider) from error
        self._events = self._engine.create_event_buffer(_EVENTS)
        got = self._engine.get_capabilities()
        paged = bool(got.max_scheduled_tokens)
        most = int(got.configured_max_batch_size) or _STATIC
        return (most if paged else min(most, _STATIC)), paged

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Stream:
        """Begin a text; raises :class:`BadInput`."""
        import numpy as np

        check_asked(prompt, sampling, self.context, self.vocabulary)
        if sampling.logprobs:
            raise BadInput("onnxruntime-genai does not tell how likely its tokens were", "leave the runtime out")
        if sampling.seed is not None and sampling.temperature > 0 and self.facts["batching"] == "static":
            raise BadInput(
                "onnxruntime-genai takes no seed for one text on a processor", "leave the runtime out, or the seed"
            )
        if sampling.num_beams > 1:
            raise BadInput("onnxruntime-genai's engine follows no beams", "leave the runtime out")
        if lacking := [name for name in _UNKNOWN if getattr(sampling, name)]:
            raise BadInput(f"onnxruntime-genai knows no {lacking[0].replace('_', ' ')}", "leave the runtime out")
        if sampling.json_schema:
            check_schema(sampling.json_schema, "the JSON schema")
        left = min(sampling.max_tokens, self.context - len(prompt))
        stops = frozenset((*self.end_tokens, *sampling.stop_tokens))
        text = _Text(np.asarray(prompt, np.int32), sampling, Stream(self._wake), left, stops)
        with self._awake:
            if self._closing:
                raise BadInput("the generator is closed")
            self._waiting.append(text)
            self._awake.notify()
        return text.stream

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits after every token, by a session of ONNX Runtime's own, which is opened with the first call."""
        check_read(tokens, read, 0)
        with self._scoring:
            if self._scorer is None:
                session = open_session(self._config.file, self._threads, self._provider)
                self._scorer = Decoder(session, self._config, 1)
            return self._scorer.score(tokens)

    def close(self) -> None:
        """End every text."""
        with self._awake:
            self._closing = True
            self._awake.notify()
        self._thread.join()
        self._scorer = None

    def _wake(self) -> None:
        with self._awake:
            self._awake.notify()

    def _work(self, opened: Future[tuple[int, bool]]) -> None:
        try:
            opened.set_result(self._open())
        except BaseException as error:
            opened.set_exception(error)
            return
        while True:
            with self._awake:
                while not (self._waiting or self._texts or self._closing):
                    self._awake.wait()
                if self._closing:
                    break
            try:
                self._cancel()
                self._admit()
                if self._texts:
                    self._run()
            except Exception as error:
                for text in self._texts:
                    text.stream.fail(_translated(error, self._folder, self._provider))
                    self._close_request(text)
                self._texts = []
        for text in (*self._texts, *self._waiting):
            text.stream.end(Finish.CANCELLED)
            self._close_request(text)
        self._texts = []
        del self._events, self._engine, self._model

    def _cancel(self) -> None:
        for text in self._texts:
            if text.stream.cancelled and not text.over:
                text.over = True
                text.request.cancel_turn(text.turn)
                text.stream.end(Finish.CANCELLED)
        with self._awake:
            gone = [text for text in self._waiting if text.stream.cancelled]
            self._waiting = deque(text for text in self._waiting if not text.stream.cancelled)
        for text in gone:
            text.stream.end(Finish.CANCELLED)
        self._leave()

    def _leave(self) -> None:
        for text in self._texts:
            if text.over:
                self._close_request(text)
        self._texts = [text for text in self._texts if not text.over]

    @staticmethod
    def _close_request(text: _Text) -> None:
        if text.request is not None:
            text.request.close()
            text.request = None

    def _admit(self) -> None:
        while len(self._texts) < self._slots:
            with self._awake:
                if not self._waiting:
                    return
                text = self._waiting.popleft()
            try:
                text.request = self._engine.create_request()
                text.turn = text.request.begin_turn(text.prompt, _turn(text.request, text.sampling, text.left))
                self._texts.append(text)
            except Exception as error:
                text.stream.fail(_asked(error))
                self._close_request(text)

    def _run(self) -> None:
        import onnxruntime_genai as og

        kinds, reasons = og.EngineEventFlags, og.FinishReason
        finishes = {reasons.EOS: Finish.STOP, reasons.STOP_STRING: Finish.STOP, reasons.CANCELLED: Finish.CANCELLED}
        for event in self._engine.run(self._events):
            text = next((one for one in self._texts if one.request is event.request), None)
            if text is None or text.over:
                continue
            flags = int(event.flags)
            if flags & int(kinds.FAILED):
                text.over = True
                text.stream.fail(GateFailed(f"onnxruntime-genai gave a text up: {event.error_code.name}"))
                continue
            ended = bool(flags & int(kinds.TURN_FINISHED))
            finish = finishes.get(event.finish_reason, Finish.LENGTH) if ended else None
            token = event.token if flags & int(kinds.TOKEN) else None
            if token is not None and int(token) in text.stops:
                token, finish = None, Finish.STOP
                if not ended:
                    text.request.cancel_turn(text.turn)
            if token is not None or finish is not None:
                text.stream.put(Piece(() if token is None else (int(token),), finish))
            text.over = finish is not None
        self._leave()


def _turn(request: Any, sampling: Sampling, left: int) -> Any:
    import onnxruntime_genai as og

    turn = og.TurnOptions(request)
    turn.set_max_generated_tokens(left)
    if sampling.min_tokens:
        turn.set_min_generated_tokens(min(sampling.min_tokens, left))
    if sampling.repetition_penalty != 1:
        turn.set_repetition_penalty(sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size:
        turn.set_no_repeat_ngram_size(sampling.no_repeat_ngram_size)
    turn.set_do_sample(sampling.temperature > 0)
    if sampling.temperature > 0:
        turn.set_temperature(sampling.temperature)
        turn.set_top_p(sampling.top_p)
        turn.set_top_k(sampling.top_k)
        if sampling.seed is not None:
            turn.set_seed(sampling.seed)
    if sampling.json_schema:
        turn.set_guidance("json_schema", spaced(sampling.json_schema))
    elif sampling.regex:
        turn.set_guidance("regex", sampling.regex)
    return turn


def _asked(error: Exception) -> Exception:
    """What the engine says of a text that it does not begin."""
    if isinstance(error, MlOptError):
        return error
    return BadInput(f"onnxruntime-genai does not begin this text: {_plain(error)}")


def _translated(error: Exception, folder: Path, provider: str) -> Exception:
    if isinstance(error, MlOptError):
        return error
    if provider != "cpu" and "Failed to load library" in str(error):
        return missing_library(provider, str(error))
    if provider != "cpu" and (found := re.search(NO_GPU, str(error))):
        return MissingPiece(
            f"onnxruntime-genai finds no NVIDIA GPU that it can use: {found['why']}",
            "`ml-opt doctor` says what this machine has",
        )
    if provider != "cpu" and "provider" in str(error).lower():
        return MissingPiece(f"onnxruntime-genai has no {provider} here: {_plain(error)}", "leave the provider out")
    return BadInput(
        f"onnxruntime-genai cannot run {folder}: {_plain(error)}", "leave the runtime out, or try another one"
    )


def _plain(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


GENERATOR = GeneratorRuntime(
    name="genai",
    help="onnxruntime-genai and its engine.",
    providers=("cpu", "cuda"),
    modules=("numpy", "onnxruntime", "onnxruntime_genai"),
    open=GenaiGenerator,
    rank=1,
)
