"""Writes tests/foreign/lerobot with LeRobot's own code: run where lerobot is installed (0.4.4 was, with numpy 2.2)."""

import shutil
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FOLDER = Path(__file__).parent
SHAPES = {
    "observation.environment_state": (2,),
    "observation.state": (3,),
    "observation.force": (1,),
    "observation.grid": (2, 2),
    "action": (2,),
}


def main() -> None:
    """Three episodes, of which the second fails."""
    features = {key: {"dtype": "float32", "shape": shape, "names": None} for key, shape in SHAPES.items()}
    features["observation.images.top"] = {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channel"]}
    features["next.reward"] = {"dtype": "float32", "shape": (1,), "names": None}
    features |= {key: {"dtype": "bool", "shape": (1,), "names": None} for key in ("next.done", "next.success")}
    shutil.rmtree(FOLDER / "lerobot", ignore_errors=True)
    data = LeRobotDataset.create("headstart/tiny", 10, features, FOLDER / "lerobot", "arm", use_videos=False)
    rng, rows = np.random.default_rng(0), []
    for length, succeeds in ((4, True), (5, False), (3, True)):
        for step in range(length):
            last = step == length - 1
            frame = {key: rng.normal(size=shape).clip(-1, 1).astype(np.float32) for key, shape in SHAPES.items()}
            frame["next.reward"] = np.array([last and succeeds], np.float32)
            frame |= {"next.done": np.array([last]), "next.success": np.array([last and succeeds])}
            rows.append(frame)
            image = np.full((8, 8, 3), 20 * step, np.uint8)
            data.add_frame(frame | {"observation.images.top": image, "task": "reach"})
        data.save_episode()
    data.finalize()
    shutil.rmtree(FOLDER / "lerobot" / "images", ignore_errors=True)
    np.savez(FOLDER / "lerobot.npz", **{key: np.stack([row[key] for row in rows]) for key in rows[0]})


if __name__ == "__main__":
    main()
