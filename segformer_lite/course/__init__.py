"""What only the course needs: the first cell of a chapter, the checks of its exercises, the doctor."""

from .setup import setup

__all__ = ["setup"]
