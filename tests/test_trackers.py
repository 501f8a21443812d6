"""What trackers are told, and under which names."""

import functools
import importlib.machinery
import json
import logging
import sys
import types
import warnings

import pytest

from common.commandline import Run
from common.trackers import Trackers

CONFIG = {
    "algorithm": "rlpd",
    "run": {"env": "pointmaze-umaze", "num_seeds": 2, "seed": 3},
    "config": {"discount": 0.9, "hidden": [8, 8]},
    "grid": {"discount": [0.9, 0.99]},
    "dataset": {"source": "npz:mine.npz", "fingerprint": "abc"},
}
ROWS = [{"run": run, "seed": 3, "step": 5, "phase": "online", "score": float("nan"), "success": 10.0 * run}
        for run in range(4)]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def begun(monkeypatch):
    """Stand-ins for trackers: name -> what each was begun with; "rows" -> what they were sent; "over" -> their ends."""
    told = {"rows": [], "over": []}
    run = types.SimpleNamespace(
        log=lambda values, step: told["rows"].append(values), finish=lambda: told["over"].append(True)
    )
    for tracker in ("wandb", "trackio"):
        module = types.ModuleType(tracker)
        module.__spec__ = importlib.machinery.ModuleSpec(tracker, None)
        module.init = functools.partial(lambda tracker, /, **given: told.update({tracker: given}) or run, tracker)
        monkeypatch.setitem(sys.modules, tracker, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return told


@pytest.mark.parametrize(
    ("flags", "variable", "projects", "names"),
    [
        ({}, None, ("headstart", "headstart"), (None, "rlpd-pointmaze-umaze-0123abcd")),
        ({}, "theirs", ("theirs", "headstart"), (None, "rlpd-pointmaze-umaze-0123abcd")),
        ({"project": "mine", "name": "one"}, "theirs", ("mine", "mine"), ("one", "one")),
    ],
)
def test_the_whole_configuration_goes_under_the_users_names(
    folder, begun, monkeypatch, flags, variable, projects, names
):
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    trackers = Trackers(folder, Run(wandb=True, trackio=True, group="g", **flags), "0123abcdef", 0)
    trackers.log("evaluation", 7, ROWS[1:3])
    trackers.close()
    for tracker, project, name in zip(("wandb", "trackio"), projects, names, strict=True):
        given = begun[tracker]
        assert (given["project"], given["name"], given["group"]) == (project, name, "g")
        assert given["config"] == CONFIG
    assert (begun["wandb"]["id"], begun["wandb"]["resume"]) == ("0123abcdef", "allow")
    assert begun["trackio"]["resume"] == "never"
    # The runs of one command are told apart.
    assert [list(values)[1] for values in begun["rows"]] == [f"evaluation/success/run{run}" for run in (1, 1, 2, 2)]
    assert len(begun["over"]) == 2


def test_a_resumed_run_goes_on_in_trackio(folder, begun):
    Trackers(folder, Run(trackio=True), "0123abcdef", 5)
    assert begun["trackio"]["resume"] == "allow"


def test_tensorboard_has_numbers_configuration_and_hyperparameters_without_a_warning(folder, caplog):
    pytest.importorskip("tensorboardX", reason="pip install -e '.[tensorboard]'")
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        for done in (0, 5):
            trackers = Trackers(folder, Run(tensorboard=True), "0123abcdef", done)
            trackers.log("evaluation", done + 5, ROWS)
            trackers.close()
            for file in (folder / "tensorboard").rglob("events.out.*"):  # whose name is the second it was begun in
                file.rename(file.with_name(f"events.{done}"))
    assert caplog.records == []
    tags = [value for event in events(folder / "tensorboard") for value in event.summary.value]
    assert [value.simple_value for value in tags if value.tag == "evaluation/success/run2"] == [20, 20]
    assert not [value.tag for value in tags if value.tag.startswith("evaluation/score")]
    (text,) = [value.tensor.string_val[0].decode() for value in tags if value.tag.startswith("config")]
    assert json.loads(text.removeprefix("```json").removesuffix("```")) == CONFIG
    # Of each run, once, its point of the grid and its seed.
    found = []
    for run in range(4):
        values = [value for event in events(folder / "tensorboard" / f"run{run}") for value in event.summary.value]
        assert [value.simple_value for value in values if value.tag == "success"] == [10 * run]
        (start,) = [value for value in values if value.tag == "_hparams_/session_start_info"]
        hyperparameters = start_info(start)
        assert hyperparameters["hidden"].string_value == "[8, 8]"
        found.append((hyperparameters["discount"].number_value, hyperparameters["seed"].number_value))
    assert found == [(0.9, 3), (0.9, 4), (0.99, 3), (0.99, 4)]


def events(folder):
    """What TensorBoard would read in a folder: records of a length, a checksum, an event and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def start_info(value):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    return HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info.hparams
