"""What a principal reaches of a catalog, and what it is told of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CredentialsError, ForbiddenError, UnknownSourceError

if TYPE_CHECKING:
    from ..access import Principal
    from ..catalog import Catalog, EnabledSource


@dataclass(frozen=True, slots=True)
class Reach:
    """What a principal has of a catalog. `hides`: whether the rest is as if it were not there."""

    principal: Principal
    catalog: Catalog
    hides: bool = False

    @property
    def readable(self) -> Catalog:
        return self.catalog.readable(self.principal)

    def source(self, name: str) -> EnabledSource:
        """For a selection. Raises UnknownSourceError, in which stands nothing that is hidden, or ForbiddenError."""
        enabled = self.catalog.sources.get(name)
        if enabled is None or not self.principal.may_read(name):
            if enabled and not self.hides:
                raise self._forbidden(f"source {name!r}")
            self.readable.source(name)
        return self.catalog.sources[name]

    def check(self, name: str, members: list[str]) -> None:
        """The same for what has a path of its own: a source, or a stream with these members."""
        forbidden = next((member for member in members if not self.principal.may_read(member)), None)
        if forbidden is None:
            return
        if self.hides:
            raise self.unknown(name)
        raise self._forbidden(f"source {name!r}" if members == [name] else f"source {forbidden!r} of stream {name!r}")

    def check_publish(self, name: str) -> None:
        """The same for who publishes, to a source that may be unknown."""
        if self.principal.may_publish(name):
            return
        if name not in self.catalog.sources or (self.hides and not self.principal.may_read(name)):
            raise self.unknown(name)
        raise self._forbidden(f"source {name!r}", "publish to")

    def unknown(self, name: str) -> UnknownSourceError:
        readable = self.readable
        return UnknownSourceError(name, [*readable.sources, *readable.streams])

    def _forbidden(self, what: str, action: str = "read") -> Exception:
        if self.principal.is_anonymous:
            return CredentialsError(f"nobody may {action} {what} without a token: send Authorization: Bearer")
        return ForbiddenError(
            f"{self.principal.name!r} may not {action} {what}: ask its operator, or use another token"
        )
