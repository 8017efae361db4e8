"""The page at ``/``: paste completions, see how the reward ranks them and what its models were given."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request, Response

__all__ = ["router"]

_TYPES_BY_ENDING = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_TYPES = {
    file.name: _TYPES_BY_ENDING[ending]
    for file in files(__name__).iterdir()
    if (ending := PurePath(file.name).suffix) in _TYPES_BY_ENDING
}
"""Every file that is served; nothing else of this folder is."""

_HEADERS = {
    # Nothing inline and nothing from elsewhere runs or is loaded, and no form is ever sent by the browser itself: texts that
    # are pasted here reach this server's API and nobody else.
    "Content-Security-Policy": (
        "default-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for again each time: a newer server never meets an older script
}

router = APIRouter(include_in_schema=False)


@cache
def _content_and_etag(name: str) -> tuple[bytes, str]:
    content = files(__name__).joinpath(name).read_bytes()
    return content, f'"{sha256(content).hexdigest()[:32]}"'


@router.api_route("/", methods=["GET", "HEAD"])
async def _page(request: Request) -> Response:
    return _answer(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def _part(request: Request, name: str) -> Response:
    if name not in _TYPES:
        return Response(f"The page has no part {name!r}.", 404, _HEADERS, "text/plain; charset=utf-8")
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    content, etag = _content_and_etag(name)
    headers = {**_HEADERS, "ETag": etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name])
