"""uvicorn with the settings of clipreel, which says when it answers."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from clipreel.server.security import WithoutToken

CONNECTIONS = 1000  # at once; the next one is told to come back


class Announced(uvicorn.Server):
    """Calls `ready` when the services have started and connections are accepted."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def run(app: FastAPI, listening: socket.socket, ready: Callable[[], None], log: bool) -> None:
    """Serve until the process is told to end; `log` writes a line for each request."""
    sys.setswitchinterval(0.0005)  # so that a search at work does not hold up who only comes to ask
    config = uvicorn.Config(
        app,
        loop="asyncio",  # not uvloop, which forks in a way that LanceDB's threads may not survive
        log_level="info" if log else "warning",
        access_log=log,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
    )
    logging.getLogger("uvicorn.access").addFilter(WithoutToken())  # after the config, which sets loggers up
    Announced(config, ready).run(sockets=[listening])
