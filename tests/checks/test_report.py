"""The kept verdict again: at every door, on a bare machine, and every way in which it cannot be shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from stores import put

import optimizer
from optimizer.cli.main import run
from optimizer.errors import BadInput, Damaged
from optimizer.recipe import run_recipe
from optimizer.search.gates import Outcome
from optimizer.search.html import to_html
from optimizer.search.report import SCHEMA, OptimizeReport
from optimizer.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "verdict-1.json"
SAMPLE: dict[str, Any] = json.loads(GOLDEN.read_text())


@pytest.fixture
def judged(store: Store) -> Store:
    """A store whose only version has a verdict."""
    put(store, name="minilm")
    shutil.copy(GOLDEN, store.root / "minilm" / "1" / "verdict.json")
    return store


def keep(store: Store, document: Any) -> None:
    (store.root / "minilm" / "1" / "verdict.json").write_text(json.dumps(document))


def within(small: Any, large: Any) -> bool:
    """Whether everything of one document is in another, which may say more."""
    if isinstance(small, dict):
        return all(key in large and within(value, large[key]) for key, value in small.items())
    if isinstance(small, list):
        return len(small) == len(large) and all(map(within, small, large))
    return bool(small == large)


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_every_schema_there_has_been_is_read(schema: int) -> None:
    path = GOLDEN.with_name(f"verdict-{schema}.json")
    report = OptimizeReport.read(path)
    assert report.verdict is Outcome.PASS
    assert report.winner is not None
    assert report.winner.name == "fp32-fused"
    assert within(json.loads(path.read_text()), report.to_json())


def test_it_is_shown_for_every_way_to_name_the_version(judged: Store, capsys: pytest.CaptureFixture[str]) -> None:
    judged.set_alias("best", "minilm@1:fp32")
    for ref in ("minilm", "minilm@1", "minilm@best", "minilm:fp32", "minilm@1:fp32"):
        assert run(["report", ref, "--store", str(judged.root)]) == 0
        out = capsys.readouterr()
        assert out.out.startswith("PASS minilm@1:fp32-ort on cpu (fp32-fused): 24.72 × as fast as PyTorch eager fp32")
        assert "after 75 of 600 rows: worst cosine 0.97380" in out.out
        assert str(judged.root / "minilm" / "1" / "verdict.json") in out.out, "where it lies now, not where it lay"
        assert "made again by" not in out.out, "the recipe that it names is not there"
        assert "note: Judged by likeness" in out.err


def test_three_doors_write_the_same(judged: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (judged.root / "minilm" / "1" / "best.toml").write_text("")
    page, copy = tmp_path / "new" / "r.html", tmp_path / "new" / "r.json"
    words = ["report", "minilm", "--report", str(page), "--report", str(copy), "--json", "--store", str(judged.root)]
    assert run(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert within({**SAMPLE, "path": shown["path"], "recipe": str(judged.root / "minilm/1/best.toml")}, shown)
    assert json.loads(copy.read_text()) == {**shown, "path": str(copy)}
    assert page.read_text() == to_html(shown)
    again = optimizer.report("minilm", report=(tmp_path / "again.html",), store=judged.root)
    assert again.to_json() == shown
    assert (tmp_path / "again.html").read_text() == page.read_text()
    (tmp_path / "r.toml").write_text('[recipe]\nmodel = "minilm"\n[[step]]\nrun = "report"\nof = "minilm"\n')
    assert run_recipe(tmp_path / "r.toml", store=judged.root).steps[0]["verdict"] == "PASS"


@pytest.mark.parametrize(("verdict", "code"), [("FAIL", 1), ("INCONCLUSIVE", 3)])
def test_the_exit_code_is_that_of_the_verdict(judged: Store, verdict: str, code: int) -> None:
    lost = {"best": None, "provider": None, "speedup": None, "cosine": None, "recipe": "", "winner_s": None}
    keep(judged, {**SAMPLE, **lost, "verdict": verdict})
    assert run(["report", "minilm", "--store", str(judged.root)]) == code


def test_none_yet(judged: Store, capsys: pytest.CaptureFixture[str]) -> None:
    put(judged, name="minilm", source="s2", key="2" * 64)
    with pytest.raises(BadInput, match="minilm@2 has no verdict") as found:
        optimizer.report("minilm", store=judged.root)
    assert found.value.hint == "these have one: minilm@1"
    put(judged, name="other", source="s3", key="3" * 64)
    assert run(["report", "other", "--store", str(judged.root)]) == 2
    assert "ml-opt optimize other@1:" in capsys.readouterr().err
    assert run(["report", "minlm", "--store", str(judged.root)]) == 2
    assert "did you mean minilm" in capsys.readouterr().err


def test_a_newer_one_is_not_misread(judged: Store) -> None:
    keep(judged, {**SAMPLE, "schema": SCHEMA + 1})
    with pytest.raises(BadInput, match="this ml-opt reads up to") as found:
        optimizer.report("minilm", store=judged.root)
    assert "pip install --upgrade" in found.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        (GOLDEN.read_text()[:-200], "cannot be read"),
        ("[]", "is not a report of optimize"),
        ('{"report": "bench", "schema": 1}', "is not a report of optimize"),
        ('{"report": "optimize", "schema": true}', "is not a report of optimize"),
        ('{"report": "optimize", "schema": 1}', "created is missing"),
        (json.dumps({**SAMPLE, "best": "minilm@1:gone"}), "none of the candidates"),
        (json.dumps({**SAMPLE, "verdict": "MAYBE"}), "verdict is 'MAYBE'"),
    ],
)
def test_damage_is_said_with_its_exit_code(
    judged: Store, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (judged.root / "minilm" / "1" / "verdict.json").write_text(text)
    assert run(["report", "minilm", "--store", str(judged.root)]) == Damaged.exit_code
    err = capsys.readouterr().err
    assert message in err
    assert "ml-opt optimize" in err


def broken(document: Any, inside: bool = False) -> Iterator[Any]:
    """The document again and again, each time with one entry gone or, at its top, of another type."""
    for key in document:
        if isinstance(document[key], dict):
            yield from ({**document, key: each} for each in broken(document[key], inside=True))
        yield {name: value for name, value in document.items() if name != key}
        if not inside:
            yield {**document, key: [] if document[key] is None else None}


def test_no_damage_is_taken_for_a_bug(judged: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is missing or wrong in the file, the answer is a report or says what is wrong with it."""
    document = {**SAMPLE, "candidates": SAMPLE["candidates"][:2], "bench": {"settings": SAMPLE["bench"]["settings"]}}
    codes = set()
    for each in broken(document):
        keep(judged, each)
        codes.add(run(["report", "minilm", "--store", str(judged.root)]))
        assert "bug" not in capsys.readouterr().err
    assert codes == {0, Damaged.exit_code}


class Page(HTMLParser):
    """Whether every tag is closed where it should be; and everything that a page could load by."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.loads += [f"{tag} {name}" for name, value in attrs if name.startswith("on") or "url(" in (value or "")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&lt;"


def hostile(value: Any, key: str = "") -> Any:
    """The document with words of an attacker wherever a model, a file or a machine can bring some."""
    if isinstance(value, dict):
        return {name: hostile(inside, name) for name, inside in value.items()}
    if isinstance(value, list):
        return [hostile(inside, key) for inside in value]
    free = isinstance(value, str) and key not in ("verdict", "outcome", "report", "best", "ref", "provider", "created")
    return HOSTILE + value if free else value


@pytest.mark.parametrize("bad", [False, True])
def test_the_page_is_well_formed_and_loads_nothing(bad: bool) -> None:
    document = OptimizeReport.from_json(hostile(SAMPLE) if bad else SAMPLE).to_json()
    if bad:
        document["data"]["eval"]["labels"] = {HOSTILE: 3}
        document["data"]["eval"]["file"] = HOSTILE
    text = to_html(document)
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert not page.tags & {"script", "img", "link", "iframe", "object", "image", "use"}
    assert "@import" not in text
    assert "url(" not in text
    assert "http" not in text
    if bad:
        assert "&lt;script&gt;" in text


def test_every_part_of_the_report_is_on_the_page() -> None:
    text = to_html(SAMPLE)
    for heading in (
        "Likeness against time", "Every candidate", "What to know", "What int8 costs each node", "Not tried",
        "The data", "The machine", "Where the time went", "Commands",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text
    for candidate in SAMPLE["candidates"]:
        assert candidate["reason"].replace("'", "&#x27;") in text
        assert all(command in text for command in candidate["commands"])
    assert f"The winner's chain alone would take {SAMPLE['winner_s']:.0f} s".replace("'", "&#x27;") in text
    assert (
        "2 candidates could win after the first look, so each bound over all rows holds with 97.5 % confidence" in text
    )
    assert text.count("<circle") == 3, "the original and the two that were timed"
    assert SAMPLE["sensitivity"][0]["node"] in text
    assert text.index(SAMPLE["sensitivity"][0]["node"]) < text.index(SAMPLE["sensitivity"][1]["node"])
    assert 'class="budget"' in text


def test_a_report_without_times_draws_no_plot() -> None:
    document = {**SAMPLE, "candidates": [{**c, "speed": None} for c in SAMPLE["candidates"]], "speedup": None}
    text = to_html(document)
    assert "<circle" not in text
    assert "No candidate was timed" in text
    assert Page(text).open == []
