"""Which commands of a process share their programs."""

import jax
import pytest

from algorithms.td3_bc import TD3BC, Config
from common import programs
from common.errors import Refused
from common.programs import programs_of

PRIOR = {"observation": jax.ShapeDtypeStruct((5, 3), "float32")}


@pytest.fixture(autouse=True)
def alone():
    programs.forget()
    yield
    programs.forget()


def test_the_same_request_gets_the_same_programs():
    """Traced hyperparameters decide nothing that is compiled."""
    first = programs_of(TD3BC, Config(), 2, None, None, PRIOR)
    assert programs_of(TD3BC, Config(learning_rate=0.1), 2, None, None, dict(PRIOR)) is first
    assert programs_of(TD3BC, Config(), 2, None, first.mesh.size, PRIOR) is first
    programs.forget()
    assert programs_of(TD3BC, Config(), 2, None, None, PRIOR) is not first


def test_another_request_gets_others():
    longer = {"observation": jax.ShapeDtypeStruct((6, 3), "float32")}
    requests = [
        (TD3BC, Config(), 2, None, None, PRIOR), (TD3BC, Config(batch_size=3), 2, None, None, PRIOR),
        (TD3BC, Config(), 1, None, None, PRIOR), (TD3BC, Config(), 2, 2, None, PRIOR),
        (TD3BC, Config(), 2, None, 1, PRIOR), (TD3BC, Config(), 2, None, None, None),
        (TD3BC, Config(), 2, None, None, longer), (type("Changed", (TD3BC,), {}), Config(), 2, None, None, PRIOR),
    ]  # fmt: skip
    found = [programs_of(*request) for request in requests]
    assert len({id(one) for one in found}) == len(requests)
    assert [programs_of(*request) for request in requests] == found
    with jax.default_matmul_precision("highest"):
        assert programs_of(*requests[0]) is not found[0]
    with pytest.raises(Refused, match="--devices 3: "):
        programs_of(TD3BC, Config(), 3, None, 3, PRIOR)


def test_only_the_last_ones_are_kept():
    first, second, *_ = (programs_of(TD3BC, Config(), runs, None, 1, None) for runs in range(1, 1 + programs.KEPT))
    assert programs_of(TD3BC, Config(), 1, None, 1, None) is first  # the last that was asked for, now
    programs_of(TD3BC, Config(), 99, None, 1, None)
    assert programs_of(TD3BC, Config(), 1, None, 1, None) is first
    assert programs_of(TD3BC, Config(), 2, None, 1, None) is not second
