"""Batches made on the training device."""

from .loader import DeviceLoader

__all__ = ["DeviceLoader"]
