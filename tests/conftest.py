"""Two host devices for every test, so that sharding is exercised; set before JAX is first used."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
