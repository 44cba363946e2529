"""The embedded street scenes: data that needs no download."""

from .scenes import SyntheticScenes, draw_scene

__all__ = ["SyntheticScenes", "draw_scene"]
