"""What may stand in a prompt, and what of it the model and the log see.

Nothing is refused for the words in it: whoever asks about ``eval(`` or a ``<script>`` asks honestly. What is looked at
is what no prompt needs: control characters, halves of characters, more text than the server takes, and, where it is
asked for, personal data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from optimizer.options import Options, opt
from optimizer.serving.guard.personal import Found, Personal
from optimizer.serving.guard.redaction import Redactor, find, redact
from optimizer.serving.problems import Problem

__all__ = ["PrivacySettings", "PromptSettings", "Screen"]

#: C0 and C1 controls but tab, newline and carriage return, and halves of surrogate pairs, which are no characters.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

#: A mark, and the spaces beside it.
_BESIDE_A_MARK = re.compile(r" ?([^\w\s]) ?")


class PromptSettings(Options):
    """``[prompts]`` of ``serve.toml``."""

    max_characters: int = opt(1_000_000, "Most characters of one text.", ge=1, le=100_000_000)
    control_characters: str = opt(
        "reject", "What becomes of a text with control characters.", choices=("reject", "remove", "keep")
    )


class PrivacySettings(Options):
    """``[privacy]`` of ``serve.toml``, and ``[privacy.models.NAME]`` for one model."""

    prompts: str = opt("off", "Personal data in prompts.", choices=("off", "redact", "reject"))
    outputs: str = opt("off", "Personal data in what a model writes.", choices=("off", "redact"))
    kinds: tuple[str, ...] = opt(
        tuple(k.value for k in Personal), "What is looked for.", choices=tuple(k.value for k in Personal)
    )


class Screen:
    """Looks at texts on their way in, out and into the log.

    Args:
        prompts: limits of every text.
        usual: for models without settings of their own.
        models: name → its settings.
    """

    def __init__(
        self,
        prompts: PromptSettings | None = None,
        usual: PrivacySettings | None = None,
        models: Mapping[str, PrivacySettings] | None = None,
    ) -> None:
        self._prompts = prompts if prompts is not None else PromptSettings.from_mapping({})
        self._usual = usual if usual is not None else PrivacySettings.from_mapping({})
        self._models = dict(models or {})

    def of(self, model: str) -> PrivacySettings:
        """What holds for a model."""
        return self._models.get(model, self._usual)

    def prompt(self, text: str, model: str, param: str) -> str:
        """The text as the model may see it.

        Args:
            text: what was asked.
            model: the model's name.
            param: where in the request it stood.

        Raises:
            Problem: 400, naming the place and the sort of thing, and nothing of the text.
        """
        most = self._prompts.max_characters
        if len(text) > most:
            raise Problem(
                400, f"{param} has {len(text)} characters; {most} are the most", param=param, reason="too_long"
            )
        if self._prompts.control_characters != "keep" and (found := _CONTROL.search(text)) is not None:
            if self._prompts.control_characters == "reject":
                message = f"{param} has the control character U+{ord(found[0]):04X} at {found.start()}"
                raise Problem(400, message, param=param, code="control_character", reason="control_character")
            text = _CONTROL.sub("", text)
        privacy = self.of(model)
        if privacy.prompts == "redact":
            return redact(text, _kinds(privacy))
        if privacy.prompts == "reject":
            _reject(find(text, _kinds(privacy)), model, param)
        return text

    def tokens(self, decode: Callable[[], str], model: str, param: str) -> None:
        """Look at token ids that stand for a text, by the same settings.

        Tokenizers that cut at every mark do not know afterwards whether there were spaces beside it; so the text is
        looked at with them and without.

        Args:
            decode: the text; not called where nobody looks at texts.
            model: the model's name.
            param: where in the request they stood.

        Raises:
            Problem: 400: there is personal data in it that the model is not given, or nothing could be taken out of it.
        """
        privacy = self.of(model)
        if privacy.prompts == "redact":
            message = f"{param} has token ids, out of which nothing can be redacted for {model}; send the text"
            raise Problem(400, message, param=param, code="personal_data", reason="personal_data")
        if privacy.prompts == "reject":
            text, kinds = decode(), _kinds(privacy)
            _reject([*find(text, kinds), *find(_BESIDE_A_MARK.sub(r"\1", text), kinds)], model, param)

    def output(self, model: str) -> Redactor | None:
        """What a text that the model writes goes through, piece by piece; None where it is left as it is."""
        privacy = self.of(model)
        return Redactor(_kinds(privacy)) if privacy.outputs == "redact" else None


def _reject(personal: Sequence[Found], model: str, param: str) -> None:
    if personal:
        sorts = ", ".join(dict.fromkeys(piece.kind.value for piece in personal))
        message = f"{param} holds personal data ({sorts}), which {model} is not given"
        raise Problem(400, message, param=param, code="personal_data", reason="personal_data")


def _kinds(privacy: PrivacySettings) -> frozenset[Personal]:
    return frozenset(Personal(word) for word in privacy.kinds)
