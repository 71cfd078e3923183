"""Eviction policies, and the names by which settings choose one."""

from asyncoffload.core.policies.arc import ARC
from asyncoffload.core.policies.base import EvictionPolicy
from asyncoffload.core.policies.lru import LRU
from asyncoffload.core.policies.recency import RecencyLog

POLICIES: dict[str, type[EvictionPolicy]] = {"lru": LRU, "arc": ARC}

__all__ = ["ARC", "LRU", "POLICIES", "EvictionPolicy", "RecencyLog"]
