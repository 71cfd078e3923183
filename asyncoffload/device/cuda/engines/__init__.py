"""The ways to copy between a CUDA device and host memory, and the choice among them."""

from asyncoffload.device.cuda.engines.base import CopyEngine, Reservation
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.choosing import Chosen, Thresholds, choose

__all__ = ["Chosen", "CopyEngine", "EngineChoice", "Reservation", "Thresholds", "choose"]
