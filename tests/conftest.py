"""Two host devices for every test, so that sharding is exercised: taken before a command can ask for fewer."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.devices()
