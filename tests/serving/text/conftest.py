"""One server of texts for all tests here that need a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_texts import TEMPLATE, put_text, served
from serving import artifacts

from optimizer.store import Store


@pytest.fixture(scope="package")
def text_server(tmp_path_factory: pytest.TempPathFactory, llama_generator: Path) -> Iterator[str]:
    """The tiny Llama three times: for conversations, without a template, and with one that is broken.

    Beside it what writes no text: ``classes`` and ``vectors``.
    """
    root = tmp_path_factory.mktemp("texts") / "models"
    store = Store(root)
    put_text(store, llama_generator, "llama", TEMPLATE)
    put_text(store, llama_generator, "plain")
    put_text(store, llama_generator, "broken", "{% for %}")
    artifacts.put(store, "classes")
    artifacts.put(store, "vectors", "last_hidden_state")
    with served(root, "llama", "plain", "broken", "classes", "vectors") as url:
        yield url
