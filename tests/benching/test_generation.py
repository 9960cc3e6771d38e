"""Text generators timed: prompts, what is made of the samples, and a run from end to end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from generator_shop import put_generator
from generators import build_llama

from benchmarks.decoders import decoder
from optimizer.benching import generation_worker
from optimizer.benching.busy import Others
from optimizer.benching.candidates import Entrant
from optimizer.benching.decoding import Traffic, context_of, traffic_of
from optimizer.benching.generation import _cautions, bench_generation, numbers, writings
from optimizer.benching.generation_cells import HEAD, table_of
from optimizer.benching.generation_report import GenerationBench, GenerationCell, GenerationRow, faster
from optimizer.benching.generation_worker import GenerationWorker, timed_texts
from optimizer.benching.measure import Lane, Plan
from optimizer.benching.report import Doubt
from optimizer.benching.workload import Writing
from optimizer.cli.main import run
from optimizer.environment import describe
from optimizer.errors import BadInput
from optimizer.generator import Finish, GeneratorOptions, Piece, Sampling
from optimizer.runtime import Candidate, Provider
from optimizer.store import Store


class Paced:
    """Writes a token every so many seconds behind a first one that takes its own."""

    context, answers, vocabulary, end_tokens = 64, 0, 32, (7,)

    def __init__(self, first: float, step: float, ends_after: int = 10**9) -> None:
        self.first, self.step, self.ends_after = first, step, ends_after
        self.facts: dict[str, Any] = {"runtime": "paced"}
        self.prompts: list[list[int]] = []
        self.asked: list[Sampling] = []

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Any:
        self.prompts.append(list(prompt))
        self.asked.append(sampling)
        owner = self

        class Text:
            def __iter__(self) -> Iterator[Piece]:
                time.sleep(owner.first)
                for place in range(min(sampling.max_tokens, owner.ends_after)):
                    time.sleep(owner.step if place else 0)
                    yield Piece((1,))
                yield Piece((), Finish.LENGTH)

            def cancel(self) -> None: ...

        return Text()

    def score(self, tokens: Any, read: Any = None) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


def test_texts_are_written_at_once_and_each_is_timed_by_itself() -> None:
    found = timed_texts(Paced(0.25, 0.05), [[1], [2], [3]], 5)
    assert found["tokens"] == [5, 5, 5]
    assert all(0.25e9 <= first < 0.42e9 for first in found["first_ns"])
    assert all(0.2e9 <= last - first < 0.4e9 for first, last in zip(found["first_ns"], found["last_ns"], strict=True))
    assert max(found["last_ns"]) <= found["ns"] < 1.0e9  # one after another they would take 1.35 s


def test_end_tokens_are_kept_away() -> None:
    paced = Paced(0, 0)
    timed_texts(paced, [[1]], 5)
    assert paced.asked == [Sampling(max_tokens=5, min_tokens=5)]


def test_a_text_without_any_token_is_an_error() -> None:
    with pytest.raises(BadInput, match="before its first token"):
        timed_texts(Paced(0, 0, ends_after=0), [[1]], 5)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({"batch": 2, "prompt": 9, "new": 4, "below": 32, "text": [], "seed": "0"}))
    return path


def working(paced: Paced, asked: Path) -> GenerationWorker:
    worker = GenerationWorker(lambda candidate, threads: paced)  # type: ignore[arg-type, return-value]
    candidate = {"label": "a", "path": ".", "provider": "cpu", "key": "", "model": {}}
    assert worker.answer({"do": "open", "candidate": candidate, "threads": 1})["facts"]["context"] == 64
    assert worker.answer({"do": "shape", "shape": "2x9+4", "feeds": str(asked)})["ok"]
    return worker


def test_a_worker_answers_with_a_call_of_one_token_beside_each_call(asked: Path) -> None:
    worker = working(Paced(0.01, 0.005), asked)
    assert worker.answer({"do": "warm", "shape": "2x9+4", "limit_s": 0.2})["ok"]
    reply = worker.answer({"do": "time", "shape": "2x9+4", "seconds": 0, "samples": 3})
    assert len(reply["ns"]) == len(reply["parts"]) == 3
    for ns, part in zip(reply["ns"], reply["parts"], strict=True):
        assert 0.01e9 <= part["prefill_ns"] < ns
        assert part["tokens"] == [4, 4]
        assert part["rss"] > 0
    assert worker.answer({"do": "copies", "shape": "2x9+4", "seconds": 0})["ok"] is False


def test_a_generator_has_room_for_the_largest_call(llama_generator: Path) -> None:
    """More than it has by itself; and what has no room for so many is measured all the same, and named."""
    loads = (Writing(1, 4, 2), Writing(20, 4, 2))
    entrant = Entrant(Candidate("a", llama_generator, Provider("cpu")))
    report = bench_generation([entrant], "a", replace(plan(), shapes=loads), lambda *_: None)
    assert report.rows[0].facts["slots"] == 20
    assert Doubt.FEW_PLACES not in {caution.doubt for caution in report.cautions}


def test_what_has_fewer_places_than_texts_is_named(llama_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def opened(folder: Path, options: GeneratorOptions) -> Any:
        tried.append(options.slots)
        if options.slots > 4:
            raise BadInput("at most 4 texts")
        return Paced(0, 0)

    monkeypatch.setattr(generation_worker, "open_generator", opened)
    worker = GenerationWorker()
    candidate = {"label": "a", "path": ".", "provider": "cpu", "key": "", "model": {}}
    assert worker.answer({"do": "open", "candidate": candidate, "threads": 1, "slots": 9})["ok"]
    assert tried == [9, 0]
    row = GenerationRow("a", ".", "cpu", "", 1, facts={"slots": 4}, cells=(cell(50.0, 5.0, Writing(9, 100, 11)),))
    (found,) = (each for each in _cautions([row], [Lane(Candidate("a", Path(), Provider("cpu")))], plan(), Others()))
    assert (found.doubt, found.about, found.detail) == (Doubt.FEW_PLACES, "a at 9x100+11", "4 at once")


def test_every_call_has_prompts_of_its_own_and_everyone_has_the_same(asked: Path) -> None:
    one, other = Paced(0, 0), Paced(0, 0)
    for paced in (one, other):
        working(paced, asked).answer({"do": "time", "shape": "2x9+4", "seconds": 0, "samples": 3})
    assert one.prompts == other.prompts
    assert len({tuple(prompt) for prompt in one.prompts}) == len(one.prompts)
    assert all(len(prompt) == 9 and 7 not in prompt and max(prompt) < 32 for prompt in one.prompts)


def test_prompts_are_cut_from_text_where_there_is_some(tmp_path: Path) -> None:
    path = tmp_path / "texts.json"
    text = list(range(20))
    path.write_text(json.dumps({"batch": 2, "prompt": 9, "new": 4, "below": 32, "text": text, "seed": "0"}))
    paced = Paced(0, 0)
    working(paced, path)
    assert all(prompt == text[prompt[0] : prompt[0] + 9] for prompt in paced.prompts)


def cell(prefill: float, step: float, load: Writing = Writing(2, 100, 11), **more: Any) -> GenerationCell:
    """Calls of known milliseconds, in three rounds."""
    whole = int((prefill + 10 * step) * 1e6)
    part = {
        "prefill_ns": int(prefill * 1e6),
        "first_ns": [int(prefill * 1e6)] * 2,
        "last_ns": [whole] * 2,
        "tokens": [11, 11],
        "rss": 2**20,
    }
    return GenerationCell(load, 0.1, [[whole]] * 3, [[part]] * 3, **more)


def test_what_is_made_of_samples() -> None:
    found = cell(50.0, 5.0, step_bytes=20_000_000, bandwidth=10.0)
    assert found.first_token_ms == pytest.approx(50)
    assert found.token_ms == pytest.approx(5)
    assert found.tokens_per_s == pytest.approx(22 / 0.1)
    assert found.prefill_per_s == pytest.approx(200 / 0.05)
    assert found.decode_per_s == pytest.approx(2 / 0.005)
    # 20 MB at 10 GB/s are 2 ms, and a step took 5.
    assert found.bandwidth_share == pytest.approx(0.4)
    assert (found.short, found.peak_rss) == (0, 2**20)
    ratios = faster(cell(100.0, 20.0), found, 0)
    assert {name: round(ratio.value, 3) for name, ratio in ratios.items()} == {"whole": 3, "prefill": 2, "decode": 4}


def test_where_noise_hides_decoding_nothing_is_said_of_it() -> None:
    found = cell(50.0, -1.0)
    assert (found.decode_per_s, found.bandwidth_share) == (None, None)
    assert set(faster(cell(50.0, 5.0), found, 0)) == {"whole", "prefill"}


def test_lists_of_numbers() -> None:
    assert numbers("16,128,16", "--batch") == (16, 128)
    for text in ("", "0", "1,-2", "many"):
        with pytest.raises(BadInput, match="--batch"):
            numbers(text, "--batch")


def test_lengths_are_those_that_the_context_has_room_for() -> None:
    folder = decoder("gpt2", size="tiny")
    assert context_of(folder) == 128
    assert writings([folder], (), (1, 8), 64) == (Writing(1, 16, 64), Writing(8, 16, 64))
    assert writings([folder], (64,), (1,), 64) == (Writing(1, 64, 64),)
    with pytest.raises(BadInput, match="more than the context"):
        writings([folder], (65,), (1,), 64)


@pytest.mark.parametrize(("family", "precision", "size"), [("llama", "", 4), ("gpt2", "", 4), ("llama", "bf16", 2)])
def test_what_a_step_reads_is_every_weight_but_tables_of_rows(family: Any, precision: str, size: int) -> None:
    from transformers import AutoModelForCausalLM

    folder = decoder(family, size="tiny")
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Embeddings in and out are one matrix, which the last product reads; positions are rows of a table.
    read = sum(weight.numel() for name, weight in model.named_parameters() if "wpe" not in name)
    heads = 2 if family == "llama" else 4
    wanted = Traffic(read * size, 2 * 2 * heads * 16 * size)
    assert traffic_of(Entrant(Candidate("a", folder, Provider("torch", precision)))) == wanted
    assert wanted.step(Writing(2, 10, 4)) == wanted.weights + 2 * 12 * wanted.cache


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_what_a_step_of_an_artifact_reads(tmp_path: Path, precision: str) -> None:
    builder = pytest.importorskip("onnxruntime_genai.models.builder")
    folder = decoder("llama", size="tiny")
    asked = (None, str(folder), str(tmp_path / "out"), precision, "cpu", str(tmp_path / "cache"))
    builder.create_model(*asked, **builder.parse_extra_options(*asked, []))
    torch = traffic_of(Entrant(Candidate("a", folder, Provider("torch"))))
    found = traffic_of(Entrant(Candidate("b", tmp_path / "out", Provider("cpu"))))
    assert torch is not None
    assert found is not None
    assert found.cache == torch.cache
    halved = traffic_of(Entrant(Candidate("c", tmp_path / "out", Provider("openvino-native", "bf16"))))
    assert halved is not None
    assert halved.cache == torch.cache / 2
    kept = traffic_of(Entrant(Candidate("d", tmp_path / "out", Provider("openvino-native", "bf16-kv8"))))
    assert kept == Traffic(halved.weights, torch.cache // 4)
    if precision == "fp32":
        assert found.weights == pytest.approx(torch.weights, rel=0.01)
        assert halved.weights == found.weights / 2
    else:
        assert found.weights * 0.9 < halved.weights < found.weights, "blocks and their scales stay what they are"
        assert found.weights < torch.weights / 3


def test_folders_that_say_nothing_have_no_roof(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert traffic_of(Entrant(Candidate("a", tmp_path, Provider("torch")))) is None


LOADS = (Writing(1, 8, 4), Writing(2, 8, 4))


def plan(**settings: Any) -> Plan:
    return Plan(LOADS, 1, rounds=3, seconds=0.0, samples=3, warm_limit_s=0.1, timeout=120, **settings)


def test_a_run_from_end_to_end_with_one_that_fails() -> None:
    folder = decoder("llama", size="tiny")
    taking_part = [
        Entrant(Candidate("fp32", folder, Provider("torch"))),
        Entrant(Candidate("bf16", folder, Provider("torch", "bf16"))),
        Entrant(Candidate("nothing", folder, Provider("torch", "int9"))),
    ]
    report = bench_generation(taking_part, "fp32", plan(roofline=True), lambda *_: None)
    fp32, bf16, nothing = report.rows
    assert (fp32.error, bf16.error) == ("", "")
    assert "torch:int9" in nothing.error
    assert report.exit_code == 1
    assert [cell.load for cell in bf16.cells] == list(LOADS)
    for row in (fp32, bf16):
        for each in row.cells:
            assert [len(times) for times in each.rounds_ns] == [1, 1, 1]
            assert each.short == 0
            assert each.bandwidth
            assert each.peak_rss > 2**20
    assert fp32.cells[0].faster == {}
    assert {"whole", "prefill"} <= set(bf16.cells[0].faster)
    assert bf16.traffic is not None
    assert fp32.traffic is not None
    assert bf16.traffic.weights * 2 == fp32.traffic.weights
    document = json.loads(json.dumps(report.to_json()))
    assert json.loads(json.dumps(GenerationBench.from_json(document).to_json())) == document
    with pytest.raises(BadInput, match="whole report of text generators"):
        GenerationBench.from_json({**document, "rows": [{}]})
    assert document["report"] == "bench-generation"
    assert len(document["rows"][0]["cells"][0]["parts"]) == 3
    assert [row[:3] for row in table_of(report)] == [
        [label, batch, "8"] for batch in ("1", "2") for label in ("fp32", "bf16")
    ]
    assert all(len(row) == len(HEAD) for row in table_of(report))
    assert Doubt.SHORT not in {caution.doubt for caution in report.cautions}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder whose cache is large: 16 KiB a token, and 1,024 tokens."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 640}
    # The builder takes every product with as many rows as there are tokens for the head: these have 512.
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=1024, bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(folder / "source")
    AutoTokenizer.from_pretrained(decoder("llama", size="tiny")).save_pretrained(folder / "source")
    return build_llama(folder, source=folder / "source")


def test_memory_is_that_of_its_size_alone(wide: Path) -> None:
    """Whatever was written before it: the large one is timed first."""
    loads = (Writing(4, 1000, 16), Writing(1, 16, 16))
    entrant = Entrant(Candidate("a", wide, Provider("cpu")))
    asked = replace(plan(), shapes=loads, rounds=1, samples=1)
    large, small = bench_generation([entrant], "a", asked, lambda *_: None).rows[0].cells
    assert large.held is not None
    assert large.peak_rss == large.held
    assert large.peak_rss - small.peak_rss > 0.8 * 4 * 1024 * 2**14 - 256 * 2**14, "the keys and values of one are more"
    assert GenerationCell.from_json(small.to_json()).peak_rss == small.peak_rss
    # Without, it is what the timed process has come to hold.
    large, small = bench_generation([entrant], "a", asked, lambda *_: None, memory=False).rows[0].cells
    assert (large.held, small.held) == (None, None)
    assert small.peak_rss > 0.8 * 4 * 1024 * 2**14


def test_memory_that_could_not_be_told_apart_is_named(tmp_path: Path) -> None:
    script = tmp_path / "once.py"
    script.write_text(
        f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
from optimizer.benching import generation_worker
from test_generation import Paced

def opened(candidate, threads):
    if os.path.exists({str(tmp_path / "opened")!r}):
        raise MemoryError
    open({str(tmp_path / "opened")!r}, "w").close()
    return Paced(0, 0)

generation_worker.main(opened)
"""
    )
    entrant = Entrant(Candidate("a", tmp_path, Provider("cpu"), command=(sys.executable, str(script))))
    report = bench_generation([entrant], "a", plan(), lambda *_: None)
    assert report.rows[0].error == ""
    told = [caution.about for caution in report.cautions if caution.doubt is Doubt.SHARED_MEMORY]
    assert told == ["a at 1x8+4", "a at 2x8+4"]
    assert all(each.held is None and each.peak_rss > 2**20 for each in report.rows[0].cells)


def test_the_command_takes_folders_and_writes_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = decoder("llama", size="tiny")
    words = ["bench", f"torch:{folder}", "--prompt-lengths", "8", "--new-tokens", "4", "--batch", "1", "--rounds", "3"]
    words += ["--duration", "0", "--no-roofline", "--threads", "1", "--store", str(tmp_path / "models")]
    written = [tmp_path / "a.json", tmp_path / "a.md"]
    assert run([*words, *(word for path in written for word in ("--report", str(path)))]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "no end token before the last token" in shown
    assert json.loads(written[0].read_text())["settings"]["command"].startswith("ml-opt bench torch:")
    assert "| candidate | texts | prompt |" in written[1].read_text()
    assert run([*words, "--report", str(tmp_path / "a.csv")]) == 2
    assert "not reported as .csv" in capsys.readouterr().err
    # And again from the JSON alone: as it was, beside another run, and over time.
    assert run(["bench", "show", str(written[0]), *("--report", str(tmp_path / "b.md"))]) == 0
    assert (tmp_path / "b.md").read_text() == written[1].read_text()
    assert "tokens/s" in capsys.readouterr().out
    assert run(["bench", "show", str(written[0]), "--report", str(tmp_path / "b.csv")]) == 2
    assert "not reported as .csv" in capsys.readouterr().err
    assert run(["bench", "compare", str(written[0]), str(written[0])]) in (0, 3)
    assert "1 × 8+4" in capsys.readouterr().out


def test_whole_calls_are_compared_over_time(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    put_generator(store, decoder("llama", size="tiny"))
    calls = cell(prefill=1.0, step=0.1)
    for day in (1, 2):
        row = GenerationRow("tiny:fp32", "models", "cpu", "k", 1, cells=(calls,))
        settings: dict[str, Any] = {"loads": [str(calls.load)], "threads": 1, "rounds": 3}
        report = GenerationBench(f"2026-11-0{day}T00:00:00+00:00", settings, describe(), row.label, (row,))
        report.written(store.reports_folder("tiny", 1) / f"bench-2026110{day}T000000000000Z.json")
    assert run(["bench", "history", "tiny:fp32", "--store", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert "2 × 100+11" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "1x8"], "--shape is not for text generators"),
        (["--fail-if-slower", "5%"], "--fail-if-slower is not for text generators"),
        (["--prompt-lengths", "x"], "--prompt-lengths"),
        (["--prompt-lengths", "120", "--new-tokens", "9"], "more than the context"),
    ],
)
def test_what_cannot_be_asked_of_a_generator(
    store: Store, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_generator(store, decoder("llama", size="tiny"))
    assert run(["bench", "tiny:fp32", *words, "--store", str(store.root)]) == 2
    assert said in capsys.readouterr().err


def test_what_writes_no_text_is_refused(stocked: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "toy:fp32", "--batch", "1", "--against", "toy:fp32", "--store", str(stocked.root)]
    assert run(words) == 2
    assert "toy:fp32 writes no text" in capsys.readouterr().err
