"""``serve.toml``: everything that can be set of a server, in one file that is read and checked whole.

::

    [server]                        # the flags of `ml-opt serve`; a flag that is typed wins
    host = "0.0.0.0"
    max-queue = 512

    [auth]
    keys = "keys.json"              # paths are relative to this file
    rate = "600/minute"             # for callers that have no rate of their own

    [auth.jwt]
    issuer = "https://issuer.example"
    audience = "ml-opt"
    jwks-file = "jwks.json"

    [prompts]
    max-characters = 20000

    [privacy]
    prompts = "redact"

    [privacy.models.support-chat]
    prompts = "reject"
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from optimizer.errors import BadInput, UnknownName
from optimizer.options import Options
from optimizer.ref import check_name
from optimizer.serving.guard.doorkeeper import AuthSettings, Doorkeeper, check_address
from optimizer.serving.guard.guarding import Guarding
from optimizer.serving.guard.jwt_tokens import JwtSettings
from optimizer.serving.guard.screening import PrivacySettings, PromptSettings, Screen
from optimizer.serving.settings import Settings

__all__ = ["ServeConfig", "guard_of", "read_config"]

O = TypeVar("O", bound=Options)  # noqa: E741 - as in optimizer.options


@dataclass(frozen=True)
class ServeConfig:
    """A server's settings, checked.

    Attributes:
        server: ``[server]``, and the flags.
        auth: ``[auth]``.
        jwt: ``[auth.jwt]``; None where no tokens are taken.
        prompts: ``[prompts]``.
        privacy: ``[privacy]``.
        models: ``[privacy.models.NAME]``.
    """

    server: Settings
    auth: AuthSettings
    jwt: JwtSettings | None
    prompts: PromptSettings
    privacy: PrivacySettings
    models: Mapping[str, PrivacySettings] = field(default_factory=dict)


def read_config(path: Path | None, flags: Mapping[str, Any] | None = None) -> ServeConfig:
    """Read ``serve.toml``.

    Args:
        path: the file; None for the defaults.
        flags: what was typed, by the names of :class:`Settings`; wins over ``[server]``.

    Raises:
        BadInput: there is no such file, it is no TOML, or a key or value in it is wrong (it is named).
    """
    data = _read(path) if path is not None else {}
    name = str(path) if path is not None else "serve"
    folder = path.parent if path is not None else Path()
    _only(data, {"server", "auth", "prompts", "privacy"}, name)
    auth, privacy = _table(data, "auth", name), _table(data, "privacy", name)
    jwt = _table(auth, "jwt", f"{name}: [auth]") if "jwt" in auth else None
    _only(auth, {*(f.name for f in AuthSettings.fields()), "jwt"}, f"{name}: [auth]")
    auth.pop("jwt", None)
    models = _table(privacy, "models", f"{name}: [privacy]")
    privacy.pop("models", None)
    typed = Settings.from_mapping(flags or {}, "serve")
    # A key of TOML may be written with dashes, as a flag is; what was typed replaces it however it is written.
    server = {k.replace("-", "_"): v for k, v in _table(data, "server", name).items()}
    usual = _built(PrivacySettings, privacy, f"{name}: [privacy]", folder)
    return ServeConfig(
        server=_built(Settings, {**server, **(flags or {})}, f"{name}: [server]", folder) if server else typed,
        auth=_built(AuthSettings, auth, f"{name}: [auth]", folder),
        jwt=_built(JwtSettings, jwt, f"{name}: [auth.jwt]", folder) if jwt is not None else None,
        prompts=_built(PromptSettings, _table(data, "prompts", name), f"{name}: [prompts]", folder),
        privacy=usual,
        models={
            _name(model, f"{name}: [privacy.models]"): _built(
                # What one model does not say, it has as all do.
                PrivacySettings,
                {**usual.changed(), **_table(models, model, f"{name}: [privacy.models]")},
                f"{name}: [privacy.models.{model}]",
                folder,
            )
            for model in models
        },
    )


def guard_of(config: ServeConfig, told: Callable[[str], None] = lambda text: None) -> Guarding:
    """The guard that a server with these settings has, when it may listen where it is asked to.

    Args:
        config: the settings.
        told: is told in words when keys cannot be read any more; goes to the log.

    Raises:
        BadInput: an address that others reach, and no key; a file of keys that others can read; keys that do not fit.
        Damaged: the file of keys is none.
        MissingPiece: a package is not installed.
    """
    doorkeeper = Doorkeeper(config.auth, config.jwt, workers=config.server.workers, told=told)
    check_address(config.server.host, doorkeeper.configured)
    return Guarding(doorkeeper, Screen(config.prompts, config.privacy, config.models))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path} is no serve.toml: {error}") from None


def _only(table: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for key in table:
        if key.replace("-", "_") not in allowed:
            raise UnknownName(f"key of {where}", key, allowed)


def _table(data: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise BadInput(f"{where}: {key} is a table: write [{key}]")
    return dict(found)


def _name(model: str, where: str) -> str:
    try:
        return check_name("model", model)
    except BadInput as error:
        raise BadInput(f"{where}: {error.message}", error.hint) from None


def _built(options: type[O], values: Mapping[str, Any], where: str, folder: Path) -> O:
    """Options from a table; its relative paths start at the file's own folder, and an error names the table."""
    paths = {f.name for f in options.fields() if f.element is Path}
    anchored = {
        key: str(folder / value) if key.replace("-", "_") in paths and isinstance(value, str) and value else value
        for key, value in values.items()
    }
    try:
        return options.from_mapping(anchored, where)
    except BadInput as error:
        if where not in error.message:
            error.message = f"{where}: {error.message}"
        raise
