"""generate: what does a text generator write?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.check import Check, Voice
from optimizer.errors import BadInput
from optimizer.options import Options, opt
from optimizer.types import JSON, Kind

if TYPE_CHECKING:
    from optimizer.generating.talk import Talk
    from optimizer.generating.writing import Answer, Writing
    from optimizer.stage import Progress
    from optimizer.store import Store

__all__ = ["CHECK", "Generate", "GenerateReport", "open_talk"]

#: new tokens of a text that nothing else is said of
USUAL_TOKENS = 128


class Generate(Options):
    """Options of generate."""

    prompt: str | None = opt(
        None,
        "Text to go on from; - reads it from stdin, as does a pipe. Without one on a terminal: a conversation.",
        positional=True,
    )
    max_tokens: int | None = opt(
        None, f"Most new tokens; without it {USUAL_TOKENS}, or fewer where a model has no room for them.", ge=1
    )
    temperature: float = opt(0.0, "Divides the logits before a token is drawn; 0 takes the likeliest.", ge=0)
    top_p: float = opt(1.0, "Draw from the smallest set of tokens that is at least this likely.", ge=0, le=1)
    top_k: int = opt(0, "Draw from so many of the likeliest tokens; 0 for all.", ge=0)
    min_p: float = opt(0.0, "Leave out tokens less likely than this share of the likeliest.", ge=0, le=1)
    repetition_penalty: float = opt(
        1.0, "Divides the logits of tokens in the prompt and the text so far; 1 changes nothing.", ge=0
    )
    presence_penalty: float = opt(0.0, "Taken off the logits of tokens that were written.")
    frequency_penalty: float = opt(0.0, "Taken off them for each time that they were.")
    no_repeat_ngram_size: int = opt(0, "No sequence of so many tokens comes twice; 0 for no such limit.", ge=0)
    min_tokens: int = opt(0, "Do not end before so many new tokens.", ge=0)
    num_beams: int = opt(
        1, "Follow so many texts at once, and take the best; 1 for the likeliest token each time.", ge=1
    )
    length_penalty: float = opt(1.0, "With beams: the larger, the longer the text.")
    early_stopping: bool = opt(False, "With beams: end when as many texts have ended as there are beams.")
    seed: int | None = opt(None, "The same seed gives the same text.", ge=0)
    stop: tuple[str, ...] = opt((), "A string that ends the text, and is not in it.", metavar="TEXT")
    json_schema: Path | None = opt(None, "The text is JSON that fits this schema.", data=True, metavar="FILE")
    regex: str | None = opt(None, "The text matches this regular expression.", metavar="REGEX")
    logprobs: bool = opt(False, "Say in the JSON how likely each token was to the model, in nats.")
    top_logprobs: int = opt(0, "With --logprobs: of so many of the likeliest tokens at each place, too.", ge=0)
    chat: bool = opt(False, "The prompt is a turn of a conversation, by the model's chat template.")
    stream: bool = opt(True, "Print the text while it is being written.", key=False)
    runtime: str = opt("auto", "What writes: onnxruntime, openvino, genai; auto takes the first that can.")
    provider: str = opt("cpu", "Where it computes: cpu, openvino-native, openvino-native:bf16, cuda.")
    threads: int = opt(0, "Threads; 0 for one a physical core.", ge=0, key=False)

    def check(self) -> None:
        if self.top_p == 0:
            raise BadInput("--top-p must be above 0 and at most 1, not 0.0")
        if self.num_beams > 1 and self.temperature > 0:
            raise BadInput("--num-beams searches, and --temperature draws", "leave one of them out")
        if self.num_beams > 1 and (self.json_schema is not None or self.regex is not None):
            raise BadInput("--num-beams searches no text by --json-schema or --regex", "leave one of them out")
        if self.num_beams > 1 and self.logprobs:
            raise BadInput("--logprobs are not told of a text that --num-beams searches", "leave one of them out")
        if self.top_logprobs and not self.logprobs:
            raise BadInput("--top-logprobs is about the places that --logprobs tells of", "add --logprobs")
        if self.repetition_penalty == 0:
            raise BadInput("--repetition-penalty must be above 0, not 0.0", "1 changes nothing")
        most = self.max_tokens or USUAL_TOKENS
        if self.min_tokens > most:
            raise BadInput(f"--min-tokens is {self.min_tokens}, and --max-tokens {most}", "ask for more at most")
        if self.no_repeat_ngram_size and (self.json_schema is not None or self.regex is not None):
            raise BadInput(
                "--no-repeat-ngram-size forbids what --json-schema and --regex have to repeat", "leave one of them out"
            )
        if "" in self.stop:
            raise BadInput("--stop may not be empty: it would end every text before it began")
        if self.json_schema is not None and self.regex is not None:
            raise BadInput("a text follows --json-schema or --regex, not both")
        if self.regex == "":
            raise BadInput("--regex may not be empty")


@dataclass(frozen=True)
class GenerateReport:
    """What was written, and how fast."""

    ref: str
    prompt: str
    answer: Answer
    options: dict[str, JSON]
    facts: dict[str, JSON]

    @property
    def text(self) -> str:
        return self.answer.text

    @property
    def exit_code(self) -> int:
        return 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "generate",
            "schema": 1,
            "ref": self.ref,
            "prompt": self.prompt,
            **self.answer.to_json(),
            "options": self.options,
            "facts": self.facts,
        }


def open_talk(refs: tuple[str, ...], options: Generate, store: Store, progress: Progress) -> Talk:
    """Open what is referred to: an artifact of the store, or a folder with ``genai_config.json``.

    Raises:
        BadInput: it is no generator, or the schema's file is none.
    """
    from optimizer.generating.guide import check_schema
    from optimizer.generating.talk import Talk
    from optimizer.generator import GeneratorOptions, Sampling

    schema = ""
    if options.json_schema is not None:
        try:
            schema = options.json_schema.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"--json-schema {options.json_schema} cannot be read: {error}") from error
        check_schema(schema, str(options.json_schema))
    sampling = Sampling(
        options.max_tokens or USUAL_TOKENS,
        options.temperature,
        options.top_p,
        options.top_k,
        options.seed,
        json_schema=schema,
        regex=options.regex or "",
        min_tokens=options.min_tokens,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        logprobs=options.logprobs,
        top_logprobs=options.top_logprobs,
    )
    folder = _folder(refs, store)
    progress("opening the model")
    how = GeneratorOptions(options.runtime, options.provider, options.threads)
    return Talk(folder, how, sampling, options.stop, fewer=options.max_tokens is None)


def _folder(refs: tuple[str, ...], store: Store) -> Path:
    (ref,) = refs
    if (Path(ref) / "genai_config.json").is_file():
        return Path(ref)
    artifact = store.get(ref)
    artifact.expect(Kind.GENERATOR)
    artifact.check(store.digests)
    return artifact.path


def _run(refs: tuple[str, ...], options: Generate, store: Store, progress: Progress) -> GenerateReport:
    if options.prompt is None:
        raise BadInput("there is no prompt", 'write it behind the reference: ml-opt generate REF "Once upon a time"')
    talk = open_talk(refs, options, store, progress)
    try:
        writing = _begun(talk, options, options.prompt)
        say = progress.say if options.stream and isinstance(progress, Voice) else _keep_quiet
        try:
            for text in writing:
                say(text)
        finally:
            say("\n")
        return _report(refs[0], options, options.prompt, writing, talk)
    finally:
        talk.close()


def _keep_quiet(text: str) -> None: ...


def _begun(talk: Talk, options: Generate, prompt: str) -> Writing:
    """Begin one text, as a turn of a conversation where that is asked.

    Raises:
        BadInput: a conversation is asked of a model that was not made for any.
    """
    if not options.chat:
        return talk.complete(prompt)
    if not talk.has_template:
        raise BadInput(
            "this model has no chat template: it goes on from a text, and was not made for conversations",
            "leave --chat out",
        )
    return talk.ask(prompt)


def _report(ref: str, options: Generate, prompt: str, writing: Writing, talk: Talk) -> GenerateReport:
    """What a text that is over came to."""
    assert writing.answer is not None
    asked = options.to_json()
    del asked["prompt"]
    return GenerateReport(ref, prompt, writing.answer, asked, talk.generator.facts)


CHECK = Check(
    name="generate",
    help="Write text with a generator: go on from a prompt, or hold a conversation.",
    details="The text comes while it is written. Without a prompt on a terminal, or with --chat, a conversation: "
    "Ctrl-C ends the answer, Ctrl-D the conversation.",
    options=Generate,
    run=_run,
    modules=("numpy", "onnxruntime", "tokenizers"),
    speaks=True,
)
