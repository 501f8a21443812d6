"""Two host devices for every test, so that sharding is exercised: taken before a command can ask for fewer."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()


@pytest.fixture(autouse=True)
def no_files_of_d4rls(tmp_path, monkeypatch):
    """Neither on this machine nor within reach, unless a test puts them there."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("D4RL_REMOTE", "http://127.0.0.1:9")
