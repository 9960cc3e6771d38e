"""The page at /, in headless Chromium: every sort of model is tried, a text is stopped, and the metrics move."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, Page, opened
from served_texts import served
from tiny import tiny_bert

import optimizer
from optimizer.store import Store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


def visit(url: str, folder: Path, test: Callable[[Page], Awaitable[Any]]) -> None:
    async def inside() -> None:
        async with opened(f"{url}/", folder) as page:
            await page.until("$('model').options.length > 0")
            await test(page)
            assert page.errors == []

    asyncio.run(inside())


async def send(page: Page, model: str, text: str, mode: str = "", **settings: object) -> str:
    """Ask a model; what is shown when the answer is over."""
    await page.js(f"$('model').value = {model!r}; chosen(); $('text').value = {text!r}; 0")
    for name, value in {**({"mode": mode} if mode else {}), **settings}.items():
        await page.js(f"$({name!r}).value = {value!r}; 0")
    await page.js("$('form').requestSubmit()")
    await page.until("!running")
    return str(await page.js("$('answer').textContent"))


def test_every_sort_of_model_can_be_tried(text_server: str, tmp_path: Path) -> None:
    async def test(page: Page) -> None:
        shown = await page.js("[...$('model').options].map(o => o.value).sort().join()")
        assert shown == "broken,classes,llama,plain,vectors"
        text = await send(page, "llama", "    if self.", max_tokens=24, temperature=0, top_p=1)
        assert text.startswith("strver:\n            self._close()")
        assert (await page.js("$('times').textContent")).startswith("24 tokens, first after ")
        answer = await send(page, "llama", "hello", "chat", max_tokens=8)
        assert answer.startswith("user: hello\nassistant: ")
        await page.js("$('form').requestSubmit()")  # the next turn has those before it
        await page.until("!running && turns.length === 4")
        assert (await page.js("$('answer').textContent")).startswith(answer + "\nuser: hello\nassistant: ")
        refused = await send(page, "broken", "hello", "chat")
        assert "chat template" in refused
        assert await page.js("$('answer').className") == "bad"
        assert "numbers" in await send(page, "vectors", "a red car")
        assert "0." in await send(page, "classes", "a red car")
        assert await page.js("$('answer').querySelectorAll('.bar').length") >= 2

    async def but_for_refusals(page: Page) -> None:
        await test(page)
        page.errors = [error for error in page.errors if "status of 400" not in error]

    visit(text_server, tmp_path, but_for_refusals)


NAMES = ["O", "B-PER", "I-PER"]


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of models with random weights that read: one of entities, one of answers, one of masks."""
    root = tmp_path_factory.mktemp("readers")
    store = Store(root / "models")
    heads = {"tagger": "BertForTokenClassification", "reader": "BertForQuestionAnswering", "filler": "BertForMaskedLM"}
    for name, head in heads.items():
        more: dict[str, Any] = {"id2label": dict(enumerate(NAMES)), "seed": 3} if name == "tagger" else {}
        optimizer.export_onnx(str(tiny_bert(root / name, head, **more)), name=name, store=store)
    with served(store.root, *heads) as url:
        yield url


def asked(url: str, path: str, **body: Any) -> Any:
    with urllib.request.urlopen(f"{url}{path}", json.dumps(body).encode(), timeout=30) as answer:
        return json.load(answer)["data"][0]


def test_models_that_read_can_be_tried(readers: str, tmp_path: Path) -> None:
    """What is shown is what the route answers: a line with its score for each entity, answer and token."""

    async def rows(page: Page) -> list[list[str]]:
        found = await page.js(
            "[...document.querySelectorAll('.bar')].map(b => [...b.children].map(c => c.textContent))"
        )
        return [[name, score] for name, _, score in found]

    def lines(found: list[dict[str, Any]], *names: str) -> list[list[str]]:
        return [[" · ".join(str(one[name]) for name in names), f"{one['score']:.3f}"] for one in found]

    async def test(page: Page) -> None:
        text = "ab cd. ef"
        await send(page, "tagger", text)
        found = asked(readers, "/v1/ner", model="tagger", input=text)["entities"]
        assert len(found) > 0
        assert await rows(page) == lines(found, "word", "entity_group")
        await send(page, "tagger", text, "tokens")
        found = asked(readers, "/v1/ner", model="tagger", input=text, aggregation_strategy="none", ignore_labels=[])
        assert len(found["entities"]) == 7
        assert await rows(page) == lines(found["entities"], "word", "entity")
        assert await page.js("$('question').offsetParent === null"), "only who answers questions is asked one"

        context = "a b c d e f"
        await send(page, "reader", context, question="c d")
        assert await page.js("$('question').offsetParent !== null")
        assert await page.js("$('max_tokens').offsetParent === null")
        row = {"question": "c d", "context": context}
        found = asked(readers, "/v1/answer", model="reader", input=row, top_k=3)["answers"]
        assert len(found) == 3
        assert await rows(page) == lines(found, "answer")

        shown = await send(page, "filler", "ab [MASK] c [MASK]")
        masks = asked(readers, "/v1/fill", model="filler", input="ab [MASK] c [MASK]")["masks"]
        assert await rows(page) == [line for mask in masks for line in lines(mask["fills"], "token_str")]
        assert all(mask["fills"][0]["sequence"] in shown for mask in masks)
        assert (await page.js("$('times').textContent")).endswith(" tokens")
        assert "no mask" in await send(page, "filler", "ab")
        page.errors = [error for error in page.errors if "status of 400" not in error]

    visit(readers, tmp_path, test)


def test_what_the_server_counts_is_shown(text_server: str, tmp_path: Path) -> None:
    async def test(page: Page) -> None:
        assert await page.until("$('state').textContent === 'ready' && $('state').className === 'good'")
        await page.until("seen.length > 1")
        await send(page, "plain", "    if self.", max_tokens=60, temperature=0)
        await page.until("parseFloat($('tile-tokens/s').firstChild.textContent) > 0")
        await page.until("parseFloat($('tile-requests/s').firstChild.textContent) > 0")
        rows = "[...$('models').tBodies[0].rows].find(r => r.cells[0].textContent === 'plain').cells"
        await page.until(f"Number({rows}[1].textContent) >= 1 && /s$/.test({rows}[2].textContent)")

    visit(text_server, tmp_path, test)


def test_quantiles_are_those_of_prometheus(text_server: str, tmp_path: Path) -> None:
    """Of a hundred: forty up to 1, forty more up to 2, and twenty up to 4; none of them before the first reading."""

    async def test(page: Page) -> None:
        text = "\\n".join(f'a_bucket{{m="x",le="{le}"}} {count}' for le, count in
                          [("1.0", 40), ("2.0", 80), ("4.0", 100), ("+Inf", 100)])  # fmt: skip
        await page.js(f"window.now = parse('{text}'); 0")
        assert await page.js("[.2, .5, .9].map(q => quantile(now, [], 'a', {m: 'x'}, q))") == [0.5, 1.25, 3]
        assert await page.js("quantile(now, now, 'a', {m: 'x'}, .5)") is None
        assert await page.js("quantile(now, [], 'a', {m: 'y'}, .5)") is None

    visit(text_server, tmp_path, test)


def test_it_loads_nothing_from_elsewhere(text_server: str) -> None:
    with urllib.request.urlopen(f"{text_server}/") as answer:
        page, policy = answer.read().decode(), answer.headers["content-security-policy"]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    assert "default-src 'none'" in policy
    assert "innerHTML" not in page
