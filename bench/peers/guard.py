"""Who may have a stream: the same check for the product and for what it is measured against."""

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
