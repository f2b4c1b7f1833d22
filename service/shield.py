"""Placeholder until the real one is written: overwrite this file."""
from typing import Any


class Shield:
    def __init__(self, app: Any, **_: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
