"""The fake device and the machine over it, for every test of this folder."""

from tests.device.cuda.fake import driver, fake
from tests.device.cuda.machine import machine

__all__ = ["driver", "fake", "machine"]
