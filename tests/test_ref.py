"""References parse, print themselves again, and never crash."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import BadInput
from optimizer.ref import Ref, check_name, is_name, safe_name

WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True).filter(is_name)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("minilm", Ref("minilm")),
        ("minilm@3", Ref("minilm", "3")),
        ("minilm@3:int8-static", Ref("minilm", "3", "int8-static")),
        ("minilm@production", Ref("minilm", "production")),
        ("minilm:fp32", Ref("minilm", "", "fp32")),
        ("a.b_c-d", Ref("a.b_c-d")),
    ],
)
def test_the_forms_of_a_reference(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "@1", ":x", "a@", "a:", "a@1@2", "a:b:c", "a:b@1", "../x", "a..b", "-a", ".a", "a/b", "a\n"],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(BadInput, match="is not a reference"):
        Ref.parse(text)


def test_only_numbers_are_versions() -> None:
    assert Ref.parse("a@12").version == 12
    assert Ref.parse("a@v12").version is None


@given(name=WORDS, at=st.one_of(st.just(""), WORDS), variant=st.one_of(st.just(""), WORDS))
def test_printed_and_parsed_it_is_the_same(name: str, at: str, variant: str) -> None:
    ref = Ref(name, at, variant)
    assert Ref.parse(str(ref)) == ref


@given(st.text())
def test_random_text_is_parsed_or_refused(text: str) -> None:
    try:
        ref = Ref.parse(text)
    except BadInput:
        return
    assert str(ref) == text
    assert is_name(ref.name)


@given(st.text())
def test_a_safe_name_is_always_a_name(text: str) -> None:
    assert check_name("model", safe_name(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("dir/model.onnx", "model"),
        ("my model/", "my-model"),
        ("///", "model"),
        ("..", "model"),
        ("a" * 300, "a" * 100),
    ],
)
def test_safe_names(text: str, name: str) -> None:
    assert safe_name(text) == name


def test_an_alias_may_not_read_as_a_version() -> None:
    assert check_name("variant", "8") == "8"
    with pytest.raises(BadInput, match="version number"):
        check_name("alias", "8")
    with pytest.raises(BadInput, match="cannot name a model"):
        check_name("model", "a/b")
