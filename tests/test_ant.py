"""The ant's symmetries hold in the simulation, and the waypoints lead through every maze."""

from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest

from common import environments, tasks
from common.recipes import ant, mazes

MODEL = Path(gymnasium.__file__).parent / "envs/mujoco/assets/ant.xml"


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    model = mujoco.MjModel.from_xml_path(str(MODEL))
    environments.as_d4rl(model)
    return model


def state_of(data: mujoco.MjData) -> np.ndarray:
    return np.concatenate([data.qpos[2:], data.qvel])[None]


def place(model: mujoco.MjModel, seen: np.ndarray) -> tuple[mujoco.MjData, np.ndarray]:
    """A simulation that is observed as `seen` [28], with heading 0, and the direction of its waypoint."""
    data = mujoco.MjData(model)
    x, y, z = seen[1:4]
    w = np.sqrt((1 + z) / 2)
    data.qpos[2:7] = [seen[0] / 3 + 0.55, w, y / (2 * w), -x / (2 * w), 0]
    sign = np.array([1, -1, -1, 1])
    data.qpos[7::2], data.qpos[8::2] = seen[4:12:2] / 2, (seen[5:12:2] / 2.5 + 0.87) * sign
    data.qvel[:3], data.qvel[3:6] = seen[12:15] / 0.5, seen[15:18] / 0.2
    data.qvel[6::2], data.qvel[7::2] = seen[18:26:2] / 0.1, seen[19:26:2] / 0.1 * sign
    return data, seen[26:28]


def random_observation(model: mujoco.MjModel, rng: np.random.Generator) -> np.ndarray:
    """Of an ant a little tilted, with its legs anywhere, above the ground."""
    data = mujoco.MjData(model)
    tilt = np.append(rng.normal(0, 0.2, 2), 0.0)
    data.qpos[2] = 0.62
    mujoco.mju_axisAngle2Quat(data.qpos[3:7], tilt / np.linalg.norm(tilt), np.linalg.norm(tilt))
    data.qpos[7::2] = rng.uniform(-0.5, 0.5, 4)
    data.qpos[8::2] = rng.uniform(0.55, 1.1, 4) * [1, -1, -1, 1]
    data.qvel[:] = rng.normal(size=14)
    direction = rng.normal(size=(1, 2))
    return ant.observe(state_of(data), direction)[0].astype(float)


def test_placing_an_ant_inverts_observing_it(model):
    for seed in range(5):
        seen = random_observation(model, np.random.default_rng(seed))
        data, direction = place(model, seen)
        np.testing.assert_allclose(ant.observe(state_of(data), direction[None])[0], seen, atol=1e-6)


@pytest.mark.parametrize("symmetry", range(ant.SYMMETRIES))
def test_the_simulation_has_the_symmetry(model, symmetry):
    """What the mirrored ant does with mirrored actions is the mirror image of what the ant does."""
    index, sign = ant.OBSERVATION_INDEX[symmetry], ant.OBSERVATION_SIGN[symmetry]
    rng = np.random.default_rng(symmetry)
    for _ in range(3):
        seen = random_observation(model, rng)
        (one, direction), (other, turned) = place(model, seen), place(model, seen[index] * sign)
        for _ in range(4):
            action = rng.uniform(-1, 1, (1, 8))
            one.ctrl[:] = ant.to_motors(action)[0]
            other.ctrl[:] = ant.to_motors(action[:, ant.ACTION_INDEX[symmetry]] * ant.ACTION_SIGN[symmetry])[0]
            mujoco.mj_step(model, one, nstep=5)
            mujoco.mj_step(model, other, nstep=5)
        ours, theirs = ant.observe(state_of(one), direction[None])[0], ant.observe(state_of(other), turned[None])[0]
        np.testing.assert_allclose(ours[index] * sign, theirs, atol=2e-3)
        assert np.abs(ours - seen).max() > 0.1


def test_symmetries_are_eight_different_ones_and_keep_lengths():
    shown = np.arange(1.0, 29.0)
    images = {tuple(shown[i] * s) for i, s in zip(ant.OBSERVATION_INDEX, ant.OBSERVATION_SIGN, strict=True)}
    assert len(images) == ant.SYMMETRIES
    for index in ant.OBSERVATION_INDEX:
        assert sorted(index) == list(range(28))
    for index in ant.ACTION_INDEX:
        assert sorted(index) == list(range(8))


def test_the_world_s_axes_do_not_matter(model):
    """Turning ant, velocity and waypoint together about the vertical changes nothing."""
    seen = random_observation(model, np.random.default_rng(0))
    data, direction = place(model, seen)
    for angle in (0.3, 1.9, -2.5):
        turned = mujoco.MjData(model)
        turned.qpos[:], turned.qvel[:] = data.qpos, data.qvel
        turn = np.zeros(4)
        mujoco.mju_axisAngle2Quat(turn, np.array([0.0, 0.0, 1.0]), angle)
        mujoco.mju_mulQuat(turned.qpos[3:7], turn, data.qpos[3:7])
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        turned.qvel[:2] = rotation @ data.qvel[:2]
        again = ant.observe(state_of(turned), (rotation @ direction)[None])[0]
        np.testing.assert_allclose(again, seen, atol=1e-6)


@pytest.mark.parametrize("name", ["antmaze-umaze", "antmaze-medium-play", "antmaze-large-play"])
def test_waypoints_lead_to_the_goal_without_touching_a_wall(name):
    environment = environments.make(tasks.find(name))
    maze = environment.raw.unwrapped.maze
    goal = maze.unique_goal_locations[0]
    waypoints = mazes.Waypoints(maze, goal)
    for start in waypoints.steps:
        position = maze.cell_rowcol_to_xy(np.array(start)).astype(float)
        for _ in range(800):
            to_waypoint = waypoints(position) - position
            distance = np.linalg.norm(to_waypoint)
            position = position + to_waypoint * min(1.0, 0.2 / max(distance, 1e-9))
            assert waypoints.clearance(position, position) > 1.0
            if np.linalg.norm(position - goal) < 0.45:
                break
        assert np.linalg.norm(position - goal) < 0.45
    environment.close()


@pytest.mark.parametrize("offset", [(1.5, 1.5), (1.5, -1.5), (-1.5, 1.5), (-1.5, -1.5)])
def test_a_goal_in_a_corner_is_reached_from_anywhere(offset):
    """Half a metre from two walls; from off-centre places too, and from the middle of the next cell straight."""
    environment = environments.make(tasks.find("antmaze-medium-play"))
    maze = environment.raw.unwrapped.maze
    cell = tuple(environment.raw.unwrapped.maze.cell_xy_to_rowcol(maze.unique_goal_locations[0]))
    goal = maze.cell_rowcol_to_xy(np.array(cell)) + offset
    waypoints = mazes.Waypoints(maze, goal)
    rng = np.random.default_rng(0)
    for start, steps in waypoints.steps.items():
        position = maze.cell_rowcol_to_xy(np.array(start)) + rng.uniform(-1.5, 1.5, 2)
        if steps == 1:
            np.testing.assert_array_equal(waypoints(maze.cell_rowcol_to_xy(np.array(start))), goal)
        for _ in range(800):
            to_waypoint = waypoints(position) - position
            position = position + to_waypoint * min(1.0, 0.2 / max(np.linalg.norm(to_waypoint), 1e-9))
            if np.linalg.norm(position - goal) < 0.05:
                break
        assert np.linalg.norm(position - goal) < 0.05
    environment.close()


def test_paths_are_shortest():
    layout = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    steps = mazes.steps_to(layout, (3, 1))
    assert mazes.path(steps, (1, 1)) == [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert steps[(1, 1)] == 6
    assert mazes.path(steps, (3, 1)) == [(3, 1)]
    assert (1, 0) not in steps
