"""Two host devices for every test, so that sharding is exercised: taken before a command can ask for fewer.

Compiling is most of what tests cost. What one has compiled is kept for all others, also in other processes, until the
last has ended (or for the next time, in the folder that JAX_COMPILATION_CACHE_DIR names); and it is compiled without
XLA's expensive passes, but for tests marked `optimised`: those of what must hold, to the last bit, for the programs
that users run.

And no files of D4RL's, neither on this machine nor within reach, unless a test puts them there.
"""

import os
import shutil
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()

os.environ["D4RL_DATASET_DIR"] = os.devnull + "/d4rl"
os.environ["D4RL_REMOTE"] = "http://127.0.0.1:9"

CACHE = pytest.StashKey[str]()


def pytest_configure(config):
    config.addinivalue_line("markers", "optimised: compiled as users' programs are")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers, and commands that tests start, inherit the environment
        config.stash[CACHE] = tempfile.mkdtemp(prefix="headstart-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[CACHE]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_unconfigure(config):
    if CACHE in config.stash:
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("optimised") is None)
    result = yield
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()  # or all files' programs are in memory at the end
    return result
