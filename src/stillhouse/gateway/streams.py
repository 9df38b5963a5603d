"""Connections of asyncio for httpcore, which otherwise goes through anyio and needs more time for each request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httpcore

__all__ = ["AsyncioBackend"]

_MAX_UNSENT = 64 * 1024  # bytes, before a write waits for the connection


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Opens connections with asyncio's streams."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """:raises httpcore.ConnectError: (or ConnectTimeout) if there is no connection."""
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_connection(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (OSError, UnicodeError):
            raise httpcore.ConnectError from None
        return _Stream(reader, writer)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """One connection. What is written in one turn of the event loop is sent together: a request's head and body."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._unsent: list[bytes] = []
        self._size = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """:raises httpcore.ReadError: (or ReadTimeout) if the connection is broken."""
        try:
            if timeout is None:
                return await self._reader.read(max_bytes)
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError:
            raise httpcore.ReadTimeout from None
        except OSError:
            raise httpcore.ReadError from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """:raises httpcore.WriteError: if the connection is broken."""
        if not buffer:
            return
        if self._writer.is_closing():
            raise httpcore.WriteError
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(buffer)
        self._size += len(buffer)
        if self._size > _MAX_UNSENT:
            self._flush()
            try:
                await self._writer.drain()
            except OSError:
                raise httpcore.WriteError from None

    def _flush(self) -> None:
        unsent, self._unsent, self._size = self._unsent, [], 0
        if unsent and not self._writer.is_closing():
            self._writer.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))

    async def aclose(self) -> None:
        self._unsent, self._size = [], 0
        with suppress(OSError, RuntimeError):
            self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """:raises httpcore.ConnectError: (or ConnectTimeout) if the certificate is not valid, or TLS fails."""
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError:
            self._writer.close()
            raise httpcore.ConnectTimeout from None
        except OSError:
            self._writer.close()
            raise httpcore.ConnectError from None
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # asked while the connection is idle: then the upstream has closed it
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info({"client_addr": "sockname", "server_addr": "peername"}.get(info, info))
