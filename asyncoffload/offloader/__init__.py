"""The whole stack behind one object."""

from asyncoffload.offloader.arrival import LayerArrival
from asyncoffload.offloader.offloader import Offloader
from asyncoffload.offloader.results import LoadResult, StoreResult
from asyncoffload.offloader.stats import OffloaderStats

__all__ = ["LayerArrival", "LoadResult", "Offloader", "OffloaderStats", "StoreResult"]
