"""Headstart from a notebook or a program: what the commands do, as functions that raise Refused."""

from common.errors import Refused
from common.interactive import resume_run as resume
from common.interactive import train
from common.play import play
from common.policies import load
from common.trained import Trained

__all__ = ["Refused", "Trained", "load", "play", "resume", "train"]
