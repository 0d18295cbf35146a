"""Who may have a stream of a peer. The product asks for the same token by its own `auth`."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from .shape import TOKEN

bearer = HTTPBearer()


async def check(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> None:
    if not secrets.compare_digest(credentials.credentials, TOKEN):
        raise HTTPException(403, "wrong token")
