"""Training from Python: the same requests as the command line's, and what only a session can hand over."""

import dataclasses
import json
import linecache
import os
import signal
import sys
import threading
import types

import gymnasium
import numpy as np
import pytest
from served import serve

from algorithms import iql, rlpd
from algorithms.rlpd import PRESETS, RLPD, Config
from common import command, commandline, environments, interactive, origins, tasks, values
from common.collection import Collector
from common.datasets import Dataset
from common.errors import Refused
from common.evaluation import Evaluator
from common.library import resume, train
from common.trained import columns

SMALL = {
    "hidden": [8, 8], "ensemble": 2, "utd": 1, "batch_size": 8, "steps": 30, "start_training": 4, "offline_ratio": 0.5,
    "eval_every": 10, "eval_episodes": 1, "log_every": 5, "checkpoint_every": 10,
}  # fmt: skip
FLAGS = values.arguments(commandline.Request(commandline.Run(), Config(hidden=(8, 8)), {}), ["hidden"]) + [
    f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "hidden"
]


def pendulum() -> gymnasium.Env:
    return gymnasium.make("InvertedPendulum-v5", max_episode_steps=20)


def rows(count: int = 60) -> dict[str, np.ndarray]:
    """Data of a pendulum's that learn nothing sensible."""
    rng = np.random.default_rng(0)
    ends = np.arange(count) % 15 == 14
    return {
        "observations": rng.normal(size=(count, 4)).astype(np.float32),
        "actions": rng.uniform(-3, 3, (count, 1)).astype(np.float32),
        "rewards": np.ones(count, np.float32),
        "terminals": np.zeros(count, bool),
        "timeouts": ends,
    }


@pytest.fixture
def asked(monkeypatch):
    """What train would have launched: class, request and arguments, of its last call."""
    calls = []

    def run(agent_class, request, arguments, *_, **__):
        calls[:] = [agent_class, request, arguments]
        raise Refused("enough")

    monkeypatch.setattr(interactive.launch, "run", run)
    monkeypatch.setattr(command, "prepare_devices", lambda request: None)
    return calls


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("module", "given", "flags"),
    [
        (rlpd, {}, []),
        (rlpd, {"env": "antmaze-umaze"}, ["--env", "antmaze-umaze"]),  # its family's preset
        (iql, {"env": "hopper-medium"}, ["--env", "hopper-medium"]),
        (rlpd, {"preset": "droq", "dropout": 0.2, "env": "hopper-medium"},
         ["--preset", "droq", "--dropout", 0.2, "--env", "hopper-medium"]),
        (rlpd, {"env": "pointmaze-umaze", "num_seeds": 3, "grid": {"discount": (0.99, 0.995), "learning_rate": [1e-4]},
                "out": "runs/x", "dataset": "npz:file.npz"},
         ["--env", "pointmaze-umaze", "--num-seeds", 3, "--grid.discount", 0.99, 0.995, "--grid.learning-rate", 1e-4,
          "--out", "runs/x", "--dataset", "npz:file.npz"]),
        (rlpd, {"hidden": np.array([64, 64]), "layer_norm": False, "steps": 1e5, "learning_rate": 1,
                "target_entropy_per_action": -0.25, "tensorboard": True},
         ["--hidden", 64, 64, "--no-layer-norm", "--steps", 100_000, "--learning-rate", 1,
          "--target-entropy-per-action", -0.25, "--tensorboard"]),
    ],
)  # fmt: skip
def test_the_request_is_the_command_lines_and_its_arguments_say_the_same(asked, tmp_path, module, given, flags):
    agent_class = module.RLPD if module is rlpd else module.IQL
    with pytest.raises(Refused, match="enough"):
        train(agent_class, **given)
    name = module.__name__.rpartition(".")[2]
    ways = [[str(flag) for flag in flags], asked[2]]
    for arguments in ways:
        assert commandline.parse(arguments, name, "", module.Config, module.PRESETS) == asked[1]
    # And so does what config.json keeps of it.
    kept = {"run": asked[1].run, "config": asked[1].config, "grid": asked[1].grid}
    kept = json.loads(json.dumps(kept, default=lambda x: dataclasses.asdict(x) if hasattr(x, "problem") else str(x)))
    assert interactive.request_of(tmp_path, kept, agent_class) == asked[1]
    with pytest.raises(Refused, match="Config has no gone, with which the run began"):
        interactive.request_of(tmp_path, kept | {"config": {"gone": 1}}, agent_class)


def test_a_config_is_taken_whole_and_values_win_over_it(asked):
    config = Config(ensemble=3, discount=0.9)
    with pytest.raises(Refused, match="enough"):
        train(RLPD, config, env="antmaze-umaze", discount=0.95)
    _, request, arguments = asked
    assert request.config == dataclasses.replace(config, discount=0.95)  # without the preset's 256, 256, 256
    assert request.run.eval_episodes == 100
    assert commandline.parse(arguments, "rlpd", "", Config, PRESETS) == request
    with pytest.raises(Refused, match="beside a config"):
        train(RLPD, config, preset="sac")


def test_a_class_that_extends_another_has_its_config_and_presets(asked):
    class Mine(RLPD):
        pass

    with pytest.raises(Refused, match="enough"):
        train(Mine, env="pointmaze-umaze")
    assert asked[1].config == Config(**{k: v for k, v in PRESETS["pointmaze"].items() if hasattr(Config, k)})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"discont": 0.9}, r"discont: no such value .*did you mean discount\?"),
        ({"utd": 1.5}, r"utd=1.5: must be a whole number"),
        ({"utd": True}, r"utd=True: must be a whole number"),
        ({"layer_norm": 1}, r"layer_norm=1: must be True or False"),
        ({"discount": "0.9"}, r"discount='0.9': must be a number"),
        ({"hidden": "64"}, r"hidden='64': must be a sequence"),
        ({"discount": 2.0}, r"--discount must lie in \[0, 1\], not 2.0"),
        ({"num_seeds": 0}, r"--num-seeds must be at least 1"),
        ({"grid": {"utd": (1, 2)}}, r"grid\['utd'\]: utd is a shape, count or choice"),
        ({"grid": {"discount": ()}}, r"grid\['discount'\]: has no values"),
        ({"grid": {"discount": (0.9, 0.9)}}, r"holds 0.9 twice"),
        ({"grid": {"discount": (0.9,)}, "discount": 0.9}, r"discount beside grid\['discount'\]"),
        ({"env": 3}, r"env is of type int"),
        ({"env": "pointmaze-umze"}, r"did you mean pointmaze-umaze"),
        ({"env": lambda: 3}, r"lambda\(\) returned int"),
        ({"env": lambda: gymnasium.make("InvertedPendulum-v5").unwrapped}, r"no time limit.*TimeLimit"),
        ({"dataset": 3}, r"dataset is of type int"),
        ({"preset": "nothing"}, r"--preset nothing: rlpd has"),
        ({"project": "mine"}, r"--project mine: names a run for --wandb or --trackio"),
        ({"resume": "runs/x", "steps": 3}, r"steps beside resume"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_a_line(asked, given, told):
    with pytest.raises(Refused, match=told) as refusal:
        train(RLPD, **given)
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- classes, environments and data of a session

CELL = '''
from algorithms.rlpd import RLPD

class Mine(RLPD):
    """Another loss."""

    def actor_loss(self, params, batch, key):
        loss, metrics = super().actor_loss(params, batch, key)
        return 2 * loss, metrics | {"doubled": 2 * loss}
'''


@pytest.fixture
def cell(monkeypatch):
    """Mine, of a cell of a notebook."""
    notebook = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, "a_notebook", notebook)
    monkeypatch.setitem(linecache.cache, "<cell 1>", (len(CELL), None, CELL.splitlines(keepends=True), "<cell 1>"))
    exec(compile(CELL, "<cell 1>", "exec"), vars(notebook))
    return notebook.Mine


def test_a_class_of_a_cell_is_kept_by_its_source_and_another_is_noticed(cell):
    origin = origins.of(cell)
    assert (origin.name, origin.session["extends"]) == ("Mine", "rlpd.py")
    assert origin.session["source"] == CELL.partition("\n\n")[2].rstrip()
    assert origin.digests.keys() == {"Mine", "rlpd.py", "common/"}
    linecache.cache["<cell 1>"] = 0, None, CELL.replace("2 *", "3 *").splitlines(keepends=True), "<cell 1>"
    changed = origins.of(cell).digests
    assert [name for name in changed if changed[name] != origin.digests[name]] == ["Mine"]
    del linecache.cache["<cell 1>"]
    assert origins.of(cell).session["source"] is None
    assert origins.of(RLPD)[:2] == ("rlpd", "RLPD")
    assert origins.of(RLPD).session is None


def test_a_run_goes_on_with_the_class_that_began_it(cell):
    began = {"algorithm": "rlpd", "class": "RLPD"}
    command.check_class("runs/x", began, origins.of(RLPD))
    command.check_class("runs/x", {"algorithm": "rlpd"}, origins.of(RLPD))  # of before there were classes
    with pytest.raises(Refused, match=r"a run of Other of rlpd\.py, not of RLPD"):
        command.check_class("runs/x", began | {"class": "Other"}, origins.of(RLPD))
    with pytest.raises(Refused, match=r"a run of rlpd\.py, not of iql\.py"):
        command.check_class("runs/x", began, origins.of(iql.IQL))
    with pytest.raises(Refused, match=r"a run of RLPD of rlpd\.py, not of Mine"):
        command.check_class("runs/x", began, origins.of(cell))


def test_functions_and_arrays_train_as_ids_and_files_do(tmp_path, capsys):
    gymnasium.register("Twenty-v0", entry_point=pendulum().spec.entry_point, max_episode_steps=20)
    np.savez(tmp_path / "data.npz", **rows())
    file = f"npz:{tmp_path / 'data.npz'}"
    assert serve(*FLAGS, "--env", "Twenty-v0", "--dataset", file, "--num-seeds", 2, "--out", tmp_path / "a")[0] == 0
    # A lambda, in a process that plays.
    result = train(
        RLPD, env=lambda: pendulum(), dataset=rows(), num_seeds=2, eval_workers=1, out=tmp_path / "b", **SMALL
    )
    for name in ("metrics.csv", "eval.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert "in this one" not in capsys.readouterr().out
    assert (result.folder, result.interrupted) == (tmp_path / "b", False)
    assert result.scores.tolist() == [run["return_mean"] for run in result.summary["final"]]
    assert result.metrics["critic_loss"].shape == (2 * 6,)
    assert np.isnan(result.metrics["critic_loss"]).sum() == 0
    assert result.evaluations["step"].tolist() == [10, 10, 20, 20, 30, 30]
    assert set(result.evaluations["phase"]) == {"online"}
    assert result.config["run"]["env"] == "lambda()"
    assert "lambda()" in repr(result)
    # What a session held, no command line has.
    (tmp_path / "b" / "summary.json").unlink()
    with pytest.raises(Refused, match=r"data were given in Python; name them .*resume\('.*b', RLPD, env=\.\.\., data"):
        serve("--resume", tmp_path / "b")
    tasks._given.clear()
    with pytest.raises(Refused, match=r"'lambda\(\)' was made by a function of a Python session: go on there"):
        serve("--resume", tmp_path / "b", "--dataset", file)


def test_ctrl_c_returns_what_there_is_and_resume_goes_on(cell, tmp_path, monkeypatch, capsys):
    whole = train(cell, env=pendulum, dataset=rows(), out=tmp_path / "whole", **SMALL)
    assert not np.isnan(whole.metrics["doubled"]).any()
    assert whole.config["session"]["source"].startswith("class Mine(RLPD)")
    taken, step = [], Collector.step

    def stopping(self, actions):
        taken.append(0)
        if len(taken) == 16:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, actions)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "step", stopping)
        result = train(cell, env=pendulum, dataset=rows(), out=tmp_path / "run", **SMALL)
    assert result.interrupted
    assert "interrupted" in repr(result)
    assert result.evaluations["step"].tolist() == [10]
    assert (tmp_path / "run" / "curve.png").exists()
    assert f"continue with resume({str(tmp_path / 'run')!r}, Mine, dataset=...)" in capsys.readouterr().out
    with pytest.raises(Refused, match="a run of Mine, a class of a Python session"):
        serve("--resume", tmp_path / "run")
    with pytest.raises(Refused, match="a run of Mine, a class of a Python session"):
        resume(tmp_path / "run", RLPD)
    with pytest.raises(Refused, match="give the same as dataset="):
        resume(tmp_path / "run", cell, env=pendulum)
    with pytest.raises(Refused, match="holds other data than it began with"):
        resume(tmp_path / "run", cell, env=pendulum, dataset=rows(45))
    again = train(cell, resume=tmp_path / "run", env=pendulum, dataset=rows())
    for name in ("metrics.csv", "eval.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert resume(tmp_path / "run", cell).scores.tolist() == whole.scores.tolist()  # it has finished


def test_an_environment_that_cannot_be_sent_plays_here(capsys):
    lock = threading.Lock()

    def locked() -> gymnasium.Env:
        with lock:
            return pendulum()

    said = []
    evaluator = Evaluator(environments.maker_of(tasks.given(locked)), 1, 1, 2, said.append)
    assert len(said) == 1
    assert said[0].startswith("locked() cannot be sent to a process that plays episodes (")
    assert said[0].endswith("; evaluation goes on in this one")
    assert len(evaluator(lambda seen: np.zeros((1, 1, 1)), [0], 0)) == 1
    evaluator.close()


def test_a_function_of_a_module_has_a_name_that_finds_it(tmp_path, monkeypatch):
    (tmp_path / "my_carts.py").write_text(
        "import gymnasium\ndef cart():\n    return gymnasium.make('InvertedPendulum-v5')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = tasks.find("my_carts:cart()")
    assert (task.name, task.family, task.horizon) == ("my_carts:cart()", "gym", 1000)
    assert tasks.given(sys.modules["my_carts"].cart).name == "my_carts:cart()"
    with pytest.raises(Refused, match="my_carts was imported and has no function waggon"):
        tasks.find("my_carts:waggon()")


def test_a_data_set_that_no_reader_counted_is_refused(asked):
    given = rows(1)
    bare = Dataset(given["observations"], given["actions"], given["rewards"], given["terminals"], given["timeouts"],
                   given["observations"], given["terminals"], "mine")  # fmt: skip
    with pytest.raises(Refused, match="mine is a Dataset that no reader made"):
        train(RLPD, dataset=bare)
    with pytest.raises(Refused, match="no terminals in it"):
        interactive.prepared(None, {"observations": [[1.0]], "actions": [[1.0]], "rewards": [1.0]}).data(
            tasks.find("InvertedPendulum-v5")
        )


def test_the_policy_is_loaded_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "common.policies", types.SimpleNamespace(load=lambda folder, run: (folder, run)))
    (tmp_path / "config.json").write_text(json.dumps({"algorithm": "rlpd", "run": {"env": "x"}}))
    from common.trained import Trained

    assert Trained(tmp_path, {}).policy(2) == (tmp_path, 2)
    assert Trained(tmp_path, None).scores.shape == (0,)


def test_columns_are_counts_numbers_or_texts(tmp_path):
    (tmp_path / "t.csv").write_text("step,loss,point\n1,,a\n2,0.5,b\n3,0.2")  # the last line is not whole
    found = columns(tmp_path / "t.csv")
    assert (found["step"].tolist(), found["point"].tolist()) == ([1, 2], ["a", "b"])
    assert np.isnan(found["loss"][0])
    assert found["loss"][1] == 0.5
