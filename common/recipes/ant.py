"""The ant that walks where it is told: what it observes, its symmetries, and the controller behind AntMaze's recipes.

The controller maps the ant's 27 numbers of AntMaze (height, orientation, joints, velocities) and the direction of a
waypoint to torques, without memory. It sees everything from its own heading, so that the world's axes do not matter,
and its legs in one convention, so that the body's eight symmetries (four quarter turns, each mirrored or not) are
signed permutations of what it observes and does. benchmarks/makers/ant_controller.py trains it; its weights lie beside
this file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).parent / "ant_controller.npz"
OBSERVATION_SIZE, ACTION_SIZE = 28, 8
SYMMETRIES = 8

_ANKLE_SIGN = np.array([1.0, -1.0, -1.0, 1.0])
"""Per leg: ankles 2 and 3 of the model bend the other way."""
_MOTORS = np.array([2, 3, 4, 5, 6, 7, 0, 1])
"""Motor of each joint, in the order hip 1, ankle 1, ..., ankle 4."""
_ANKLE_REST = 0.87
_LIMIT = 5.0
"""Observations are clipped to +-5 of their units."""


def observe(state: np.ndarray, to_waypoint: np.ndarray) -> np.ndarray:
    """What the controller sees, float32 [n, 28].

    `state` [n, 27] is AntMaze's: z, quaternion (4), joints (8), velocity (3), angular velocity (3), joint velocities
    (8); `to_waypoint` [n, 2] is the waypoint minus the position, in metres along the world's axes. Out come z, the
    world's vertical in the body's axes (3), joints (8), velocity along the heading (3), angular velocity (3), joint
    velocities (8), and the direction of the waypoint from the heading (2), each about of unit size.
    """
    w, x, y, z = state[:, 1:5].T
    heading = 2 * np.arctan2(
        z, w
    )  # the twist about the vertical: a quarter turn of the body changes it by exactly that
    along, across = np.cos(heading), np.sin(heading)
    joints, rates = state[:, 5:13].reshape(-1, 4, 2), state[:, 19:27].reshape(-1, 4, 2)
    velocity, spin = state[:, 13:16], state[:, 16:19]
    direction = to_waypoint / np.maximum(np.linalg.norm(to_waypoint, axis=1, keepdims=True), 1e-6)
    out = np.empty((len(state), OBSERVATION_SIZE), np.float32)
    out[:, 0] = 3 * (state[:, 0] - 0.55)
    out[:, 1], out[:, 2], out[:, 3] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    out[:, 4:12:2] = 2 * joints[:, :, 0]
    out[:, 5:12:2] = 2.5 * (joints[:, :, 1] * _ANKLE_SIGN - _ANKLE_REST)
    out[:, 12] = 0.5 * (along * velocity[:, 0] + across * velocity[:, 1])
    out[:, 13] = 0.5 * (along * velocity[:, 1] - across * velocity[:, 0])
    out[:, 14] = 0.5 * velocity[:, 2]
    out[:, 15:18] = 0.2 * spin
    out[:, 18:26:2] = 0.1 * rates[:, :, 0]
    out[:, 19:26:2] = 0.1 * rates[:, :, 1] * _ANKLE_SIGN
    out[:, 26] = along * direction[:, 0] + across * direction[:, 1]
    out[:, 27] = along * direction[:, 1] - across * direction[:, 0]
    return out.clip(-_LIMIT, _LIMIT)


def to_motors(action: np.ndarray) -> np.ndarray:
    """The controller's actions [n, 8] (hip and ankle of leg 1, ... leg 4) as the environment's."""
    signed = action.reshape(-1, 4, 2) * np.stack([np.ones(4), _ANKLE_SIGN], axis=1)
    motors = np.empty_like(action)
    motors[:, _MOTORS] = signed.reshape(-1, 8)
    return motors


def _signed_permutations() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Index and sign of observations [8, 28] and actions [8, 8] under each symmetry, the identity first."""
    observation_index, observation_sign, action_index, action_sign = [], [], [], []
    for mirrored in (False, True):
        for turns in range(4):
            index, sign = np.arange(OBSERVATION_SIZE), np.ones(OBSERVATION_SIZE)
            legs = np.arange(4)
            hip = 1.0
            if mirrored:  # left and right: y, roll and yaw change sign, legs 1, 4 and 2, 3 change places
                legs, hip = legs[::-1], -1.0
                sign[[2, 13, 27]] = -1  # y of the vertical, of the velocity, of the direction
                sign[[15, 17]] = -1  # spin about x and z
            # The body turned by quarters under the same world: what was leg j is leg j + turns.
            legs = legs[(np.arange(4) + turns) % 4]
            for first in (1, 12, 15, 26):
                pair, pair_sign = index[first : first + 2].copy(), sign[first : first + 2].copy()
                for _ in range(turns):  # (x, y) becomes (y, -x)
                    pair, pair_sign = pair[::-1].copy(), (pair_sign[::-1] * [1, -1]).copy()
                index[first : first + 2], sign[first : first + 2] = pair, pair_sign
            joints = np.stack([2 * legs, 2 * legs + 1], axis=1).reshape(8)
            joint_sign = np.tile([hip, 1.0], 4)
            for first in (4, 18):
                index[first : first + 8], sign[first : first + 8] = first + joints, joint_sign
            observation_index.append(index)
            observation_sign.append(sign)
            action_index.append(joints)
            action_sign.append(joint_sign)
    return tuple(np.array(part) for part in (observation_index, observation_sign, action_index, action_sign))  # type: ignore[return-value]


OBSERVATION_INDEX, OBSERVATION_SIGN, ACTION_INDEX, ACTION_SIGN = _signed_permutations()
"""Symmetry k shows observation o as o[OBSERVATION_INDEX[k]] * OBSERVATION_SIGN[k], and action a likewise."""


class Controller:
    """The trained network, in NumPy: deterministic, without memory."""

    def __init__(self, weights: Path = WEIGHTS):
        with np.load(weights, allow_pickle=False) as file:
            depth = len(file.files) // 2
            self.layers = [(file[f"kernel{k}"].astype(np.float32), file[f"bias{k}"]) for k in range(depth)]

    def __call__(self, state: np.ndarray, to_waypoint: np.ndarray) -> np.ndarray:
        """Actions [n, 8] for the environment; see `observe`."""
        features = observe(state, to_waypoint)
        for kernel, bias in self.layers[:-1]:
            features = np.maximum(features @ kernel + bias, 0)
        kernel, bias = self.layers[-1]
        return to_motors(np.tanh(features @ kernel + bias))
