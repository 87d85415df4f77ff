"""Who may ask, from where, and how much: Host, Origin, token, sizes, and the headers of every answer.

A page of another site can make a browser ask this server. Host names are checked against DNS rebinding, Origin and
Sec-Fetch-Site against cross-site requests; outside of loopback a token is needed besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import re
import secrets
import socket
import time
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipreel.server.errors import ApiError, told
from clipreel.server.metrics import Metrics
from clipreel.server.settings import Settings

COOKIE = "clipreel_token"
UNREAD = "clipreel.unread"  # in a scope: whether some of its body is left
LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def new_token() -> str:
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> tuple[str, ...]:
    """Names of this machine, under which others may call it."""
    name = socket.gethostname().lower()
    return tuple(dict.fromkeys((host.lower(), name, f"{name}.local", socket.getfqdn().lower())))


def name_of(host: str) -> str:
    """The name in a Host header, without the port: [::1]:80 -> ::1."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class Guard:
    """The outermost layer of the app; measures every answer besides."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        metrics.describe("http_requests_total", "answers by route, method and status")
        metrics.describe("http_seconds", "time to the first byte of an answer by route")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, method = time.perf_counter(), scope["method"]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope.get(UNREAD):
                    headers["connection"] = "close"
                if scope["path"].startswith("/api"):
                    headers.setdefault("cache-control", "no-store")
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.count("http_requests_total", route=route, method=method, status=str(message["status"]))
                self.metrics.time("http_seconds", time.perf_counter() - started, route=route)
            await send(message)

        try:
            answer = self.check(scope)
        except ApiError as e:
            if e.status == 413:
                await self.drop(scope, receive)
            answer = told(e.status, e.code, e.message, e.headers)
        if answer is not None:
            await answer(scope, receive, sending)
        else:
            await self.app(scope, self.bounded(scope, receive), sending)

    def check(self, scope: Scope) -> Response | None:
        """An answer instead of the app's, or None. Raises ApiError for who may not ask."""
        headers = Headers(scope=scope)
        if len(scope.get("query_string", b"")) > self.settings.query_string_bytes:
            raise ApiError(413, "too-large", f"an address of more than {self.settings.query_string_bytes} bytes")
        self.check_host(headers)
        self.check_origin(scope, headers)
        answer = self.check_token(scope, headers)
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.most(scope):
            raise ApiError(413, "too-large", f"{length} bytes: at most {self.most(scope)} are taken here")
        return answer

    def check_host(self, headers: Headers) -> None:
        """Names that somebody else's DNS may point here are refused; addresses cannot be rebound."""
        host = name_of(headers.get("host", ""))
        known = host in LOOPBACK or host in self.settings.hosts
        if not known and not self.settings.loopback:
            try:
                known = bool(ipaddress.ip_address(host))
            except ValueError:
                known = False
        if not known:
            raise ApiError(403, "host", f"{host[:80]!r} is no name of this server; open it as localhost or by address")

    def check_origin(self, scope: Scope, headers: Headers) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise ApiError(403, "origin", f"pages of {origin[:80]!r} may not use this server; open its own page")
        # a browser says where a request comes from; only a followed link may come from elsewhere, and only to the page
        visit = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET"
        if site in ("cross-site", "same-site") and not (visit and not scope["path"].startswith("/api")):
            raise ApiError(403, "origin", "another site asked for this; open the page of this server itself")

    def check_token(self, scope: Scope, headers: Headers) -> Response | None:
        token = self.settings.token
        if not token:
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if same(given, token) or same(cookie(headers), token):
            return None
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and scope["method"] == "GET" and same(asked, token):
            # the address without the token, so that it stays out of histories and screenshots
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86400)
            return answer
        raise ApiError(
            401,
            "token",
            "this server needs its token: open the address that `clipreel serve` printed, or send it as "
            "Authorization: Bearer TOKEN",
            headers={"www-authenticate": "Bearer"},
        )

    def most(self, scope: Scope) -> int:
        """Bytes that a request to this path may have."""
        extra = self.settings.upload_bytes if scope["path"] == "/api/v1/uploads" else 0
        return self.settings.body_bytes + extra

    def bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Takes a body in up to its limits of size and time; afterwards it waits as long as the client stays."""
        taken, whole, end = 0, False, time.monotonic() + self.settings.body_s

        async def receiving() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0.01))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the request took more than {self.settings.body_s:g} s to come") from None
            taken += len(message.get("body", b""))
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if taken > self.most(scope):
                if not whole:
                    await self.drop(scope, receive)
                raise HTTPException(413, f"more than {self.most(scope)} bytes; send less")
            return message

        return receiving

    async def drop(self, scope: Scope, receive: Receive) -> None:
        """Read past a body that is refused: a client that sends all of it before it reads would only see a reset.

        Ends after the bytes and the time that the settings allow, and with it the connection.
        """

        async def past() -> None:
            left = self.settings.dropped_bytes
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    scope[UNREAD] = False
                    return

        scope[UNREAD] = True
        if Headers(scope=scope).get("expect", "").lower() != "100-continue":  # who asks first sends nothing
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(past(), self.settings.dropped_s)


class WithoutToken(logging.Filter):
    """Keeps the token of a first visit out of the lines of a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            *said, status = record.args
            record.args = (*(re.sub(r"\btoken=[^& ]*", "token=...", str(a)) for a in said), status)
        return True


def same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
