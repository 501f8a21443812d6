"""Runs that are stopped at a checkpoint, as a kill would."""

import contextlib

import pytest

from common.checkpoints import Checkpoints


class Stop(Exception):
    pass


@contextlib.contextmanager
def stopped_at(step: int, monkeypatch):
    """What runs inside is stopped just after the checkpoint of that step."""
    save = Checkpoints.save

    def save_and_stop(self, at, *rest):
        save(self, at, *rest)
        if at >= step:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(Stop):
            yield
