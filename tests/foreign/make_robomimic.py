"""Writes tests/foreign/robomimic.hdf5 with robomimic's own scripts: run where robomimic is installed (0.3.0 was)."""

import argparse
import json
import tempfile
from pathlib import Path

import h5py
import numpy as np
import robomimic.utils.env_utils as environments
from robomimic.envs.env_base import EnvBase, EnvType
from robomimic.scripts.dataset_states_to_obs import dataset_states_to_obs
from robomimic.utils.file_utils import create_hdf5_filter_key

FOLDER = Path(__file__).parent
ABOUT = {"env_name": "Reach", "type": EnvType.GYM_TYPE, "env_kwargs": {}}


class Reach(EnvBase):
    """Five numbers that actions push; success where the first is above 1."""

    action_dimension, name, type, base_env, rollout_exceptions = 2, "Reach", EnvType.GYM_TYPE, None, ()

    def __init__(self):
        self.state = np.zeros(5)

    def step(self, action):
        """Push, as the last action of a recording is played."""
        self.state = self.state + 0.1 * np.resize(action, 5)
        return self.get_observation(), 0.0, False, {}

    def reset(self):
        """Nothing: a state follows."""

    def reset_to(self, state):
        """To a recorded state."""
        self.state = np.array(state["states"])
        return self.get_observation()

    def get_observation(self):
        """As robosuite names observations of an arm."""
        return {
            "agentview_image": np.zeros((4, 4, 3), np.uint8),
            "object": self.state[:2] * 2,
            "robot0_eef_pos": self.state[:3],
            "robot0_eef_quat": np.append(self.state[:3], 1.0),
            "robot0_gripper_qpos": self.state[3:],
            "robot0_joint_pos": self.state,
        }

    def get_reward(self):
        """1 at success."""
        return float(self.state[0] > 1)

    def is_success(self):
        """Whether the first number is above 1."""
        return {"task": self.state[0] > 1}

    def serialize(self):
        """What the file says of it."""
        return ABOUT

    def _unused(self, *args, **kwargs):
        raise NotImplementedError

    render = get_state = get_goal = set_goal = is_done = _unused
    create_for_data_processing = classmethod(lambda cls, **_: cls())


def main() -> None:
    """Demonstrations 2, 9 and 10: the last one fails; the others stay at success for a step."""
    rng, name = np.random.default_rng(0), "robomimic.hdf5"
    with tempfile.TemporaryDirectory() as folder:
        with h5py.File(f"{folder}/demo.hdf5", "w") as file:
            file.create_group("data").attrs["env_args"] = json.dumps(ABOUT)
            for number, length in ((2, 3), (9, 4), (10, 5)):
                states = rng.normal(0, 0.2, (length, 5))
                states[-1, 0] = 0 if number == 10 else 1.5
                group = file["data"].create_group(f"demo_{number}")
                group["states"], group["actions"] = states, rng.uniform(0, 1, (length, 2))
        environments.create_env_for_data_processing = lambda **_: Reach()
        dataset_states_to_obs(argparse.Namespace(
            dataset=f"{folder}/demo.hdf5", output_name=name, done_mode=2, n=None, shaped=False, camera_names=[],
            camera_height=4, camera_width=4, copy_rewards=False, copy_dones=False, exclude_next_obs=False,
            compress=False,
        ))  # fmt: skip
        create_hdf5_filter_key(f"{folder}/{name}", ["demo_10", "demo_2"], "train")
        (FOLDER / name).write_bytes(Path(folder, name).read_bytes())


if __name__ == "__main__":
    main()
