"""Drawn videos: short mp4 files of drawn scenes, sentences about them, and the moments that answer, always labelled."""

from cdn_tune.data.drawn.draw import Drawn, draw

__all__ = ["Drawn", "draw"]
