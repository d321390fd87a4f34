"""The connection between a page of JupyterLab and its kernel, as `uftlab lab` wants it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.websocket import WebSocketClosedError


def _look_at(sent: asyncio.Future) -> None:
    """Accept that a page was left before a message reached it. Any other error is raised, and the server logs it."""
    error = None if sent.cancelled() else sent.exception()
    if error is not None and not isinstance(error, WebSocketClosedError):
        raise error


class Connection(ZMQChannelsWebsocketConnection):
    """A connection that drops messages for a page that is no longer there.

    A kernel goes on computing when its page is left. The connection of jupyter_server then logs a traceback for each
    message of the kernel, until the server notices that the page has gone: thousands of lines for one closed tab.
    """

    @property
    def write_message(self) -> Any:
        """Send a message to the page: `write_message(message, binary=False)`."""
        return self._write

    def _write(self, message: str | bytes, binary: bool = False) -> None:
        with contextlib.suppress(WebSocketClosedError):
            self.websocket_handler.write_message(message, binary=binary).add_done_callback(_look_at)
