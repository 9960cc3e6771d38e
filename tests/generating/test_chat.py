"""Chat templates: as transformers renders them, and broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.decoders import decoder
from optimizer.errors import BadInput
from optimizer.generating.tokens import TextTokenizer

TEMPLATE = """{{ bos_token }}{% for message in messages %}
    {% if loop.index0 > 3 %}{% break %}{% endif %}
<|{{ message.role }}|>{{ message.content | trim }}{{ {"a": "<ü>"} | tojson }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}"""
TALK = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "?"}]


def with_template(folder: Path, template: object, file: bool = False) -> TextTokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(decoder("llama", size="tiny") / name, folder)
    if file:
        (folder / "chat_template.jinja").write_text(str(template))
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return TextTokenizer(folder)


@pytest.mark.parametrize("file", [True, False])
def test_it_is_rendered_as_transformers_does(tmp_path: Path, file: bool) -> None:
    from transformers import AutoTokenizer

    chat = with_template(tmp_path, TEMPLATE, file).chat
    assert chat is not None
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert chat.prompt(TALK) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)


def test_of_several_the_default_one_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    chat = with_template(tmp_path, named).chat
    assert chat is not None
    assert chat.prompt(TALK) == "d"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}", "is broken: .*endfor"),
        ("{{ messages[0].content + 1 }}", "does not take this conversation"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages.append(1) }}", "does not take this conversation"),
        ("{{ ''.__class__.__mro__ }}", "does not take this conversation"),
    ],
)
def test_a_broken_template_is_refused_with_its_error(tmp_path: Path, template: str, why: str) -> None:
    chat = with_template(tmp_path, template).chat
    assert chat is not None
    with pytest.raises(BadInput, match=why):
        chat.prompt(TALK)


def test_no_template_is_none(tmp_path: Path) -> None:
    assert with_template(tmp_path, None).chat is None
