"""A text generator in the store, as export-genai makes it: replayed, spoken with and measured from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from generators import greedy

import optimizer
from benchmarks.decoders import decoder
from optimizer.cli.main import run
from optimizer.data.continuations import CONTINUATIONS_NAME, load_continuations
from optimizer.errors import BadInput
from optimizer.evaluate.replay import replay
from optimizer.generator import GeneratorOptions, open_generator
from optimizer.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny Llama in fp32 and in blocks of 4 bits."""
    pytest.importorskip("onnxruntime_genai")
    made = Store(tmp_path_factory.mktemp("golden") / "models")
    for precision in ("fp32", "int4"):
        optimizer.export_genai(str(decoder("llama", size="tiny")), name="tiny", precision=precision, store=made)
    return made


def test_float_writes_all_of_it_again(store: Store) -> None:
    report = optimizer.verify("tiny:fp32-genai", against="golden", store=store, threads=1)
    assert (report.exit_code, report.failures, len(report.rows)) == (0, (), 4)
    assert all(row.held == row.alike == row.tokens > 0 for row in report.rows)


def test_blocks_are_held_to_what_is_beyond_their_rounding(store: Store) -> None:
    report = optimizer.verify("tiny:int4-genai", against="golden", store=store, threads=1)
    assert report.exit_code == 0
    assert report.reach > 0.1
    assert all(row.held <= row.alike for row in report.rows)
    assert any(row.held < row.tokens for row in report.rows), "nothing is left to rounding"


def test_how_its_cache_is_kept_is_named_behind_it(store: Store, tmp_path: Path) -> None:
    """In a reference, as any provider is; and what it rounds is held to less, in golden texts as by its measures."""
    report = optimizer.verify("tiny:fp32-genai+openvino-native:fp32-kv8", against="golden", store=store, threads=1)
    assert (report.exit_code, report.reach, report.facts["candidate"]["cache"]) == (0, 0.25, "u8")
    heldout = (decoder("llama", size="tiny") / "heldout.jsonl").read_text().splitlines()[:6]
    texts = [json.dumps({"text": json.loads(line)["text"][:800]}) for line in heldout]
    (tmp_path / "text.jsonl").write_text("\n".join(texts))
    judged = optimizer.verify(
        "tiny:fp32-genai+openvino-native:fp32-kv8", data=tmp_path / "text.jsonl", store=store, threads=1
    )
    assert judged.exit_code == 0
    assert 0 < judged.compared.kl < 1e-4


def test_another_text_is_named_with_its_place(store: Store) -> None:
    folder = store.get("tiny:fp32-genai").path
    golden = load_continuations(folder)
    place = next(n for n, margin in enumerate(golden[1].margins) if margin > 0.5 and n > 1)
    wrong = [*golden[1].tokens]
    wrong[place] = (wrong[place] + 1) % 512 or 5
    planted = [golden[0], golden[1].__class__(golden[1].text, golden[1].prompt, tuple(wrong), golden[1].margins)]
    opened = open_generator(folder, GeneratorOptions(threads=1))
    try:
        rows, failures = replay(opened, planted, near=1e-3)
        assert [row.differs for row in rows] == [None, place]
        assert rows[1].alike == place
        assert failures[0].startswith(f"continuation 2: token {place + 1} is another one than PyTorch's")
        nothing, _ = replay(opened, planted, near=1e3)
        assert [row.held for row in nothing] == [0, 0]
    finally:
        opened.close()


def test_the_command_shows_every_continuation(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "tiny:fp32-genai", "--against", "golden", "--store", str(store.root)]
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "PASS" in shown
    assert "written alike" in shown
    assert run([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["report"], document["passed"], len(document["rows"])) == ("verify-golden-text", True, 4)
    assert run([*words, "--max-drop", "2%"]) == 2
    assert "--max-drop is about held-out text" in capsys.readouterr().err


def test_where_none_were_kept(store: Store, tmp_path: Path) -> None:
    empty = Store(tmp_path / "models")
    source = store.get("tiny:fp32-genai")
    copied = empty.root / "tiny" / "1" / "fp32-genai"
    copied.mkdir(parents=True)
    for path in source.path.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / CONTINUATIONS_NAME).unlink()
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["files"][CONTINUATIONS_NAME]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied.parent / "version.json").write_bytes((source.path.parent / "version.json").read_bytes())
    with pytest.raises(BadInput, match="no golden continuations"):
        optimizer.verify("tiny:fp32-genai", against="golden", store=empty)


def test_it_is_spoken_with_and_measured_under_its_reference(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    golden = load_continuations(store.get("tiny:fp32-genai").path)[0]
    words = ["generate", "tiny:fp32-genai", golden.text, "--max-tokens", "12", "--json", "--store", str(store.root)]
    assert run(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tokens"] == greedy(list(golden.prompt), 12)
    sizes = ["--prompt-lengths", "16", "--new-tokens", "4", "--batch", "1", "--rounds", "2", "--duration", "0.05"]
    assert run(["bench", "tiny:fp32-genai", "tiny:int4-genai", *sizes, "--json", "--store", str(store.root)]) in (0, 3)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["label"] for row in rows][-2:] == ["tiny:fp32-genai", "tiny:int4-genai"]
    assert all(row["cells"][0]["tokens_per_s"] > 0 for row in rows)
