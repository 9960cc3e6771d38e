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


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, from ``chat_template.jinja`` or tokenizer_config.json.

    Attributes:
        text: the template.
        special: the model's special tokens by their names, which it may write.
        file: where it was found.
    """

    text: str
    special: Mapping[str, str]
    file: Path

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
        """The template of a folder; of several the one called ``default``; None where it has none."""
        special = {}
        for name in _SPECIAL:
            token = config.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                special[name] = token
        path = folder / "chat_template.jinja"
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), special, path)
        path, found = folder / "tokenizer_config.json", config.get("chat_template")
        if isinstance(found, list):
            found = next((one.get("template") for one in found if one.get("name") == "default"), None)
        if found is None:
            return None
        if not isinstance(found, str):
            raise BadInput(f"{path}: its chat template is no text")
        return cls(found, special, path)

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt of a conversation, up to where the model's answer begins.

        Args:
            messages: ``role`` and ``content`` of each.

        Raises:
            BadInput: the template is broken, or refuses the conversation.
            MissingPiece: Jinja is not installed.
        """
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
            return str(template.render(messages=list(messages), add_generation_prompt=True, **self.special))
        except jinja2.TemplateSyntaxError as error:
            raise BadInput(
                f"the chat template of {self.file} is broken: {error.message} (its line {error.lineno})",
                "mend it, or give the prompt as it is: without --chat",
            ) from error
        except Exception as error:  # a template may fail in every way that an expression can
            raise BadInput(
                f"the chat template of {self.file} does not take this conversation: {error}",
                "give the prompt as it is: without --chat",
            ) from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **rest: Any) -> str:
    """Jinja's own filter writes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **rest)
