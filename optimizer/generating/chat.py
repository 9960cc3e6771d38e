"""A conversation as the prompt that a model was trained on: its chat template, rendered as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optimizer.environment import need_modules
from optimizer.errors import BadInput

__all__ = ["ChatTemplate"]

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_MEND = "mend it, or give the prompt as it is: without --chat"


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, from ``chat_template.jinja`` or tokenizer_config.json.

    Attributes:
        text: the template; empty where it cannot be read.
        special: the model's special tokens by their names, which it may write.
        file: where it was found.
        unreadable: why it cannot be read; empty where it can. Texts that need no template are written all the same.
    """

    text: str
    special: Mapping[str, str]
    file: Path
    unreadable: str = ""

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
        """The template of a folder; of several the one called ``default``; None where it has none.

        One that cannot be read is no error before it is needed.
        """
        special = {}
        for name in _SPECIAL:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                special[name] = token
        path = folder / "chat_template.jinja"
        if path.is_file():
            try:
                return cls(path.read_text(encoding="utf-8"), special, path)
            except (OSError, UnicodeDecodeError) as error:
                return cls("", special, path, f"it cannot be read: {error}")
        path, found = folder / "tokenizer_config.json", config.get("chat_template")
        if found is None:
            return None
        if isinstance(found, list):
            if not all(isinstance(one, dict) for one in found):
                return cls("", special, path, "its list holds other things than objects with a name and a template")
            named = [one.get("template") for one in found if one.get("name") == "default"]
            if not named:
                return None
            found = named[0]
        if not isinstance(found, str):
            return cls("", special, path, f"it is no text, but of the type {type(found).__name__}")
        return cls(found, special, path)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, up to where the model's answer begins.

        Args:
            messages: ``role`` and ``content`` of each.

        Raises:
            BadInput: the template cannot be read, is broken, or refuses the conversation.
            MissingPiece: Jinja is not installed.
        """
        if self.unreadable:
            raise BadInput(f"the chat template of {self.file} is broken: {self.unreadable}", _MEND)
        need_modules(("jinja2",), "a chat template")
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            template = environment.from_string(self.text)
            text = str(template.render(messages=list(messages), add_generation_prompt=True, **self.special))
            text.encode()  # half a surrogate pair is in no tokenizer
            return text
        except jinja2.TemplateSyntaxError as error:
            raise BadInput(
                f"the chat template of {self.file} is broken: {error.message} (its line {error.lineno})",
                _MEND,
            ) from error
        except Exception as error:  # a template may fail in every way that an expression can
            raise BadInput(
                f"the chat template of {self.file} does not take this conversation: {error}",
                "give the prompt as it is: without --chat",
            ) from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Jinja's own filter writes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)
