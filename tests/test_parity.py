"""What the checks against the authors' code share, without any of it: errors, draws, refusals."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.reporting import results
from benchmarks.studies.parity import __main__ as parity
from benchmarks.studies.parity import harness as h
from common import layers
from common.errors import Refused

ROOT = Path(__file__).parents[1]


def tree(kernel, bias, scale=None):
    made = {"MLP_0": {"Dense_0": {"kernel": np.array(kernel), "bias": np.array(bias)}}}
    if scale is not None:
        made["MLP_0"]["LayerNormReLU_0"] = {"scale": np.array(scale)}
    return {"params": made}


def test_an_error_is_that_of_the_worst_leaf():
    target = tree([[2.0, -4.0]], [100.0])
    assert h.error(target, target) == 0
    assert h.error(tree([[2.0, -4.0]], [101.0]), target) == pytest.approx(0.01)
    # Of the values 1 / 4; of the change 1 / 2, as the kernel has moved by two at most.
    ours, start = tree([[1.0, -4.0]], [101.0]), tree([[0.0, -4.0]], [50.0])
    assert h.error(ours, target) == pytest.approx(1 / 4)
    assert h.error(ours, target, start) == pytest.approx(1 / 2)
    assert np.isnan(h.error(tree([[2.0, np.nan]], [100.0]), target))
    with pytest.raises(AssertionError):
        h.error(tree([[2.0, -4.0]], [100.0], [1.0]), target)
    with pytest.raises(AssertionError):
        h.error(tree([2.0, -4.0], [100.0]), target)


def test_a_distance_is_of_all_leaves_relative_to_the_movement():
    start, target = tree([[1.0, 0.0]], [-2.0]), tree([[4.0, 0.0]], [2.0])
    assert h.distance(tree([[4.0, 0.0]], [2.5]), target, start) == pytest.approx(0.5 / 5)
    assert h.distance(target, target, start) == 0
    # What theirs leaves alone, ours may not move; but theirs may have no LayerNorm parameters.
    assert h.distance(start, start, start) == 0
    assert h.distance(tree([[2.0, 0.0]], [-2.0]), start, start) == float("inf")
    with_norm = [tree([[0.0, 0.0]], [b], [s]) for b, s in ((0.0, 1.0), (4.0, 1.0), (4.0, 2.0))]
    assert h.distance(with_norm[2], with_norm[1], with_norm[0]) == 0
    assert h.error(with_norm[2], with_norm[1], with_norm[0]) == 0


def test_both_sides_read_the_same_draws():
    draws = h.Draws(3)
    first = [draws.normal((2, 3)), draws.uniform((4,)), draws.normal((2, 3)), draws.order(5), draws.keep((50,), 0.8)]
    assert not np.array_equal(first[0], first[2])
    draws.rewind()
    # In another order of kinds, and with an axis of one: each kind has a sequence of its own.
    np.testing.assert_array_equal(draws.order(5), first[3])
    np.testing.assert_array_equal(draws.normal((2, 1, 3))[:, 0], first[0])
    np.testing.assert_array_equal(draws.normal((2, 3)), first[2])
    np.testing.assert_array_equal(draws.uniform((4,)), first[1])
    assert sorted(first[3]) == [0, 1, 2, 3, 4]
    assert np.abs(first[1]).max() < 1
    assert 0.5 < first[4].mean() < 1
    assert not np.array_equal(h.Draws(4).normal((2, 3)), first[0])
    # The order itself is fixed: other numbers would be another comparison.
    assert [int(x) for x in h.Draws().order(8)] == [4, 3, 0, 2, 5, 6, 7, 1]
    np.testing.assert_allclose(h.Draws().normal((2,)), [-0.01871804, -0.50813672], rtol=1e-6)


def test_random_functions_take_the_draws_and_are_given_back():
    key, before = jax.random.key(0), jax.random.normal(jax.random.key(0), (3,))
    draws = h.Draws()
    with h.fixed(draws):
        once = jax.random.normal(key, (2, 4)), jax.random.normal(key, (2, 4))
        uniform = jax.random.uniform(key, (100,), minval=2.0, maxval=3.0)
        chosen = jax.random.choice(key, 10, (4,), replace=False)
        # As tensorflow-probability asks: [action, batch] holds the numbers of [batch, action].
        turned = jax.random.normal(key, (h.ACTION, 7))
    with h.fixed(draws):
        jax.random.normal(jax.random.key(1), (2, 4)), jax.random.normal(key, (2, 4))
        np.testing.assert_array_equal(jax.random.normal(key, (7, h.ACTION)), turned.T)
    draws.rewind()
    for x in once:
        np.testing.assert_allclose(x, draws.normal((2, 4)), rtol=1e-6)
    assert 2 <= uniform.min() < uniform.max() < 3
    assert len(set(chosen.tolist())) == 4
    np.testing.assert_array_equal(jax.random.normal(key, (3,)), before)


def test_bare_norms_are_pytorchs_and_are_given_back():
    x = np.array([[0.0, 1e-3]], np.float32)
    before = layers._moments(x)[1]
    with h.bare_norms():
        np.testing.assert_allclose(layers._moments(x)[1], (0.25e-6 + 1e-5) ** -0.5, rtol=1e-5)
    np.testing.assert_array_equal(layers._moments(x)[1], before)
    np.testing.assert_allclose(before, (0.25e-6 + 1e-6) ** -0.5, rtol=1e-5)


def test_modules_of_a_checkout_do_not_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_OUT", str(tmp_path / "out"))
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer" / "common.py").write_text("import helpers\nNAME = helpers.NAME\n")
    (tmp_path / "peer" / "helpers.py").write_text("NAME = 'theirs'\n")
    monkeypatch.setattr(h, "THEIRS", tmp_path)
    path, ours = list(sys.path), sys.modules["common"]
    module = h.theirs("peer", "common")
    assert module.NAME == "theirs"
    assert (sys.path, sys.modules["common"], "helpers" in sys.modules) == (path, ours, False)
    assert json.loads((tmp_path / "out").read_text()) == {"peer": "peer"}


def test_a_peer_that_is_not_there_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(h, "THEIRS", tmp_path)
    monkeypatch.setenv("PARITY_OUT", str(tmp_path / "out"))
    done = []
    h.each(lambda: h.theirs("peer/part", "module"), lambda: done.append(True))
    assert done == [True]
    assert json.loads((tmp_path / "out").read_text()) == {"absent": "peer"}
    assert capsys.readouterr().out == f"peer: not in {tmp_path}, left out\n"
    with pytest.raises(SystemExit) as ended:
        h.checkout("peer")
    assert ended.value.code == parity.ABSENT


LOSS, MOVED = 1.5, 1e-9


def recorded(out: Path, monkeypatch) -> list[dict]:
    """What a check records: a loss, parameters after 1 and 5 updates, and a case that differs."""
    monkeypatch.setenv("PARITY_OUT", str(out))
    table, start, target = h.Table("case"), tree([[0.0, 0.0]], [0.0]), tree([[3.0, 0.0]], [4.0])
    table.scalar("loss", 2 * LOSS, 2.0)
    near = tree([[3.0, 0.0]], [4.0 + 5 * MOVED])
    table.changes([{"actor": target}, {"actor": near}], [{"actor": target}] * 2, {"actor": start}, at=(1, 2))
    table.row("words", "equal")
    h.Table("another", "in its own way").change("actor after 2 updates", tree([[3.0, 0.0]], [6.0]), target, start)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_become_a_line_per_case(tmp_path, monkeypatch):
    rows = [parity.row_of("own", line) for line in recorded(tmp_path / "out", monkeypatch)]
    assert [row["kind"] for row in rows] == ["loss", "parameters", "parameters", "other", "parameters"]
    assert [row["updates"] for row in rows] == [None, 1, 2, None, 2]
    assert (rows[3]["error"], rows[3]["note"]) == (None, "equal")
    one, other = parity.cases(rows)
    assert (one["losses"], one["first_updates"], one["first_change"]) == (LOSS - 1, 1, 0.0)
    assert (one["last_updates"], one["other"]) == (2, None)
    assert one["last_values"] == pytest.approx(5 * MOVED / 4)
    assert one["last_change"] == pytest.approx(MOVED)
    assert other["last_change"] == pytest.approx(2 / 5)
    assert parity.suspicious([one, other]) == []
    for wrong in (1e-5, float("nan"), float("inf")):
        assert np.array_equal(parity.cases([rows[2] | {"change": wrong}, rows[1]])[0]["last_change"], wrong, True)
        assert parity.suspicious([one | {"last_change": wrong}, other]) == ["own, case"]
    assert parity.suspicious([other | {"differs": ""}]) == ["own, another"]


def small(monkeypatch, tmp_path, **sources):
    """The command, with these modules as its only checks."""
    package = tmp_path / "package"
    package.mkdir()
    for name, source in {"__init__": "", "harness": "", **sources}.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.setattr(parity, "HERE", package)
    monkeypatch.setattr(parity, "__package__", "package")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    for name in ("theirs", "another"):
        (tmp_path / "peers" / name).mkdir(parents=True)
    return parity.Parity(tmp_path / "peers", name="test")


RECORDING = """
import json, os
row = {"case": "c", "bits": int(os.environ["PARITY_BITS"]), "what": "actor after 1 update", "kind": "parameters",
       "value": 1e-16, "change": 1e-12, "distance": %s, "note": "", "differs": ""}
for line in ({"peer": "theirs"}, row, {"peer": "theirs"}):
    open(os.environ["PARITY_OUT"], "a").write(json.dumps(line) + "\\n")
"""


def test_a_module_dropped_into_the_folder_is_a_check(tmp_path, monkeypatch, capsys):
    gone = (
        "import json, os, sys\nopen(os.environ['PARITY_OUT'], 'a').write(json.dumps({'absent': 'rlpd'}))\nsys.exit(3)"
    )
    asked = small(monkeypatch, tmp_path, new=RECORDING % 1e-13, old=gone)
    assert parity.checks() == ["new", "old"]
    assert parity.main(asked) == 0
    said = capsys.readouterr().out
    assert f"old: rlpd is not in {tmp_path / 'peers'}, left out" in said
    assert "1.0e-13" in said
    about = json.loads((tmp_path / "results" / "test.json").read_text())
    assert about["peers"].keys() == {"theirs"}
    assert about["peer_versions"]["jax"] == jax.__version__
    assert (
        (tmp_path / "results" / "test.csv").read_text().splitlines()[1].startswith("new,c,64,parameters,actor after 1")
    )


def test_what_is_unequal_or_does_not_run_is_told(tmp_path, monkeypatch, capsys):
    asked = small(monkeypatch, tmp_path, far=RECORDING % 1e-3, broken="raise ValueError('a mistake')")
    assert parity.main(asked) == 1
    said = capsys.readouterr().out
    assert "not equal: far, c" in said
    assert "broken: does not run" in said
    assert "a mistake" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--peers", ".", "--only", "iqk"], "parity: --only iqk: there are "),
        (["--peers", "nowhere"], "parity: --peers nowhere: there is no such folder"),
        (["--peers", ".", "--jobs", "0"], "parity: --jobs must be at least 1, not 0"),
        (["--peers", ".", "--name", "a/b"], "parity: 'a/b' cannot name a result"),
        (["--peers", ".", "--peer-python", "no-such-python"], "parity: --peer-python no-such-python: cannot be start"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_refusal_is_one_line_and_status_2(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["parity", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.studies.parity", run_name="__main__", alter_sys=True)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith(told)
    assert said.count("\n") == 1


def test_a_check_without_checkouts_ends_with_their_names(tmp_path):
    """As it is run, in a process of its own; importing the harness elsewhere leaves JAX's settings alone."""
    assert not jax.config.jax_enable_x64
    environment = os.environ | {"PARITY_THEIRS": str(tmp_path), "PYTHONPATH": str(ROOT), "PARITY_OUT": ""}
    command = [sys.executable, "-m", "benchmarks.studies.parity.data"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (parity.ABSENT, f"D4RL: not in {tmp_path}, left out\n")


def test_unknown_checks_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(Refused, match="--only harness: there are awac, awr, "):
        parity.main(parity.Parity(tmp_path, only=("iql", "harness")))
