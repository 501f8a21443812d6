"""Two host devices for every test, so that sharding is exercised: taken before a command can ask for fewer.

And no files of D4RL's, neither on this machine nor within reach, unless a test puts them there.
"""

import os

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()

os.environ["D4RL_DATASET_DIR"] = os.devnull + "/d4rl"
os.environ["D4RL_REMOTE"] = "http://127.0.0.1:9"
