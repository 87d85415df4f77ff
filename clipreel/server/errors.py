"""Errors as the API tells them: a code for programs, one clear line with the next step for people."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipreel.errors import ClipreelError

VERSION = 1
CODES = {400: "bad-request", 401: "token", 404: "not-found", 405: "method", 413: "too-large", 415: "content-type"}


class ApiError(Exception):
    """An answer other than 200. `facts` are added to the error object, e.g. the state of a video."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: dict[str, str] | None = None, **facts: Any
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers, self.facts = status, code, message, headers, facts


class Busy(ApiError):
    """Too much at once: 503 and when to come back. Never the answer to a bad request."""

    def __init__(self, what: str, after_s: int = 2) -> None:
        message = f"{what}; ask again in {after_s} s"
        super().__init__(503, "busy", message, headers={"retry-after": str(after_s)})


def body(code: str, message: str, **facts: Any) -> dict[str, Any]:
    return {"version": VERSION, "error": {"code": code, "message": message, **facts}}


def told(status: int, code: str, message: str, headers: dict[str, str] | None = None, **facts: Any) -> JSONResponse:
    return JSONResponse(body(code, message, **facts), status, headers)


def install(app: FastAPI) -> None:
    """Every error of the app in the one shape."""

    async def api_error(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, ApiError)
        return told(e.status, e.code, e.message, e.headers, **e.facts)

    async def user_error(_: Request, e: Exception) -> JSONResponse:
        return told(422, "refused", str(e))

    async def invalid(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, RequestValidationError)
        return told(422, "invalid", sentence(e))

    async def http_error(_: Request, e: Exception) -> JSONResponse:
        assert isinstance(e, HTTPException)
        headers = dict(e.headers) if e.headers else None
        return told(e.status_code, CODES.get(e.status_code, "error"), str(e.detail), headers)

    async def bug(request: Request, e: Exception) -> JSONResponse:
        return told(500, "bug", f"{request.url.path} failed in the server; its log says how, please report it")

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(ClipreelError, user_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, bug)


def sentence(e: RequestValidationError) -> str:
    """The first thing that is wrong with a request, with where it stands and what was given."""
    first = e.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()))
    given = first.get("input")
    shown = "" if given is None or isinstance(given, dict | list | bytes) else f" (given: {str(given)[:80]!r})"
    return f"{place}: {first.get('msg', 'not valid')}{shown}; see /openapi.json for what is allowed"
