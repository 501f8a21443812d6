"""Two host devices for every test, so that sharding is exercised: taken before a command can ask for fewer.

Compiling is most of what tests cost. What one has compiled is kept for all others, also in other processes, until the
last has ended (or for the next time, in the folder that JAX_COMPILATION_CACHE_DIR names); and it is compiled without
XLA's expensive passes, in one piece, and by its older and faster emitter where it has one, but for tests marked
`optimised`: those of what must hold, to the last bit, for the programs that users run.

What is dear and much the same for every algorithm, or case, is shown of some, and of the others with `--every`.

And no files of D4RL's, neither on this machine nor within reach, unless a test puts them there.
"""

import functools
import gc
import os
import shutil
import tempfile
import threading

import jax
import pytest
from jax._src import compiler
from jax._src.interpreters import mlir

from common import programs, reporting

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()

os.environ["D4RL_DATASET_DIR"] = os.devnull + "/d4rl"
os.environ["D4RL_REMOTE"] = "http://127.0.0.1:9"

QUICK = {"xla_cpu_parallel_codegen_split_count": 1, "xla_cpu_use_fusion_emitters": False}
"""Options of XLA, of which jax 0.12 does not have the second any more."""
CACHE = pytest.StashKey[str]()
QUICKLY = pytest.StashKey[str]()
FLAGS = os.environ.get("XLA_FLAGS", "")
CONTEXTS = threading.local()
"""Of MLIR: making one takes longer than lowering what most tests compile, an operation by itself."""


def pytest_addoption(parser):
    parser.addoption("--every", action="store_true", help="also what is otherwise shown of some algorithms or cases")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--every"):
        others = [item for item in items if item.get_closest_marker("every") is not None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def pytest_configure(config):
    gc.set_threshold(100_000, 50, 100)  # tracing makes so many objects that collecting them took a seventh of it
    config.addinivalue_line("markers", "optimised: compiled as users' programs are")
    config.addinivalue_line("markers", "every: of one more algorithm or case, with --every")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers, and commands that tests start, inherit the environment
        config.stash[CACHE] = tempfile.mkdtemp(prefix="headstart-compiled-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = config.stash[CACHE]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    known = {name: value for name, value in QUICK.items() if is_known(name, value)}
    config.stash[QUICKLY] = " ".join(f"--{name}={str(value).lower()}" for name, value in known.items())
    # JAX has options for one function or for a whole process; needed are some for all functions of some tests.
    compiler.get_compile_options = with_options(compiler.get_compile_options, known)
    mlir.make_ir_context = kept(mlir.make_ir_context)
    reporting.draw_curve = at_first(reporting.draw_curve)


def is_known(name, value):
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def with_options(options_of, more):
    @functools.wraps(options_of)
    def options(*arguments, **keywords):
        found = options_of(*arguments, **keywords)
        if found.executable_build_options.debug_options.xla_backend_optimization_level == 0:
            found.env_option_overrides = [*found.env_option_overrides, *more.items()]
        return found

    return options


def kept(make):
    """Makes a context for each thread, and keeps it until the tests of another file begin."""

    @functools.wraps(make)
    def context():
        if not hasattr(CONTEXTS, "made"):
            CONTEXTS.made = make()
        return CONTEXTS.made

    return context


def at_first(draw):
    """Draws what has not been drawn yet: a picture anew at every evaluation took a tenth of most small runs."""

    @functools.wraps(draw)
    def drawing(directory, *arguments):
        if not (directory.path / "curve.png").exists():
            draw(directory, *arguments)

    return drawing


def pytest_unconfigure(config):
    if CACHE in config.stash:
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    jax.config.update("jax_disable_most_optimizations", not optimised(item))
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if optimised(item) else "1"  # of commands that tests start
    os.environ["XLA_FLAGS"] = FLAGS if optimised(item) else f"{FLAGS} {item.config.stash[QUICKLY]}".strip()
    result = yield
    if nextitem is None or (nextitem.path, optimised(nextitem)) != (item.path, optimised(item)):
        programs.forget()
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()  # or all files' programs are in memory at the end
        CONTEXTS.__dict__.clear()
    return result


def optimised(item):
    return item.get_closest_marker("optimised") is not None
