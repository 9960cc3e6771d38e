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


def test_several_without_a_default_one_are_none(tmp_path: Path) -> None:
    assert with_template(tmp_path, [{"name": "tools", "template": "t"}]).chat is None
    assert with_template(tmp_path, []).chat is None


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (["a", "b"], "its list holds other things"),
        ([{"name": "default", "template": "d"}, None], "its list holds other things"),
        ([{"name": "default", "template": 3}], "of the type int"),
        ([{"name": "default"}], "of the type NoneType"),
        ({"default": "d"}, "of the type dict"),
        (7, "of the type int"),
        (False, "of the type bool"),
    ],
)
def test_what_is_no_template_is_an_error_where_one_is_needed(tmp_path: Path, template: object, why: str) -> None:
    """And the tokenizer is one all the same."""
    opened = with_template(tmp_path, template)
    assert opened.decode(opened.encode("import os")) == "import os"
    assert opened.chat is not None
    with pytest.raises(BadInput, match=rf"tokenizer_config\.json is broken: .*{why}") as caught:
        opened.chat.prompt(TALK)
    assert "without --chat" in caught.value.hint


def test_a_file_that_is_no_utf_8_is_an_error_where_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ messages[0].content }}\xff\xfe")
    opened = with_template(tmp_path, "d")
    assert opened.decode(opened.encode("import os")) == "import os"
    assert opened.chat is not None
    with pytest.raises(BadInput, match=r"chat_template\.jinja is broken: it cannot be read: .*utf-8"):
        opened.chat.prompt(TALK)


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    chat = with_template(tmp_path, "{{ messages[0].content }}\ud800").chat
    assert chat is not None
    with pytest.raises(BadInput, match=r"does not take this conversation: .*surrogates"):
        chat.prompt(TALK)
