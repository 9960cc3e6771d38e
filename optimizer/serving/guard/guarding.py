"""The guard of a server: the doorkeeper, and the screen for what is said to models and by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optimizer.serving.guard.doorkeeper import Doorkeeper
from optimizer.serving.guard.redaction import Redactor
from optimizer.serving.guard.scopes import Admitted, Principal, Reservation
from optimizer.serving.guard.screening import Screen
from optimizer.serving.route import Scope

__all__ = ["Guarding"]


class Guarding:
    """What :class:`optimizer.serving.state.Guard` asks for.

    Args:
        doorkeeper: who is let in.
        screen: what texts may hold.
    """

    def __init__(self, doorkeeper: Doorkeeper, screen: Screen) -> None:
        self.doorkeeper = doorkeeper
        self._screen = screen

    @property
    def configured(self) -> bool:
        """See :attr:`Doorkeeper.configured`."""
        return self.doorkeeper.configured

    async def admit(self, scope: Scope, headers: Mapping[str, str], client: str) -> Admitted:
        """See :meth:`Doorkeeper.admit`."""
        return await self.doorkeeper.admit(scope, headers, client)

    async def reserve(self, who: Principal, tokens: int) -> Reservation:
        """See :meth:`Doorkeeper.reserve`."""
        return await self.doorkeeper.reserve(who, tokens)

    def screen(self, text: str, model: str, param: str) -> str:
        """See :meth:`Screen.prompt`."""
        return self._screen.prompt(text, model, param)

    def screen_tokens(self, decode: Callable[[], str], model: str, param: str) -> None:
        """See :meth:`Screen.tokens`."""
        self._screen.tokens(decode, model, param)

    def output(self, model: str) -> Redactor | None:
        """See :meth:`Screen.output`."""
        return self._screen.output(model)
