"""By what replicas know that they mean the same log. Nothing of it can be read back: parameters may hold secrets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from .store.contract import Address

if TYPE_CHECKING:
    from .catalog import EnabledSource

SIZE = 16  # bytes of a digest


def shared_address(enabled: EnabledSource, parameters: BaseModel) -> Address:
    """Of the log of all who give these parameters. What the operator has fixed does not count: with another value of it
    the log goes on, as it does where a file is changed.
    """
    given = {name: value for name, value in _fields(parameters).items() if name in enabled.settable}
    return Address(enabled.name, _digest(given))


def private_address(source: str, epoch: str) -> Address:
    return Address(source, epoch)


def private_label(enabled: EnabledSource, parameters: BaseModel, principal: str | None) -> str:
    """What a private log is bound to: it is given to nobody else."""
    given = {name: value for name, value in _fields(parameters).items() if name in enabled.settable}
    return _digest([principal, given])


def _digest(value: Any) -> str:
    text = json.dumps(_plain(value), separators=(",", ":"), sort_keys=True)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=SIZE).hexdigest()


def _fields(model: BaseModel) -> dict[str, Any]:
    return {name: getattr(model, name) for name in type(model).model_fields}


def _plain(value: Any) -> Any:
    """As JSON that is the same in every process: sets have an order, secrets are shown."""
    if isinstance(value, SecretStr | SecretBytes | Secret):
        return _plain(value.get_secret_value())
    if isinstance(value, BaseModel):
        return _plain(_fields(value))
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(one)] for key, one in sorted(value.items(), key=repr)]
    if isinstance(value, AbstractSet):
        return sorted((_plain(one) for one in value), key=repr)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return to_jsonable_python(value, fallback=repr, inf_nan_mode="strings", bytes_mode="base64")
