"""`GET /`: a page that lists the sources and opens them, one by one or merged."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from .auth import Guard

# The page is one file and loads nothing from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"


def router(guard: Guard) -> APIRouter:
    routes = APIRouter()
    page = files(__package__).joinpath("dashboard.html").read_text("utf-8")
    # Shown at once: where something may be read without a token, no refusal would bring it up.
    asking = page.replace('<form id="login" hidden>', '<form id="login">')

    @routes.get("/", include_in_schema=False)
    async def dashboard() -> HTMLResponse:
        return HTMLResponse(page if guard.is_open else asking, headers={"Content-Security-Policy": POLICY})

    return routes
