"""The whole stack behind one object."""

from asyncoffload.offloader.offloader import Offloader
from asyncoffload.offloader.results import LoadResult, OffloaderStats, StoreResult

__all__ = ["LoadResult", "Offloader", "OffloaderStats", "StoreResult"]
