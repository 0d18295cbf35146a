"""What went wrong with a service, in words that a client may see. What it said itself is for the log only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from eventmux import SourceError

if TYPE_CHECKING:
    import openai

# In an error's code: asking again would fail again.
PERMANENT = re.compile(r"invalid|policy|quota|billing|context_length|content_filter|not_found|image|auth|permission")
LABEL = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


class UnfinishedError(Exception):
    """The stream ended in order, and the answer did not."""


class ReportedError(Exception):
    """The service said in its stream that it failed."""

    def __init__(self, code: str | None, message: str | None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@contextmanager
def explained(*, model: str, key: str) -> Iterator[None]:
    """Make a SourceError of what the service or the way to it raises; any other exception stays what it is.

    The original is chained for the log, without `key`: services repeat a bad key in their error text.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        redact(error, key)
        if explanation := explain(error, model=model, key=key):
            raise explanation from error
        raise


def redact(error: BaseException, key: str) -> None:
    """Take `key` out of the text of `error` and of all that it is chained to."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        link.args = tuple(part.replace(key, "[api_key]") if isinstance(part, str) else part for part in link.args)
        chain += [link.__cause__, link.__context__, *getattr(link, "exceptions", ())]


def explain(error: Exception, *, model: str, key: str) -> SourceError | None:
    import httpx2
    import openai

    match error:
        case UnfinishedError():
            return SourceError("The model service ended its answer before it was complete.", retryable=True)
        case ReportedError():
            return _reported(error.code, key=key)
        case openai.APIStatusError():
            return _refused(error, model=model, key=key)
        case openai.APIConnectionError(__cause__=httpx2.ConnectError() | httpx2.UnsupportedProtocol()):
            return SourceError("The model service cannot be reached.", retryable=True)
        case openai.APIConnectionError() | httpx2.TransportError() | OSError():
            return SourceError(
                "The connection to the model service was cut in the middle of its answer.", retryable=True
            )
        case openai.APIError():
            return _reported(error.code or error.type, key=key)
        case ValueError():  # JSONDecodeError, UnicodeDecodeError, ValidationError
            return SourceError("The model service sent something that is not an answer.", retryable=True)
    return None


def _reported(code: str | None, *, key: str) -> SourceError:
    told = _labels(key=key, code=code)
    return SourceError(
        f"The model service failed in the middle of its answer{told}.", retryable=not _is_permanent(code)
    )


def _is_permanent(code: str | None) -> bool:
    """Some services give an HTTP status as the code, some a word, some nothing."""
    if code and code.isdecimal():
        return code.startswith("4") and code not in {"408", "409", "429"}
    return bool(code and PERMANENT.search(code.lower()))


def _refused(error: openai.APIStatusError, *, model: str, key: str) -> SourceError:
    told = _labels(key=key, code=error.code, parameter=error.param)
    status = error.status_code
    if status == 401:
        return SourceError("The model service refused the API key that this source is configured with.")
    if status == 402 or (status == 429 and "insufficient_quota" in {error.code, error.type}):
        return SourceError("The quota of the API key that this source is configured with is used up.")
    if status == 403:
        return SourceError(f"The API key that this source is configured with may not use the model {model!r}{told}.")
    if status == 404:
        return SourceError(f"The model service has no model {model!r}, or not for this source's API key.")
    if status == 429:
        return SourceError("The model service's rate limit is reached: try again later.", retryable=True)
    if status in {408, 409} or status >= 500:
        return SourceError(f"The model service is in trouble (HTTP {status}): try again later.", retryable=True)
    return SourceError(f"The model service refused the request (HTTP {status}{told}).")


def _labels(*, key: str, **labels: str | None) -> str:
    """`, code: context_length_exceeded`: the short words that say which of many reasons it was, and nothing longer."""
    said = {name: value for name, value in labels.items() if value and LABEL.fullmatch(value) and key not in value}
    return "".join(f", {name}: {value}" for name, value in said.items())
