"""A store in Redis or Valkey, for the replicas of one service on many machines."""

from .store import RedisStore

__all__ = ["RedisStore"]
