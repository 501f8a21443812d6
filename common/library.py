"""Headstart from a notebook or a program: what the commands do, as functions that raise Refused."""

from common.play import play
from common.policies import load

__all__ = ["load", "play"]
