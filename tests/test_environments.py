"""Environments: shapes, the two forms of the mazes, goals, horizons, and episodes as functions of (seed, actions)."""

import warnings

import gymnasium
import numpy as np
import pytest

from common import datasets, environments, rehearsal, tasks
from common.datasets import Dataset
from common.errors import Refused


def actions_for(environment, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, environment.action_size)).astype(np.float32)


def dataset_of(observation, action_size):
    count = len(observation)
    flags = np.zeros(count, bool)
    observation = np.asarray(observation, np.float32)
    action = np.zeros((count, action_size), np.float32)
    return Dataset(observation, action, np.zeros(count, np.float32), flags, flags, observation, flags, "test:data")


def maze_dataset(positions, width):
    observation = np.zeros((len(positions), width))
    observation[:, :2] = positions
    return dataset_of(observation, 8 if width > 6 else 2)


@pytest.fixture
def make():
    """`environments.make` by name, closed afterwards; a width asks for the form of such data."""
    opened = []

    def make(name, width=None):
        opened.append(environments.make(tasks.find(name), width))
        return opened[-1]

    yield make
    for environment in opened:
        environment.close()


SIZES = {
    "pointmaze-umaze": (4, 2, 300),
    "pointmaze-medium": (4, 2, 600),
    "pointmaze-large": (4, 2, 800),
    "antmaze-umaze": (29, 8, 700),
    "antmaze-large-diverse": (29, 8, 1000),
    "pen-binary": (45, 24, 100),
    "door-binary": (39, 28, 200),
    "hammer-human": (46, 26, 200),
    "relocate-expert": (39, 30, 200),
    "hopper-medium": (11, 3, 1000),
    "halfcheetah-random": (17, 6, 1000),
    "walker2d-expert": (17, 6, 1000),
    "Hopper-v5": (11, 3, 1000),
    "Pendulum-v1": (3, 1, 200),
    "cartpole-mixed": (4, 2, 500),
    "acrobot-mixed": (6, 3, 500),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_types(make, name):
    environment = make(name)
    assert (environment.observation_size, environment.action_size, environment.horizon) == SIZES[name]
    observation = environment.reset(seed=0)
    step = environment.step(actions_for(environment, 1)[0])
    for array in (observation, step.next_observation):
        assert array.dtype == np.float32
        assert array.shape == (environment.observation_size,)
    assert [type(value) for value in step[1:4]] == [float, bool, bool]
    assert isinstance(step.success, bool) == environment.task.knows_success


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("pointmaze-medium", 4),
        ("pointmaze-medium", 6),
        ("antmaze-medium-play", 29),
        ("antmaze-medium-play", 31),
        ("pen-binary", None),
        ("door-binary", None),
        ("hammer-binary", None),
        ("relocate-binary", None),
        ("hopper-medium", None),
        ("halfcheetah-medium", None),
        ("walker2d-medium", None),
        ("Ant-v5", None),
        ("acrobot-mixed", None),
    ],
)
def test_replaying_the_actions_restores_the_state_bitwise(make, name, width):
    """In a fresh environment, whatever the first one played before: what a resumed run relies on."""
    interrupted, resumed = make(name, width), make(name, width)
    actions = actions_for(interrupted, 60)
    for seed in (3, 4):  # an episode of another seed comes before
        expected = [interrupted.reset(seed)]
        flown = [interrupted.step(action) for action in actions]
    expected += [step.next_observation for step in flown]
    np.testing.assert_array_equal(resumed.replay(4, actions[:25]), expected[25])
    for action, before in zip(actions[25:], flown[25:], strict=True):
        step = resumed.step(action)
        np.testing.assert_array_equal(step.next_observation, before.next_observation)
        assert step[1:] == before[1:]


def test_replaying_restores_the_goal(make):
    """Which observations do not show."""
    first, resumed = make("antmaze-umaze", 29), make("antmaze-umaze", 29)
    still = np.zeros(8, np.float32)
    differ = 0
    for seed in range(4):
        first.reset(seed)
        for _ in range(3):
            first.step(still)
        resumed.reset(seed + 1)
        resumed.replay(seed, [still] * 3)
        for place in np.random.default_rng(seed).uniform((0, 8), (1.5, 9.5), (12, 2)):
            reached = []
            for environment in (first, resumed):
                place_ant(environment, place)
                reached.append(environment.step(still).success)
            assert reached[0] == reached[1]
            differ += reached[0]
    assert 5 < differ < 43  # of 48 places, some are at the goal and some are not


def test_other_seeds_are_other_episodes(make):
    environment = make("pointmaze-large")
    assert not np.array_equal(environment.reset(0), environment.reset(1))


def test_dictionaries_are_flattened_by_one_rule(make):
    for environment, keys in (
        (make("pointmaze-large", 6), ("observation", "desired_goal")),
        (make("pointmaze-large", 4), ("observation",)),
        (make("antmaze-umaze", 31), ("achieved_goal", "observation", "desired_goal")),
        (make("antmaze-umaze", 29), ("achieved_goal", "observation")),
    ):
        raw, _ = environment.raw.reset(seed=7)
        raw["achieved_goal"] = raw["achieved_goal"] - environment.origin
        expected = np.concatenate([raw[key] for key in keys]).astype(np.float32)
        np.testing.assert_array_equal(environment.reset(7), expected)


def test_actions_are_rescaled_to_the_environments_bounds(make):
    environment = make("Pendulum-v1")
    bare = gymnasium.make("Pendulum-v1")
    bare.reset(seed=0)
    environment.reset(0)
    for action in (-1.0, 0.25, 1.0):
        expected, reward, *_ = bare.step(np.array([2 * action], np.float32))
        step = environment.step(np.array([action], np.float32))
        np.testing.assert_allclose(step.next_observation, expected, rtol=1e-6)
        assert step.reward == pytest.approx(reward)
    np.testing.assert_allclose(environment.unscaled(np.array([-2.0, 1.0])), [-1.0, 0.5])


class Joint(gymnasium.Env):
    """Takes no action out of bounds, and scales in place those that it gets."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))

    def __init__(self, low: float, high: float):
        self.action_space = gymnasium.spaces.Box(np.float32(low), np.float32(high), (1,))

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        action *= 2
        return np.zeros(1, np.float32), float(action[0]), False, False, {}


@pytest.mark.parametrize(("low", "high"), [(-3.0718, -0.0698), (-1.0, 1.0), (-87.0, 87.0)])
def test_an_action_lies_within_the_bounds_and_is_the_environments_own(low, high):
    gymnasium.register("Joint-v0", entry_point=Joint, max_episode_steps=9, kwargs={"low": low, "high": high})
    try:
        environment = environments.make(tasks.find("Joint-v0"))
        environment.reset(0)
        for value, expected in ((-1, low), (1, high)):
            action = np.full(1, value, np.float32)
            action.flags.writeable = False  # as arrays from a device are
            assert environment.step(action).reward == pytest.approx(2 * expected)
            assert action == value
    finally:
        del gymnasium.registry["Joint-v0"]


class Switches(gymnasium.Env):
    """Three at once, each on or off; or one of three numbers that begin at 5."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,))

    def __init__(self, at_once: bool):
        space = gymnasium.spaces.Discrete(3, start=5)
        self.action_space = gymnasium.spaces.MultiBinary(3) if at_once else space

    def reset(self, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), float(action), False, False, {}


@pytest.fixture(params=[True, False])
def switches(request):
    register = {"entry_point": Switches, "max_episode_steps": 9, "kwargs": {"at_once": request.param}}
    gymnasium.register("Switches-v0", **register)
    yield request.param
    del gymnasium.registry["Switches-v0"]


def test_discrete_actions_are_one_hot_and_other_spaces_are_refused(switches):
    if switches:
        with pytest.raises(Refused, match="only bounded vectors of real numbers, and Discrete, are supported"):
            environments.make(tasks.find("Switches-v0"))
        return
    environment = environments.make(tasks.find("Switches-v0"))
    assert (environment.action_size, list(environment.numbers)) == (3, [5, 6, 7])
    environment.reset(0)
    for index, one_hot in enumerate(np.eye(3, dtype=np.float32)):
        assert environment.step(one_hot).reward == 5 + index
    assert environment.step(np.zeros(3, np.float32)).reward == 5  # of a run that has diverged
    recorded = environment.unscaled(np.array([7.0, 5.0], np.float32))
    assert (recorded.dtype, recorded.tolist()) == (bool, [[False, False, True], [True, False, False]])
    # Data of any width are looked at by datasets, which can say what is wrong with them.
    environments.make(tasks.find("Switches-v0"), 1, 4).close()


@pytest.mark.parametrize("name", ["Taxi-v4"])
def test_spaces_that_are_not_vectors_are_refused(name):
    with pytest.raises(Refused, match=r"only vectors"):
        environments.make(tasks.find(name))


@pytest.mark.parametrize(
    ("name", "discrete", "told"),
    [
        ("CartPole-v1", True, None),
        ("hopper-medium", False, None),
        ("CartPole-v1", False, "CartPole-v1 has actions Discrete(2), and this algorithm has continuous ones"),
        ("Pendulum-v1", True, "and this algorithm has discrete ones: choose another task, or an algorithm with cont"),
    ],
)
def test_an_algorithm_with_other_actions_than_the_task_is_refused(make, name, discrete, told):
    environment = make(name)
    if told is None:
        rehearsal.check_actions(environment, discrete)
        return
    with pytest.raises(Refused) as refused:
        rehearsal.check_actions(environment, discrete)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_environment_that_cannot_be_made_is_refused_in_one_line():
    gymnasium.register("Broken-v0", entry_point="nowhere_at_all:Broken", max_episode_steps=9)
    try:
        with pytest.raises(Refused, match="Broken-v0 cannot be made") as refused:
            environments.make(tasks.find("Broken-v0"))
        assert "\n" not in str(refused.value)
    finally:
        del gymnasium.registry["Broken-v0"]


# ----------------------------------------------------------------------------- goals


def place_point(environment, position):
    point = environment.raw.unwrapped.point_env
    point.set_state(np.asarray(position, float), np.zeros(2))


def away_from_walls(environment, position):
    """A direction in which the point has room for half a metre and its own size."""
    directions = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])
    return directions[~environment.inside_walls(position + 0.65 * directions)][0]


def place_ant(environment, position):
    ant = environment.raw.unwrapped.ant_env
    state = ant.data.qpos.copy()
    state[:2] = position + environment.origin
    ant.set_state(state, np.zeros_like(ant.data.qvel))


# Goal cells (1, 1), (6, 6) and (7, 9), start cells (3, 1), (1, 1) and (1, 1): AntMaze's.
POINT_GOALS = {"pointmaze-umaze": (-1, 1), "pointmaze-medium": (2.5, -2.5), "pointmaze-large": (3.5, -3)}
POINT_STARTS = {"pointmaze-umaze": (-1, -1), "pointmaze-medium": (-2.5, 2.5), "pointmaze-large": (-4.5, 3)}


@pytest.mark.parametrize("name", POINT_GOALS)
def test_pointmaze_without_the_goal_has_one_goal_and_one_start(make, name):
    environment, goal = make(name, 4), np.array(POINT_GOALS[name])
    still = np.zeros(2, np.float32)
    starts = np.array([environment.reset(seed) for seed in range(60)])
    np.testing.assert_array_equal(starts[:, 2:], 0)
    away = np.abs(starts[:, :2] - POINT_STARTS[name])
    assert away.max() <= 0.25
    assert (away.max(axis=0) > 0.2).all()
    # The simulator's own goal varies with the seed and has a radius of 0.45; D4RL's does not, and has 0.5.
    for seed in range(8):
        environment.reset(seed)
        step = environment.step(still)
        assert (step.reward, step.terminated, step.truncated, step.success) == (0.0, False, False, False)
        direction = away_from_walls(environment, goal)
        place_point(environment, goal + 0.52 * direction)
        assert not environment.step(still).success
        place_point(environment, goal + 0.48 * direction)
        step = environment.step(still)
        assert (step.reward, step.terminated, step.truncated, step.success) == (1.0, True, False, True)


def test_pointmaze_with_the_goal_has_it_anywhere(make):
    environment = make("pointmaze-large", 6)
    still = np.zeros(2, np.float32)
    first = np.array([environment.reset(seed) for seed in range(200)])
    for positions in (first[:, :2], first[:, 4:]):
        assert len(np.unique(np.floor(positions + np.array((6, 4.5))), axis=0)) > 40  # of 46 free cells
        assert not environment.inside_walls(positions).any()
    for seed in range(8):
        goal = environment.reset(seed)[4:]
        step = environment.step(still)
        assert (step.reward, step.terminated, step.truncated, step.success) == (0.0, False, False, False)
        direction = away_from_walls(environment, goal)
        place_point(environment, goal + 0.48 * direction)
        assert not environment.step(still).success
        place_point(environment, goal + 0.42 * direction)
        step = environment.step(still)
        assert (step.reward, step.terminated, step.truncated, step.success) == (1.0, True, False, True)


def test_a_time_limit_truncates_and_does_not_terminate(make):
    environment = make("pointmaze-umaze")
    environment.reset(0)
    steps = [environment.step(np.zeros(2, np.float32)) for _ in range(300)]
    assert not any(step.terminated or step.truncated for step in steps[:-1])
    assert steps[-1].truncated
    assert not steps[-1].terminated


@pytest.mark.parametrize("width", [4, 6])
def test_success_at_the_time_limit_is_a_termination(make, width):
    environment = make("pointmaze-umaze", width)
    first = environment.reset(0)
    goal = first[4:] if width == 6 else POINT_GOALS["pointmaze-umaze"]
    for _ in range(299):
        environment.step(np.zeros(2, np.float32))
    place_point(environment, goal)
    step = environment.step(np.zeros(2, np.float32))
    assert (step.terminated, step.truncated) == (True, False)


# D4RL's maps (d4rl/locomotion/maze_env.py, its *_TEST mazes): walls, start and goal.
D4RL_MAZES = {
    "antmaze-umaze-diverse": ["11111", "1r001", "11101", "1g001", "11111"],
    "antmaze-medium-play": [
        "11111111", "1r011001", "10010001", "11000111", "10010001", "10100101", "100010g1", "11111111",
    ],
    "antmaze-large-diverse": [
        "111111111111", "1r0001000001", "101101010101", "100000010001", "101111011101", "100101000001", "110101010111",
        "100100010g01", "111111111111",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", D4RL_MAZES)
def test_antmaze_without_the_goal_is_d4rls_maze_in_d4rls_frame(make, name):
    """The cell in row r, column c lies at (4 c, 4 r) from the start's; the goal of data is the mean of D4RL's draws."""
    environment = make(name, 29)
    cells = {(r, c): cell for r, row in enumerate(D4RL_MAZES[name]) for c, cell in enumerate(row)}
    (start,) = (place for place, cell in cells.items() if cell == "r")
    for place, cell in cells.items():
        y, x = 4.0 * (np.array(place) - start)
        assert environment.inside_walls(np.array([[x, y]])).item() == (cell == "1")
        beside = np.array([[x, y]], np.float32) + 0.75 + [[0, 0], [0.49, 0], [0, -0.49], [0.36, 0.36], [-0.75, -0.75]]
        at_goal = environment.reached(np.zeros((5, 29)), beside)
        assert at_goal.tolist() == ([True, True, True, False, False] if cell == "g" else [False] * 5)
    assert np.abs(environment.reset(0)[:2]).max() <= 0.1


def test_d4rls_ant_is_the_weaker_one(make):
    """Gymnasium's has five times the torque for half the time: random actions turn it over, D4RL's hardly."""
    weak, strong = (make("antmaze-umaze", width) for width in (29, 31))
    models = [environment.raw.unwrapped.model for environment in (weak, strong)]
    assert [np.unique(model.actuator_gear[:, 0]).tolist() for model in models] == [[30], [150]]
    assert [model.opt.timestep for model in models] == [0.02, 0.01]
    contacts = [np.unique(model.geom_solimp[:, :3], axis=0).tolist() for model in models]
    assert contacts == [[[0.8, 0.8, 0.01]], [[0.9, 0.95, 0.001]]]
    assert (models[0].geom_solref == (0.02, 1)).all()
    assert (models[0].body_mass == models[1].body_mass).all()
    assert [environment.raw.unwrapped.ant_env.unwrapped.dt for environment in (weak, strong)] == [0.1, 0.05]
    overturned = [0, 0]
    for index, environment in enumerate((weak, strong)):
        for seed in range(4):
            environment.reset(seed)
            for action in np.random.default_rng(seed).uniform(-1, 1, (250, 8)).astype(np.float32):
                x, y = environment.step(action).next_observation[4:6]
            overturned[index] += 1 - 2 * (x * x + y * y) < 0
    assert overturned[0] == 0
    assert overturned[1] >= 3


@pytest.mark.parametrize(
    ("name", "goal"),
    [("antmaze-umaze-diverse", (0, 8)), ("antmaze-medium-play", (20, 20)), ("antmaze-large-diverse", (32, 24))],
)
def test_antmaze_without_the_goal_starts_and_ends_where_d4rls_does(make, name, goal, monkeypatch):
    """One start, and a goal that is drawn beyond the centre of its cell, by the seed of the episode alone."""
    environment = make(name, 29)
    still = np.zeros(8, np.float32)
    firsts = np.array([environment.reset(seed) for seed in range(20)])
    # D4RL's noise on the first state, without which every episode of a deterministic policy is the same.
    assert np.abs(firsts[:, :2]).max() <= 0.1
    assert (firsts[:, :2].std(axis=0) > 0.03).all()
    assert (firsts[:, 7:15].std(axis=0) > 0.03).all()  # joints
    assert (firsts[:, 15:].std(axis=0) > 0.05).all()  # velocities
    drawn = []

    def listen(rng):
        drawn.append(beyond(rng))
        return drawn[-1]

    beyond = environments.beyond_centre
    monkeypatch.setattr(environments, "beyond_centre", listen)
    for seed in (0, 1, 2, 0):
        np.testing.assert_array_equal(environment.reset(seed), firsts[seed])
        assert not environment.step(still).success
        x, y = goal + drawn[-1]
        place_ant(environment, (x - 0.55, y))
        assert not environment.step(still).success
        # D4RL's radius of 0.5, where gymnasium-robotics has 0.45.
        place_ant(environment, (x - 0.48, y))
        step = environment.step(still)
        assert (step.reward, step.terminated, step.success) == (1.0, True, True)
    np.testing.assert_array_equal(drawn[0], drawn[3])
    assert len(np.unique(drawn)) == 6


def test_goals_lie_beyond_the_centre_as_d4rls():
    """The sum of a uniform number up to 1 m and one up to 0.5 m, in x and in y: mean 0.75, variance 1/12 + 1/48."""
    rng = np.random.default_rng(0)
    draws = np.array([environments.beyond_centre(rng) for _ in range(4000)])
    assert draws.shape == (4000, 2)
    assert 0 <= draws.min() < 0.05
    assert 1.45 < draws.max() <= 1.5
    np.testing.assert_allclose(draws.mean(axis=0), 0.75, atol=0.02)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12 + 1 / 48, atol=0.005)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.05


def test_antmaze_with_the_goal_varies_it_around_the_same_cells(make):
    environment = make("antmaze-large-play", 31)
    first = np.array([environment.reset(seed) for seed in range(20)])
    starts, goals = first[:, :2], first[:, -2:]
    assert np.ptp(starts, axis=0).min() > 0.5
    assert np.ptp(goals, axis=0).min() > 0.5
    assert np.abs(starts - (-18, 12)).max() <= 1.0
    assert np.abs(goals - (14, -12)).max() <= 1.0
    place_ant(environment, goals[-1] - (0.48, 0))
    assert not environment.step(np.zeros(8, np.float32)).success
    place_ant(environment, goals[-1] - (0.4, 0))
    step = environment.step(np.zeros(8, np.float32))
    assert (step.reward, step.terminated, step.success) == (1.0, True, True)


@pytest.mark.parametrize(
    ("name", "starts", "widths", "other"),
    [
        ("antmaze-umaze", [(0, 0), (-4, -4)], (29, 31), 107),
        ("pointmaze-umaze", [(-1, -1), (-1, -1)], (4, 6), 5),
    ],
)
def test_the_form_of_a_maze_follows_the_data(make, name, starts, widths, other):
    task = tasks.find(name)
    assert make(name).observation_size == widths[0]
    for width, start in zip(widths, starts, strict=True):
        environment = datasets.environment_of(task, maze_dataset([start], width))
        assert environment.observation_size == width
        assert environment.reset(0).shape == (width,)
        environment.close()
    with pytest.raises(Refused, match=rf"{other} numbers per observation.* has {widths[0]} or {widths[1]};"):
        datasets.environment_of(task, maze_dataset([starts[0]], other))


# The U of the data in cells: free along the bottom, up the right side, back along the top.
U_PATH = np.array([(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1)])


@pytest.mark.parametrize(("name", "width"), [("antmaze", 29), ("antmaze", 31), ("pointmaze", 4), ("pointmaze", 6)])
def test_data_of_another_maze_or_frame_are_refused(name, width):
    task = tasks.find(f"{name}-umaze")
    cell = 4 if name == "antmaze" else 1
    # D4RL's AntMaze has its origin at the start.
    path, other = (U_PATH + 1, U_PATH) if width == 29 else (U_PATH, U_PATH + 1)
    datasets.environment_of(task, maze_dataset(cell * path, width)).close()
    x, y = path.T
    mirrored = np.stack([path.max(axis=0)[0] + path.min(axis=0)[0] - x, y], axis=1)
    from_corner = np.stack([2 - U_PATH[:, 1], U_PATH[:, 0] + 2], axis=1)  # D4RL's maze2d: row and column
    for positions in (cell * mirrored, cell * other, cell * from_corner, [(1000, 0)]):
        with pytest.raises(Refused, match="another maze, a mirrored one or another frame") as refused:
            datasets.environment_of(task, maze_dataset(positions, width))
        assert "\n" not in str(refused.value)


def test_data_with_other_sizes_are_refused():
    task = tasks.find("door-binary")
    with pytest.raises(Refused, match=r"46 numbers per observation.*39"):
        datasets.environment_of(task, dataset_of(np.zeros((2, 46)), 28))
    with pytest.raises(Refused, match=r"26 numbers per action.*28"):
        datasets.environment_of(task, dataset_of(np.zeros((2, 39)), 26))


# ----------------------------------------------------------------------------- Adroit


def test_binary_adroit_is_minus_one_until_solved_and_never_terminates(make):
    environment = make("door-binary")
    environment.reset(0)
    still = np.zeros(28, np.float32)
    step = environment.step(still)
    assert (step.reward, step.terminated, step.success) == (-1.0, False, False)
    simulation = environment.raw.unwrapped
    position = simulation.data.qpos.copy()
    position[simulation.door_hinge_addrs] = 1.45
    simulation.set_state(position, simulation.data.qvel)
    step = environment.step(still)
    assert (step.reward, step.terminated, step.success) == (0.0, False, True)
    steps = [environment.step(still) for _ in range(198)]
    assert (steps[-1].truncated, steps[-1].terminated) == (True, False)


def test_dense_adroit_keeps_its_reward_and_reports_success(make):
    environment, bare = make("relocate-human"), gymnasium.make("AdroitHandRelocate-v1")
    environment.reset(5)
    bare.reset(seed=5)
    action = actions_for(environment, 1)[0]
    assert environment.step(action).reward == pytest.approx(float(bare.step(action)[1]))


def test_the_pen_is_played_for_100_steps(make):
    """D4RL's reference scores and RLPD's binary task are defined at 100; gymnasium-robotics' limit is 200."""
    environment = make("pen-human")
    environment.reset(0)
    steps = [environment.step(np.zeros(24, np.float32)) for _ in range(100)]
    assert [step.truncated for step in steps] == [False] * 99 + [True]


# ----------------------------------------------------------------------------- locomotion


def test_the_table_plays_v4_because_v5_is_another_task(make):
    """-v4 rewards being healthy on the last step as D4RL's -v2 did; -v5 does not."""
    old, new = make("hopper-medium"), make("Hopper-v5")
    actions = actions_for(old, 200)
    np.testing.assert_array_equal(old.reset(0), new.reset(0))
    for action in actions:
        before, after = old.step(action), new.step(action)
        np.testing.assert_array_equal(before.next_observation, after.next_observation)
        assert before.terminated == after.terminated
        assert before.reward == pytest.approx(after.reward + before.terminated)
        if before.terminated:
            break
    assert before.terminated
    assert not before.truncated


# ----------------------------------------------------------------------------- manners


@pytest.mark.parametrize("name", ["antmaze-umaze", "pointmaze-umaze", "halfcheetah-medium"])
def test_making_an_environment_leaves_nothing_behind(name, tmp_path, monkeypatch, capfd):
    """No notices, no log in the working directory, no model in the temporary folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        environments.make(tasks.find(name)).close()
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]
    assert capfd.readouterr() == ("", "")
