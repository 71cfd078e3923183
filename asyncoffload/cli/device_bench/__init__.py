"""Measures the transfers between a device and host memory: what ``asyncoffload bench device`` shows."""
