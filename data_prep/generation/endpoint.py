"""Where chat requests go: `asking` sends them there, and `serving` has servers of our own, which come and go."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Endpoint(ABC):
    """Where requests go: something fixed, or a server of our own that may end and come back at another port."""

    concurrency: int
    """Requests under way at once."""
    lives: int = 1
    """Servers that may end under one request before it counts as failed."""
    trust_environment: bool = True
    """Whether the proxies of the environment hold for it; not for a server on this machine."""

    @abstractmethod
    async def ready(self) -> tuple[str, "asyncio.Future[None]"]:
        """Wait until it takes requests: its URL, and a future that is done when what is there now has ended."""

    @abstractmethod
    async def keep(self) -> None:
        """Runs beside the requests, cancelled when all are answered. Raises StageError where it cannot go on."""

    @abstractmethod
    def answered(self) -> None:
        """Told of every answer."""
