"""Serve a page on this machine only: drop a photo there, and see what the trained models say about it."""

from __future__ import annotations

import socket
import threading
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from components.commands import cli
from components.commands.photo_uses import PhotoUses
from components.commands.search import Folders
from components.stages.exit_code import exit_code

HOST = "127.0.0.1"
MOST_BYTES = 32 * 2**20  # of a photo's file
MOST_TEXT = 500  # characters of a question
K, BEST = 12, 5  # photos and classes that are shown
PAGE = Path(__file__).parent.parent / "reporting" / "app.html"
POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


class TooLargeError(ValueError):
    """A file of more than MOST_BYTES."""


def make_app(uses: PhotoUses) -> FastAPI:
    """Returns the web application. Everything that cannot be done is answered by {"error": one sentence}."""
    app = FastAPI(title="selfsight", docs_url=None, redoc_url=None, openapi_url=None)
    # refuses pages of another site whose name was made to resolve to this machine (DNS rebinding)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    model_lock = threading.Lock()  # the models take all cores: one photo at a time

    async def call(function: Callable[..., Any], *args: Any) -> Any:
        def alone() -> Any:
            with model_lock:
                return function(*args)

        return await run_in_threadpool(alone)

    @app.middleware("http")
    async def only_this_page(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if origin and origin != f"{request.url.scheme}://{request.headers.get('host')}":
            return JSONResponse({"error": "requests of other pages are refused"}, 403)
        response = await handle(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @app.exception_handler(ValueError)
    async def refuse(_: Request, error: ValueError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 413 if isinstance(error, TooLargeError) else 422)

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"this failed ({type(error).__name__}); the terminal tells more"}, 500)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.post("/{use}")
    async def photo(use: str, request: Request, name: str = "the photo", question: str = "") -> Any:
        _check_text("the question", question)
        kinds: dict[str, Callable[[Any], Any]] = {
            "open": lambda photo: {"size": photo.size},  # as the models see it
            "similar": lambda photo: {"photos": [asdict(match) for match in uses.similar(photo, K)]},
            "classes": lambda photo: {"classes": uses.classes(photo, BEST)},
            "attention": lambda photo: dict(zip(("image", "shown"), uses.attention(photo), strict=True)),
            "answer": lambda photo: {"answer": uses.answer(photo, question)},
        }
        if use not in kinds:
            return JSONResponse({"error": f"no use {use!r}; allowed: {', '.join(kinds)}"}, 404)
        content = await _content(request, name)
        return await call(lambda: kinds[use](uses.open(content, name)))

    @app.get("/text")
    async def text(words: str) -> Any:
        _check_text("the text", words)
        return {"photos": [asdict(match) for match in await call(uses.by_text, words, K)]}

    return app


def _check_text(name: str, text: str) -> None:
    if len(text) > MOST_TEXT:
        raise ValueError(f"{name} has {len(text)} characters; allowed: {MOST_TEXT}")


async def _content(request: Request, name: str) -> bytes:
    """Returns the body. Raises TooLargeError as soon as it is known to be too large."""
    too_large = TooLargeError(f"{name} is larger than {MOST_BYTES / 2**20:.0f} MB, which is the most allowed here")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > MOST_BYTES:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MOST_BYTES:
            raise too_large
    return b"".join(parts)


def main() -> None:
    parser = ArgumentParser(prog="selfsight app", description=__doc__)
    parser.add_argument("--port", type=int, default=8765, help="port of the page; 0: any free one (default: 8765)")
    args = parser.parse_args()
    with exit_code("app", parser):
        stage_folders = cli.folders("embed")
        folders = Folders(
            stage_folders["backbone"], stage_folders["data"], stage_folders["out"], cli.folders("words")["out"]
        )
        app = make_app(PhotoUses(folders, cli.folders("adapt")["out"], cli.folders("answer")["model"]))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, args.port))
            listener.listen()  # before the address is printed, so that nobody is refused while the server starts
        except (OSError, OverflowError) as error:
            raise ValueError(f"port {args.port} cannot be used ({error}); try --port 0") from None
        print(f"open http://{HOST}:{listener.getsockname()[1]} in a browser; Ctrl-C ends", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
