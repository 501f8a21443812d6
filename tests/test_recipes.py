"""Data made on the spot: deterministic, whole or not there, and what a planner would do."""

import json
import resource
import zlib

import minari
import numpy as np
import pytest
from minari.dataset._storages.hdf5_storage import HDF5Storage

from common import datasets, environments, recipes, tasks
from common.errors import Refused
from common.recipes import antmaze, behaviour, classic, episodes, locomotion

POINT = ["pointmaze-umaze", "pointmaze-medium", "pointmaze-large"]
ANT = [f"antmaze-{maze}" for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
                                      "large-diverse")]  # fmt: skip

BODIES = ["hopper", "halfcheetah", "walker2d"]
LOCOMOTION = [f"{body}-{quality}" for body in BODIES for quality in ("random", "medium", "medium-replay",
                                                                     "medium-expert", "expert")]  # fmt: skip

CLASSIC = ["cartpole-mixed", "acrobot-mixed"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def load(name, task):
    return datasets.load(tasks.find(task), f"minari:{name}")


def recorded(name):
    """The source episodes as Minari gives them, not yet transitions of the task."""
    return list(minari.load_dataset(name).iterate_episodes())


def left_behind(folder):
    """What a reader could take for data, and what an interrupted writer forgot."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "namespace_metadata.json"]


def test_names_are_those_of_the_task_table():
    assert recipes.names() == [*POINT, *ANT, *LOCOMOTION, *CLASSIC]
    for name in recipes.names():
        assert tasks.find(name).datasets["recipe"] == name
    assert all(tasks.find(name).default_dataset == f"recipe:{name}" for name in POINT)
    # Where D4RL has data of the name, they are.
    assert tasks.find("hopper-medium-replay").default_dataset == "d4rl:hopper-medium-replay-v2"
    assert tasks.find("antmaze-umaze").default_dataset == "d4rl:antmaze-umaze-v2"


def test_the_id_says_what_is_not_the_default():
    assert recipes.dataset_id("pointmaze-large") == "headstart/pointmaze-large-v0"
    assert recipes.dataset_id("pointmaze-large", 500, 3) == "headstart/pointmaze-large-size500-seed3-v0"


@pytest.mark.parametrize("task", POINT)
def test_the_planner_reaches_its_goals(task, monkeypatch):
    # The data do not tell the planner's goals: listen where the planner hears of them.
    told, reset = [], environments.Environment.reset

    def listen(environment, seed):
        observation = reset(environment, seed)
        told.append(observation)
        return observation

    monkeypatch.setattr(environments.Environment, "reset", listen)
    episodes = recorded(recipes.make(task, size=4000))
    assert len(episodes) == len(told) >= 8
    assert sum(len(episode) for episode in episodes) == 4000
    for number, (episode, first) in enumerate(zip(episodes, told, strict=True)):
        length = len(episode)
        assert episode.observations.shape == (length + 1, 4)
        np.testing.assert_array_equal(episode.observations[0], first[:4])
        distance = np.linalg.norm(episode.observations[:, :2] - first[4:], axis=1)
        # Over the first time it is there; only the last one is cut before, at the size asked for.
        assert (distance[:-1] > 0.45).all()
        if number < len(episodes) - 1:
            assert distance[-1] <= 0.45
            assert length < tasks.find(task).horizon
        # The planner's goal is not the task's: it truncates.
        assert not episode.terminations.any()
        assert np.flatnonzero(episode.truncations).tolist() == [length - 1]
    # Starts and goals are anywhere: another one each time, in many cells; the U has seven.
    first = np.array(told)
    for positions in (first[:, :2], first[:, 4:]):
        assert len(np.unique(positions, axis=0)) == len(told)
        assert len(np.unique(np.floor(positions + (0.5 if "umaze" in task else 0)), axis=0)) >= 7
    # Noise on the actions, inside the bounds.
    actions = np.concatenate([episode.actions for episode in episodes])
    assert np.abs(actions).max() <= 1
    assert actions.std() > 0.4


GOALS = {"pointmaze-umaze": (-1, 1), "pointmaze-medium": (2.5, -2.5), "pointmaze-large": (3.5, -3)}


@pytest.mark.parametrize("task", POINT)
def test_the_data_are_relabelled_with_the_tasks_one_goal(task):
    """Reward 1 and the end within 0.5 m of it, whatever goal the planner had; nothing rests there."""
    name = recipes.make(task, size=4000)
    data, episodes = load(name, task), recorded(name)
    assert data.observation.shape[1] == 4
    before = np.concatenate([episode.observations[:-1] for episode in episodes])
    after = np.concatenate([episode.observations[1:] for episode in episodes])
    there, arrives = (np.linalg.norm(positions[:, :2] - GOALS[task], axis=1) <= 0.5 for positions in (before, after))
    np.testing.assert_array_equal(np.concatenate([episode.rewards for episode in episodes]), arrives)
    ends = np.cumsum([len(episode) for episode in episodes])
    keep = ~there | np.isin(np.arange(len(before)), [0, *ends[:-1]])
    assert data.metadata["rows"] == 4000
    assert data.metadata["dropped_at_goal"] == np.sum(~keep) > 0
    np.testing.assert_array_equal(data.observation, before[keep])
    np.testing.assert_array_equal(data.next_observation, after[keep])
    assert 0 < arrives[keep].sum() < len(data) / 10
    for column in (data.reward, data.terminated, data.success):
        np.testing.assert_array_equal(column, arrives[keep])
    # Everything else that ends a piece is a truncation: the planner's own goal, the end of the data.
    last = np.isin(np.arange(len(before)), ends - 1)[keep]
    gap = np.append(np.diff(np.flatnonzero(keep)) > 1, True)
    np.testing.assert_array_equal(data.truncated, (last | gap) & ~data.terminated)
    batch = data.batch(tasks.find(task))
    np.testing.assert_array_equal(batch.reward, np.where(arrives[keep], 0.0, -1.0))
    np.testing.assert_array_equal(batch.mask, ~arrives[keep])


def test_the_data_are_what_the_environment_does():
    """Repeating a piece's actions from its first state gives its observations, rewards and end."""
    data = load(recipes.make("pointmaze-umaze", size=2000), "pointmaze-umaze")
    environment = datasets.environment_of(tasks.find("pointmaze-umaze"), data)
    assert environment.observation_size == 4
    pieces = list(zip(data.starts, [*data.starts[1:], len(data)], strict=True))
    longest_success = max(
        (piece for piece in pieces if data.terminated[piece[1] - 1]), key=lambda piece: piece[1] - piece[0]
    )
    assert longest_success[1] - longest_success[0] > 10
    for start, end in (pieces[0], longest_success):
        environment.reset(0)
        state = data.observation[start].astype(np.float64)
        environment.raw.unwrapped.point_env.set_state(state[:2], state[2:])
        for row in range(start, end):
            step = environment.step(data.action[row])
            np.testing.assert_allclose(step.next_observation, data.next_observation[row], atol=1e-4)
            assert (step.reward, step.terminated) == (data.reward[row], data.terminated[row])
    assert step.success
    environment.close()


def test_the_same_seed_gives_the_same_data(folder, monkeypatch, tmp_path):
    first = load(recipes.make("pointmaze-umaze", size=300), "pointmaze-umaze").fingerprint
    other = load(recipes.make("pointmaze-umaze", size=300, seed=1), "pointmaze-umaze").fingerprint
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    again = load(recipes.make("pointmaze-umaze", size=300), "pointmaze-umaze").fingerprint
    assert first == again
    assert first != other


def test_existing_data_are_used_again(folder):
    name = recipes.make("pointmaze-umaze", size=100)
    file = folder / name / "data/main_data.hdf5"
    before = file.stat().st_mtime_ns
    assert recipes.make("pointmaze-umaze", size=100, progress=lambda *_: pytest.fail("made again")) == name
    assert file.stat().st_mtime_ns == before


def test_other_data_under_the_name_are_neither_used_nor_touched(folder):
    name = recipes.make("pointmaze-umaze", size=100)
    file = folder / name / "data/metadata.json"
    told = json.loads(file.read_text())
    told["recipe"]["noise"] = 0.1
    file.write_text(json.dumps(told))
    with pytest.raises(Refused, match="holds other data"):
        recipes.make("pointmaze-umaze", size=100)
    assert json.loads(file.read_text()) == told


def test_the_source_recipe_makes_and_loads(monkeypatch):
    monkeypatch.setitem(recipes.SIZES, "pointmaze-medium", 250)
    data = datasets.load(tasks.find("pointmaze-medium"))
    assert data.metadata["rows"] == len(data) + data.metadata["dropped_at_goal"] == 250
    assert data.source == "recipe:pointmaze-medium"
    assert data.metadata["recipe"]["size"] == 250


def test_anyone_can_read_it_with_minari():
    name = recipes.make("pointmaze-umaze", size=200)
    data = minari.load_dataset(name)
    assert data.total_steps == 200
    assert data.storage.metadata["ref_min_score"] == 0.0
    assert data.storage.metadata["ref_max_score"] == 1.0
    assert name in minari.list_local_datasets()
    environment = data.recover_environment()
    assert environment.spec.id == "PointMaze_UMaze-v3"
    assert data.observation_space.shape == (4,)
    assert data[0].observations.shape == (len(data[0]) + 1, 4)
    np.testing.assert_array_equal(environment.unwrapped.maze.unique_goal_locations, [GOALS["pointmaze-umaze"]])
    environment.close()


def test_progress_is_told():
    told = []
    recipes.make("pointmaze-umaze", size=300, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (300, 300)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(folder, monkeypatch, error):
    def fail(storage, episodes):
        storage.data_path.joinpath("main_data.hdf5").write_bytes(b"half of it")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(HDF5Storage, "update_episodes", fail)
        expected = Refused if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as raised:
            recipes.make("pointmaze-umaze", size=100)
    if expected is Refused:
        assert "No space left on device" in str(raised.value)
        assert "MINARI_DATASETS_PATH" in str(raised.value)
    assert not left_behind(folder)
    assert len(load(recipes.make("pointmaze-umaze", size=100), "pointmaze-umaze")) == 100


def test_a_full_disk_is_refused_and_leaves_nothing(folder):
    """For real: the system refuses to let any file grow beyond 20 kB, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(Refused, match="while writing its data") as refused:
            recipes.make("pointmaze-umaze", size=2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(refused.value)
    assert not left_behind(folder)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(Refused, match="MINARI_DATASETS_PATH"):
        recipes.make("pointmaze-umaze", size=100)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "pointmaze-huge"}, "unknown recipe 'pointmaze-huge': the recipes are pointmaze-umaze"),
        ({"name": "pointmaze-umaze", "size": 0}, "size must be positive"),
        ({"name": "pointmaze-umaze", "seed": -1}, "seed not negative"),
    ],
)
def test_impossible_requests_are_refused(arguments, told):
    with pytest.raises(Refused) as refused:
        recipes.make(**arguments)
    assert told in str(refused.value)


# ----------------------------------------------------------------------------- AntMaze


def test_a_walk_is_a_function_of_its_name_seed_and_number():
    one, again = (antmaze.walk("antmaze-medium-play", 3, 5) for _ in range(2))
    for first, second in zip(one, again, strict=True):
        np.testing.assert_array_equal(first, second)
    for other in (("antmaze-medium-play", 3, 6), ("antmaze-medium-play", 4, 5), ("antmaze-medium-diverse", 3, 5)):
        assert not np.array_equal(antmaze.walk(*other)[0][0], one[0][0])
    observations, actions = one
    assert (observations.dtype, actions.dtype) == (np.float32, np.float32)
    assert observations.shape == (len(actions) + 1, 29)
    assert np.abs(actions).max() <= 1


def test_walks_are_the_same_from_other_processes(monkeypatch):
    """The data do not depend on how many cores make them."""
    here = load(recipes.make("antmaze-umaze", size=900), "antmaze-umaze")
    monkeypatch.setattr(episodes, "FEW", 0)
    walks = antmaze.generate(antmaze.environment_of("antmaze-umaze"), 900, 0)
    one = next(walks)
    walks.close()
    count = min(len(one.actions), int(np.flatnonzero(here.truncated | here.terminated)[0]))
    np.testing.assert_array_equal(one.observations[:count], here.observation[:count])
    assert count > 50


def test_the_ant_walks_to_its_goal():
    environment = antmaze.environment_of("antmaze-umaze")
    goal = environment.raw.unwrapped.maze.unique_goal_locations[0]
    arrived = 0
    for number in range(6):
        rng = np.random.default_rng(number)
        observations, actions = antmaze.follow(environment, None, goal, rng, noise=0.0)
        distance = np.linalg.norm(observations[:, :2] + environment.origin - goal, axis=1)
        assert (distance[:-1] > 0.5).all()  # the walk ends there
        arrived += distance[-1] <= 0.5 and len(actions) < environment.horizon
    assert arrived >= 4


def test_an_ant_on_its_back_lies_there_until_the_time_limit(monkeypatch):
    """As D4RL's; here it is thrown over."""
    environment = antmaze.environment_of("antmaze-umaze")
    goal = environment.raw.unwrapped.maze.unique_goal_locations[0]
    rng, body = np.random.default_rng(0), environment.raw.unwrapped.ant_env
    reset = environment.reset

    def overturned(seed, options=None):
        observation = reset(seed, options)
        state = body.data.qpos.copy()
        state[3:7] = (0, 1, 0, 0)
        body.set_state(state, 0 * body.data.qvel)
        return observation

    monkeypatch.setattr(environment, "reset", overturned)
    observations, actions = antmaze.follow(environment, None, goal, rng, noise=0.2)
    assert len(actions) == environment.horizon
    x, y = observations[1:, 4:6].T
    assert (1 - 2 * (x * x + y * y) < 0).mean() > 0.9


def test_made_data_are_in_the_tasks_form_and_end_at_goals():
    data = load(recipes.make("antmaze-umaze", size=2100), "antmaze-umaze")
    assert data.observation.shape[1] == 29
    assert data.metadata["rows"] == 2100
    assert data.metadata["source_episodes"] >= 6  # of 700 steps at most
    assert data.terminated.any()
    np.testing.assert_array_equal(data.reward, data.terminated)
    environment = datasets.environment_of(tasks.find("antmaze-umaze"), data)
    assert not environment.inside_walls(data.observation).any()
    environment.close()


def test_starts_and_goals_follow_the_variant(monkeypatch):
    """umaze: the task's own start; else anywhere. Goals lie in the marked cells where there are such."""
    told = {}

    def listen(environment, start, goal, rng, noise):
        assert noise == 0.2
        told.setdefault(environment.task.name, []).append((start, environment.raw.unwrapped.maze, goal))
        return None, None

    monkeypatch.setattr(antmaze, "follow", listen)
    for name in ANT:
        for number in range(60):
            antmaze.walk(name, 0, number)
    cells = {
        "antmaze-umaze": {(1, 1)},
        "antmaze-medium-play": {(5, 6), (2, 1), (1, 5)},
        "antmaze-large-play": {(7, 6), (5, 5), (5, 10), (3, 2), (1, 4), (1, 6), (1, 9)},
    }
    for name, walks in told.items():
        pursued = {tuple(int(k) for k in maze.cell_xy_to_rowcol(goal)) for _, maze, goal in walks}
        assert pursued == cells.get(name, pursued)
        starts = {start for start, _, _ in walks}
        if name == "antmaze-umaze":
            assert starts == {None}
            continue
        assert len(starts) >= 6
        assert name in cells or len(pursued) >= (7 if "umaze" in name else 16)
        assert all(start != tuple(maze.cell_xy_to_rowcol(goal)) for start, maze, goal in walks)
        offsets = np.array([goal - maze.cell_rowcol_to_xy(maze.cell_xy_to_rowcol(goal)) for _, maze, goal in walks])
        assert 0 <= offsets.min() < 0.3
        assert 1.2 < offsets.max() <= 1.5


# ----------------------------------------------------------------------------- Locomotion


@pytest.mark.parametrize("name", LOCOMOTION)
def test_a_body_is_recorded_as_it_moved(name):
    """Repeating the actions from the first state gives the observations, rewards and end."""
    data = load(recipes.make(name, size=400), name)
    task = tasks.find(name)
    assert len(data) == 400
    assert data.metadata["recipe"]["name"] == name
    assert data.metadata["ref_max_score"] == task.reference[1]
    environment = datasets.environment_of(task, data)
    simulation = environment.raw.unwrapped
    end = int(np.flatnonzero(data.terminated | data.truncated)[0]) + 1
    environment.reset(0)
    state = data.observation[0].astype(np.float64)
    joints = simulation.model.nq - 1  # x is not observed
    simulation.set_state(np.append(0.0, state[:joints]), state[joints:])
    for row in range(min(end, 8)):  # the state is recorded in single precision, and errors grow
        step = environment.step(data.action[row])
        np.testing.assert_allclose(step.next_observation, data.next_observation[row], atol=2e-2, rtol=1e-2)
        assert step.reward == pytest.approx(float(data.reward[row]), abs=2e-2)
    assert not (task.never_terminates and data.terminated.any())
    environment.close()


def test_each_quality_is_collected_by_its_stages(monkeypatch):
    """Equal shares, in order, to the transition; the same stage gives the same episodes in every set."""
    task = tasks.find("hopper-medium-expert")
    environment = environments.make(task)
    collected = list(locomotion.generate(environment, 900, 0))
    lengths = np.cumsum([len(episode.actions) for episode in collected])
    assert lengths[-1] == 900
    assert 450 in lengths
    medium = next(locomotion.generate(environments.make(tasks.find("hopper-medium")), 450, 0))
    count = len(medium.actions)
    np.testing.assert_array_equal(collected[0].observations[: count + 1], medium.observations)
    expert = next(locomotion.generate(environments.make(tasks.find("hopper-expert")), 450, 0))
    second = collected[int(np.flatnonzero(lengths == 450)[0]) + 1]
    np.testing.assert_array_equal(second.actions, expert.actions)

    stages = []
    monkeypatch.setattr(locomotion, "perform", lambda name, stage, seed, number: stages.append(stage) or medium)
    list(locomotion.generate(environments.make(tasks.find("hopper-medium-replay")), 500, 0))
    count = len(behaviour.load("hopper"))
    assert stages == sorted(stages)
    assert set(stages) == set(range(count - 1))  # the last of them is medium, and the expert has no part
    environment.close()


def test_a_cut_episode_is_truncated_and_a_whole_one_ends_as_it_did():
    whole = episodes.Episode(np.zeros((4, 2), np.float32), np.zeros((3, 1), np.float32), np.arange(3.0), True)
    buffer = whole.until(3).buffer()
    assert buffer.terminations.tolist() == [False, False, True]
    assert not buffer.truncations.any()
    cut = whole.until(2).buffer()
    assert (len(cut.observations), len(cut.actions), cut.rewards.tolist()) == (3, 2, [0.0, 1.0])
    assert not cut.terminations.any()
    assert cut.truncations.tolist() == [False, True]


def test_behaviour_policies_sample_their_gaussian():
    """Against the definition, with weights made by hand; kept through a file in half precision."""
    kernel = np.array([[1.0], [0.0]], np.float32)
    policy = behaviour.Policy(
        [(np.eye(2, dtype=np.float32), np.array([0, 1], np.float32))],
        (kernel, np.array([0.5], np.float32)),
        (np.zeros((2, 1), np.float32), np.array([np.log(0.25)], np.float32)),
    )
    observation = np.tile(np.array([-2.0, 3.0], np.float32), (20_000, 1))
    before = np.arctanh(policy(observation, np.random.default_rng(0)))
    assert before.mean() == pytest.approx(0.5, abs=0.01)  # the first feature is cut off by the ReLU
    assert before.std() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("body", BODIES)
def test_shipped_policies_are_small_and_ordered(body):
    """Medium and expert, ten stages and the expert; no more than 200 kB per body."""
    assert behaviour.path(body).stat().st_size < 200_000
    assert 3 <= len(behaviour.load(body)) <= 11
    environment = environments.make(tasks.find(f"{body}-medium"))
    returns = {}
    for stage in (0, locomotion.MEDIUM, locomotion.EXPERT):
        returns[stage] = np.mean([locomotion.perform(f"{body}-medium", stage, 1, k).rewards.sum() for k in range(3)])
    assert returns[0] < returns[locomotion.MEDIUM] < returns[locomotion.EXPERT]
    environment.close()


# ----------------------------------------------------------------------------- classic control


@pytest.mark.parametrize("task", CLASSIC)
def test_a_dqn_with_noise_collects_discrete_actions(task):
    environment = environments.make(tasks.find(task))
    data = load(recipes.make(task, size=1500), task)
    assert (len(data), data.observation.shape[1]) == (1500, environment.observation_size)
    assert data.has_discrete_actions
    assert data.action.shape[1] == environment.action_size
    assert (data.action.sum(axis=1) == 1).all()
    assert data.action.mean(axis=0).min() > 0.1
    batch = data.batch(tasks.find(task))
    assert batch.action.dtype == np.float32
    np.testing.assert_array_equal(batch.action, data.action)  # exactly 0 and 1: no margin
    # They are what the environment does.
    policy, start = behaviour.load_greedy(task.split("-")[0]), 0
    for number, end in enumerate([*data.starts[1:], len(data)]):
        rng = np.random.default_rng([0, number, zlib.crc32(task.encode())])
        rng.random()
        np.testing.assert_array_equal(environment.reset(int(rng.integers(2**31))), data.observation[start])
        for row in range(start, end):
            step = environment.step(data.action[row])
            np.testing.assert_array_equal(step.next_observation, data.next_observation[row])
            assert (step.reward, step.terminated) == (data.reward[row], data.terminated[row])
        start = end
    assert policy(data.observation).shape == (1500,)
    environment.close()


def test_an_episode_in_five_is_greedy_and_in_the_others_a_fifth_of_the_actions_is_random():
    """A random action is the policy's by chance: of two, half of them."""
    policy, shares = behaviour.load_greedy("cartpole"), []
    for number in range(40):
        episode = classic.perform("cartpole-mixed", 0, number)
        own = policy(episode.observations[:-1])
        shares.append(float((own != episode.actions).mean()))
    greedy = [share for share in shares if share == 0]
    assert 3 <= len(greedy) <= 15
    assert np.mean([share for share in shares if share > 0]) == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("name", ["cartpole", "acrobot"])
def test_shipped_dqns_are_small(name):
    assert behaviour.path(name).stat().st_size < 20_000
    policy = behaviour.load_greedy(name)
    x = np.random.default_rng(0).normal(size=(5, len(policy.layers[0][0]))).astype(np.float32)
    hidden = x
    for kernel, bias in policy.layers[:2]:
        hidden = np.maximum(hidden @ kernel + bias, 0)
    values = hidden @ policy.layers[2][0] + policy.layers[2][1]
    np.testing.assert_array_equal(policy(x), values.argmax(-1))
    assert policy(x[0]).shape == ()
