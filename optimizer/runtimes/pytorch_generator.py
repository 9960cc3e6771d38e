"""PyTorch itself writing text: ``transformers.generate`` on a model folder, which every other decoder is compared with.

Texts that are begun before any of them is asked for its first piece are written together, in one call of ``generate``
with their prompts padded on the left; what is begun later waits for the next call. Sampled texts are each written by
themselves, as PyTorch has one source of random numbers for all rows of a batch.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.environment import cpu_threads, version_of
from optimizer.errors import BadInput, missing_package
from optimizer.generating.asked import check_read
from optimizer.generating.sampler import logprob, top_logprobs
from optimizer.generator import Finish, GeneratorOptions, GeneratorRuntime, Piece, Sampling, room
from optimizer.hf import quiet_libraries, read_config
from optimizer.hf_errors import config_error, weights_error
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GENERATOR", "TorchGeneration", "TorchGenerator"]

#: What a model that reads with an encoder says of how its answers begin, and of what they never hold.
_OF_ANSWERS = ("decoder_start_token_id", "forced_bos_token_id", "bad_words_ids", "suppress_tokens")
#: Where a configuration names no longest text, there is none.
_NO_LIMIT = 2**31


class TorchGeneration:
    """One text; iterating over it starts the batch that it is in."""

    def __init__(self, owner: TorchGenerator, prompt: Sequence[int], sampling: Sampling) -> None:
        self.prompt = tuple(prompt)
        self.sampling = sampling
        self.pieces: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        #: What ended it before ``generate`` did.
        self.finish: Finish | None = None
        self._owner = owner
        self._over = False

    def __iter__(self) -> Iterator[Piece]:
        while not self._over:
            self._owner.start(self)
            found = self.pieces.get()
            if isinstance(found, Exception):
                self._over = True
                raise found
            self._over = found.finish is not None
            yield found

    def cancel(self) -> None:
        """End it before the next step."""
        self.cancelled.set()
        self._owner.forget(self)


class TorchGenerator:
    """A language model of ``transformers`` behind :class:`~optimizer.generator.Generator`.

    Args:
        module: a causal decoder; or an encoder-decoder, which answers its prompt and does not go on from it.
        facts: what was really got.
    """

    def __init__(self, module: Any, facts: dict[str, JSON]) -> None:
        self._module = module
        self.facts = facts
        config = module.config.get_text_config()
        found = next((getattr(config, n, None) for n in ("max_position_embeddings", "n_positions", "seq_length")), None)
        self.context = int(found or _NO_LIMIT)
        self.vocabulary = int(config.vocab_size)
        forced = module.generation_config.forced_bos_token_id is not None
        #: Tokens that an answer begins with behind its first one, which are not said.
        self._unsaid = int(module.config.is_encoder_decoder and forced)
        self.answers = self.context - self._unsaid if module.config.is_encoder_decoder else 0
        ends = module.generation_config.eos_token_id
        ends = config.eos_token_id if ends is None else ends
        self.end_tokens: tuple[int, ...] = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        self._waiting: list[TorchGeneration] = []
        self._writing: set[TorchGeneration] = set()
        self._lock = threading.Lock()
        # One thread writes everything: OpenMP keeps a team for each thread that it is called from, and a new one for
        # every call would have to be made, beside the old ones.
        self._texts: queue.SimpleQueue[list[TorchGeneration] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="ml-opt-torch", daemon=True).start()
        #: PyTorch computes one thing at a time here.
        self._turn = threading.Lock()

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> TorchGeneration:
        """Begin a text."""
        if self._module is None:
            raise BadInput("this model is closed")
        _check(prompt, sampling, self.context, self.vocabulary)
        begun = TorchGeneration(self, prompt, sampling)
        with self._lock:
            self._waiting.append(begun)
        return begun

    def start(self, asked: TorchGeneration) -> None:
        """Write a text that is still waiting, and with it those that wait for the same; does nothing for others."""
        with self._lock:
            if asked not in self._waiting:
                return
            together = [each for each in self._waiting if each is asked or _share(each.sampling, asked.sampling)]
            self._waiting = [each for each in self._waiting if each not in together]
            self._writing.update(together)
        self._texts.put(together)

    def forget(self, ended: TorchGeneration) -> None:
        """Take a text out of those that wait."""
        with self._lock:
            if ended in self._waiting:
                self._waiting.remove(ended)
                ended.pieces.put(Piece((), Finish.CANCELLED))

    def score(self, tokens: NDArray[np.int64], read: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Logits of what follows each token, ``[rows, tokens]`` → ``[rows, tokens, vocabulary]``."""
        import torch

        check_read(tokens, read, self.answers)
        asked = {"input_ids": tokens} if read is None else {"input_ids": read, "decoder_input_ids": tokens}
        for each in asked.values():
            _check_rows(each, self.context, self.vocabulary)
        given = {name: torch.from_numpy(each.copy()) for name, each in asked.items()}
        with self._turn, torch.inference_mode():
            logits = self._module(**given, use_cache=False).logits
        found: NDArray[np.float32] = logits.float().numpy()
        return found

    def close(self) -> None:
        """End every text, and drop the weights."""
        with self._lock:
            going = [*self._waiting, *self._writing]
        for each in going:
            each.cancel()
        self._texts.put(None)
        with self._turn:
            self._module = None

    def _work(self) -> None:
        while (texts := self._texts.get()) is not None:
            self._write(texts)

    def _write(self, texts: list[TorchGeneration]) -> None:
        try:
            with self._turn:
                if self._module is not None:
                    self._generate(texts)
        except Exception as error:  # whoever reads the pieces is told
            for each in texts:
                each.pieces.put(error)
        finally:
            with self._lock:
                self._writing.difference_update(texts)
            for each in texts:
                each.pieces.put(Piece((), each.finish or Finish.LENGTH))

    def _generate(self, texts: list[TorchGeneration]) -> None:
        import torch

        sampling = texts[0].sampling
        width = max(len(each.prompt) for each in texts)
        ids = torch.zeros((len(texts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, each in enumerate(texts):
            # Encoders count positions from the left, and decoders go on at the right.
            place = slice(len(each.prompt)) if self.answers else slice(width - len(each.prompt), None)
            ids[row, place] = torch.tensor(each.prompt)
            mask[row, place] = 1
        ends = (*self.end_tokens, *sampling.stop_tokens)
        watching = _Watching(texts, ends, self._unsaid)
        most = min(sampling.max_tokens, room(width, self.context, self.answers))
        # What a folder's generation_config says of sampling is not asked for here.
        settings: dict[str, Any] = {
            "max_new_tokens": most + self._unsaid,
            "min_new_tokens": sampling.min_tokens + self._unsaid if sampling.min_tokens else None,
            "eos_token_id": list(ends) or None,
            "pad_token_id": ends[0] if ends else 0,
            "do_sample": sampling.temperature > 0,
            "use_cache": True,
            "num_beams": 1,
            "repetition_penalty": sampling.repetition_penalty,
            "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
            "sequence_bias": {(token,): bias for token, bias in sampling.logit_bias} or None,
        }
        if sampling.temperature > 0:
            drawn = ("temperature", "top_p", "top_k", "min_p")
            settings |= {name: getattr(sampling, name) for name in drawn}
        hook = self._module.register_forward_hook(watching.answered) if sampling.logprobs else None
        try:
            with torch.inference_mode(), torch.random.fork_rng(enabled=sampling.seed is not None), quiet_libraries():
                if sampling.seed is not None:
                    torch.manual_seed(sampling.seed)
                watch = {"streamer": watching, "stopping_criteria": [watching.stopped]}
                self._module.generate(input_ids=ids, attention_mask=mask, **watch, **settings)
        finally:
            if hook is not None:
                hook.remove()


class _Watching:
    """What ``generate`` hands its new tokens to, and asks whether a row is over: one step at a time, ``[rows]``."""

    def __init__(self, texts: Sequence[TorchGeneration], ends: Sequence[int], unsaid: int = 0) -> None:
        self._texts = texts
        self._ends = frozenset(ends)
        #: Calls that hand over what is no token of an answer: prompts, or what every answer begins with.
        self._before = 1 + unsaid
        #: What the model answered last, ``[rows, vocabulary]``, before anything bends it; where chances are asked for.
        self._logits: NDArray[np.float32] | None = None

    def answered(self, module: Any, given: Any, answer: Any) -> None:
        """Keep the logits of the next token: a hook behind the model's own call."""
        del module, given
        self._logits = answer.logits[:, -1].float().numpy()

    def put(self, tokens: Any) -> None:
        """The prompts first, and then the next token of each row; rows that are over get padding."""
        if self._before:
            self._before -= 1
            return
        for row, (text, token) in enumerate(zip(self._texts, tokens.tolist(), strict=True)):
            if text.finish is not None:
                continue
            if text.cancelled.is_set():
                text.finish = Finish.CANCELLED
            elif token in self._ends:
                text.finish = Finish.STOP
            else:
                text.pieces.put(Piece((token,), None, *self._chances(row, token)))

    def _chances(self, row: int, token: int) -> tuple[tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]]:
        """How likely a token was, and the likeliest ones at its place, as :class:`Piece` has them."""
        if self._logits is None:
            return (), ()
        logits, count = self._logits[row], self._texts[row].sampling.top_logprobs
        return (logprob(logits, token),), (top_logprobs(logits, count),) if count else ()

    def end(self) -> None:
        """All rows are over; whoever called ``generate`` says so."""

    def stopped(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """Which rows are over, ``[rows]``."""
        import torch

        del input_ids, scores, more
        return torch.tensor([text.finish is not None or text.cancelled.is_set() for text in self._texts])


def _share(one: Sampling, other: Sampling) -> bool:
    """Whether two texts can be written in one call."""
    return one.temperature == 0 and one == other


def _check(prompt: Sequence[int], sampling: Sampling, context: int, vocabulary: int) -> None:
    """Refuse what cannot be written (:class:`BadInput`)."""
    if not prompt:
        raise BadInput("the prompt is empty", "give at least one token")
    if len(prompt) >= context:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens and the context holds {context}, an answer included",
            "shorten the prompt",
        )
    if not 0 <= min(prompt) <= max(prompt) < vocabulary:
        raise BadInput(f"a token of the prompt is none of the {vocabulary} of the vocabulary")
    if sampling.max_tokens < 1:
        raise BadInput(f"max_tokens is {sampling.max_tokens}", "it is at least 1")
    if not 0 <= sampling.temperature < math.inf:
        raise BadInput(f"temperature is {sampling.temperature}", "it is 0 or more")
    if not 0 < sampling.top_p <= 1:
        raise BadInput(f"top_p is {sampling.top_p}", "it is more than 0 and at most 1")
    if sampling.top_k < 0:
        raise BadInput(f"top_k is {sampling.top_k}", "it is 0 or more")
    if not 0 <= sampling.top_logprobs <= vocabulary:
        raise BadInput(f"top_logprobs is {sampling.top_logprobs}", f"it is from 0 to {vocabulary}")
    if sampling.num_beams > 1:
        raise BadInput("PyTorch follows no beams here", "ask an exported generator")
    if sampling.presence_penalty or sampling.frequency_penalty:
        raise BadInput("PyTorch knows no presence and frequency penalties", "ask an exported generator")
    if sampling.json_schema or sampling.regex:
        raise BadInput("PyTorch writes no text to a schema or an expression", "ask an exported generator")


def _check_rows(tokens: NDArray[np.int64], context: int, vocabulary: int) -> None:
    """Refuse what cannot be scored (:class:`BadInput`)."""
    if tokens.ndim != 2 or not tokens.size:
        raise BadInput(f"tokens to score are [rows, tokens], and these have the shape {list(tokens.shape)}")
    if tokens.shape[1] > context:
        raise BadInput(f"{tokens.shape[1]} tokens are more than the context of {context}", "score shorter windows")
    if not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise BadInput(f"a token is none of the {vocabulary} of the vocabulary")


def _open(folder: Path, options: GeneratorOptions) -> TorchGenerator:
    """Load a folder's causal language model.

    Raises:
        BadInput: the architecture is unknown or writes no text, or the weights are damaged.
        MissingPiece: torch or transformers is not installed.
    """
    raw = read_config(folder)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_package(error.name or "torch", "running PyTorch models") from None
    threads = options.threads or cpu_threads()
    torch.set_num_threads(threads)
    precision = options.provider.partition(":")[2] or "fp32"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    started = time.perf_counter()
    with quiet_libraries():
        try:
            transformers.AutoConfig.from_pretrained(str(folder))
        except Exception as error:
            raise config_error(error, folder, raw) from error
        try:
            auto = "AutoModelForSeq2SeqLM" if raw.get("is_encoder_decoder") else "AutoModelForCausalLM"
            module = getattr(transformers, auto).from_pretrained(str(folder), dtype=dtype, local_files_only=True)
        except Exception as error:
            raise weights_error(error, folder, raw, "text-generation", "") from error
    module.eval()
    # Numbers of sampling in the folder's own settings would be warned of wherever they are not used.
    kept = ("eos_token_id", "bos_token_id", *_OF_ANSWERS)
    said = {name: getattr(module.generation_config, name, None) for name in kept}
    module.generation_config = transformers.GenerationConfig(**said)
    facts: dict[str, JSON] = {
        "runtime": "torch",
        "provider": "torch",
        "precision": precision,
        "threads": threads,
        "class": type(module).__name__,
        "load_seconds": time.perf_counter() - started,
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "at_once": None,  # as many as there are
    }
    return TorchGenerator(module, facts)


GENERATOR = GeneratorRuntime(
    name="torch",
    help="PyTorch on a Hugging Face model folder, by transformers.generate.",
    providers=("torch", "torch:fp32", "torch:bf16", "torch:fp16"),
    modules=("torch", "transformers"),
    open=_open,
    rank=100,
)
