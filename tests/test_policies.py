"""What is taken from an agent is its policy: in NumPy, in JAX, in ONNX, and in a process that has NumPy alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exporting import ACTION, agent_for, content_of, draws, exported_of, faces, name_of, observations

from benchmarks.reporting import results
from benchmarks.studies import policies as study
from benchmarks.studies.policies import CASES
from common import environments, export, exported, policies, policyfiles, tasks
from common.errors import Refused
from common.exported import Draws, Exported, Unusable
from common.policies import Policy
from common.portable import Portable

TOLERANCE = 1e-5
ALL = pytest.mark.parametrize("case", CASES, ids=name_of)


def differ(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; of choices, one in fifty may be another where two are as good up to rounding."""
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    return float(np.sort(np.abs(found - expected).max(-1))[: -max(1, len(found) // 50)].max())


@ALL
def test_numpy_acts_as_the_agent_does(case):
    agent, rows = agent_for(case), observations(60)
    expected = np.asarray(agent.act(jnp.asarray(rows)))
    assert expected.std() > 0.05
    assert differ(exported_of(case)(rows), expected) < TOLERANCE


@ALL
def test_jax_acts_as_numpy_does_also_with_a_seed(case):
    ours, numpy, rows = exported_of(case, Policy), exported_of(case), observations(60)
    for seed in (None, 0, 2**32 - 1):
        assert differ(ours(rows, seed), numpy(rows, seed)) < TOLERANCE


@ALL
def test_a_seed_draws_from_a_policy_that_has_more_than_one_action(case):
    whole, rows = exported_of(case), observations(20)

    def policy(rows, seed=None):
        whole.reset()
        return whole(rows, seed)

    first, second, again = policy(rows, 1), policy(rows, 2), policy(rows, 1)
    np.testing.assert_array_equal(first, again)
    one_action = "bail", "decision_transformer", "discrete_bcq", "rebrac", "redq_adaptive_bc", "td3_bc"
    knows_one = case[0] in one_action or case == ("bc", {})
    assert (np.abs(first - second).max() == 0) == knows_one
    assert (np.abs(first - policy(rows)).max() == 0) == knows_one
    assert np.abs(first).max() <= 1
    np.testing.assert_allclose(policy(rows[3], 1), first[3], atol=1e-6)  # each has numbers of its own


@ALL
def test_onnx_acts_as_the_agent_does_or_is_refused(case):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx` and onnxruntime")
    if draws(case) or exported_of(case).remembers:
        with pytest.raises(Refused, match=r"draws its actions.*--npz|remembers its episode.*--npz"):
            export.graph(exported_of(case))
        return
    interface = faces(first=4) if case[0] == "discrete_bcq" else faces()
    policy = Exported("memory.npz", content_of(agent_for(case), interface))
    session = runtime.InferenceSession(export.graph(policy).SerializeToString())
    rows = observations(60)
    (found,) = session.run(None, {"observation": rows})
    if case[0] == "discrete_bcq":
        assert (found == policy(rows)).mean() > 0.95
        assert set(found) <= {4, 5, 6}
    else:
        assert differ(found, np.asarray(agent_for(case).act(jnp.asarray(rows)))) < TOLERANCE
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["provenance"])["task"] == "Line-v0"


def test_a_graph_gives_actions_in_the_environments_units():
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx` and onnxruntime")
    interface = faces()
    interface["action"] |= {"low": [-2.0, 1.0, 0.5], "high": [3.0, 1.5, 0.5]}
    policy = Exported("memory.npz", content_of(agent_for(("rlpd", {})), interface))
    session = runtime.InferenceSession(export.graph(policy).SerializeToString())
    rows = observations(60)
    np.testing.assert_allclose(session.run(None, {"observation": rows})[0], policy(rows), atol=1e-5)
    assert np.ptp(policy(rows), axis=0)[2] == 0


def test_the_study_tells_differences_from_other_choices(tmp_path, monkeypatch, capsys):
    expected = np.zeros((4, 2))
    found = np.array([[0, 1e-6], [0, 0], [-2e-6, 0], [0.5, 0]])
    assert study.difference(found, expected, chooses=True) == (2e-6, 1)
    assert study.difference(found, expected, chooses=False) == (0.5, 0)
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx` and onnxruntime")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(study, "CASES", [("discrete_bcq", {}), ("bear", {})])
    study.main(study.Study(observations=50, width=16))
    rows = (tmp_path / "policies.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["discrete_bcq.py", "bear.py"]
    assert rows[1].split(",")[4] == "0.0e+00"
    assert rows[2].endswith(",draws,")


# ---------------------------------------------------------------- the numbers that are drawn


def test_normal_numbers_are_those_of_jax():
    rows = observations(7)
    for seed in (None, 3):
        ours = Draws(rows, seed, np).normal(11, 4)
        for row, mine in zip(rows, ours, strict=True):
            bits = jax.lax.bitcast_convert_type(jnp.asarray(row), jnp.uint32).sum()
            key = jax.random.fold_in(jax.random.key(0), bits)
            key = key if seed is None else jax.random.fold_in(key, seed)
            np.testing.assert_allclose(mine, jax.random.normal(key, (11, 4)), atol=2e-6)


def test_drawn_numbers_have_their_distributions():
    draws = Draws(observations(200), 5, np)
    normal, gumbel = draws.normal(500), draws.gumbel(500)
    assert (abs(normal.mean()), abs(normal.std() - 1)) < (0.01, 0.01)
    assert (abs(gumbel.mean() - np.euler_gamma), abs(gumbel.std() - np.pi / 6**0.5)) < (0.015, 0.015)
    assert abs(np.corrcoef(normal.ravel(), gumbel.ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("case", [("rlpd", {}), ("cql", {}), ("brac", {})], ids=name_of)
def test_a_seed_draws_with_the_policys_deviation(case):
    agent, rows = agent_for(case), np.repeat(observations(1), 4000, axis=0)
    rows[:, 0] += np.linspace(0, 1e-3, 4000, dtype=np.float32)  # else all would draw the same
    seen = agent.normal(rows[:1]) if hasattr(agent, "normal") else rows[:1]
    network = agent.actor(jnp.asarray(seen))
    action = Exported("memory.npz", content_of(agent))(rows, 1)
    spread = np.arctanh(action.clip(-0.999999, 0.999999))
    median, std = np.median(spread, axis=0), np.diff(np.quantile(spread, (0.25, 0.75), axis=0), axis=0)[0] / 1.349
    expected = np.broadcast_to(np.exp(network.log_std), (1, ACTION))[0]
    narrow = np.abs(network.mean[0]) + 0.7 * expected < 5  # single precision tells the quartiles from 1
    assert narrow.any()
    np.testing.assert_allclose(std[narrow], expected[narrow], rtol=0.1)
    np.testing.assert_allclose(median[narrow], np.asarray(network.mean[0])[narrow], atol=0.2)


# ---------------------------------------------------------------- files


def written(path: Path, case=("rlpd", {}), **keywords) -> Path:
    policyfiles.save(path, *content_of(agent_for(case, **keywords)))
    return path


def test_a_file_is_read_where_there_is_numpy_alone(tmp_path):
    """All kinds, in a process without site-packages."""
    robot = tmp_path / "robot"
    robot.mkdir()
    shutil.copy(exported.__file__, robot)
    for package in (Path(np.__file__).parent, Path(np.__file__).parents[1] / "numpy.libs"):
        if package.exists():
            (robot / package.name).symlink_to(package)
    rows = observations(8)
    np.save(robot / "rows.npy", rows)
    for number, case in enumerate(CASES):
        written(robot / f"{number}.npz", case)
    script = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import numpy as np\n"
        "from exported import Exported\n"
        "rows = np.load(sys.argv[1] + '/rows.npy')\n"
        "found = [Exported(f'{sys.argv[1]}/{k}.npz')(rows, 3) for k in range(int(sys.argv[2]))]\n"
        "np.save(sys.argv[1] + '/found.npy', np.stack(found))\n"
        "foreign = [n for n in ('jax', 'flax', 'common', 'gymnasium') if n in sys.modules]\n"
        "print(foreign)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script, str(robot), str(len(CASES))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    for case, found in zip(CASES, np.load(robot / "found.npy"), strict=True):
        np.testing.assert_array_equal(found, exported_of(case)(rows, 3))


def test_a_file_is_small_without_pickles_and_the_same_twice(tmp_path):
    path = written(tmp_path / "0.npz")
    assert path.read_bytes() == written(tmp_path / "1.npz").read_bytes()
    policyfiles.save(
        tmp_path / "large.npz", *content_of(agent_for(("rlpd", {}), (256, 256), sizes=(29, 8)), faces(29, 8))
    )
    assert (tmp_path / "large.npz").stat().st_size < 400_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.npz", "1.npz", "large.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} == {"f", "u"}
    assert Exported(path).about["provenance"]["algorithm"] == "rlpd"


def refusal(path: Path, rows: np.ndarray, expected: np.ndarray) -> str | None:
    """What is said of a damaged file; None where the damage is in what nothing reads."""
    try:
        np.testing.assert_array_equal(Exported(path)(rows), expected)
    except Unusable as error:
        return str(error)
    return None


def test_a_damaged_file_is_named_in_one_line(tmp_path):
    whole = written(tmp_path / "0.npz", width=(4,)).read_bytes()
    expected, rows = Exported(tmp_path / "0.npz")(observations(3)), observations(3)
    rng, refused = np.random.default_rng(0), 0
    for number in range(400):
        content = bytearray(whole)
        if number % 4 == 0:
            content = content[: rng.integers(len(content))]
        else:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (tmp_path / "0.npz").write_bytes(content)
        said = refusal(tmp_path / "0.npz", rows, expected)
        refused += said is not None
        assert said is None or (str(tmp_path / "0.npz") in said and "\n" not in said)
    assert refused > 300
    with pytest.raises(Refused, match="not a policy file, or damaged"):
        policies.load(tmp_path / "0.npz")
    for path in (tmp_path / "nowhere.npz", tmp_path):
        with pytest.raises(Unusable, match="not a policy file, or damaged"):
            Exported(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "of format 2, this exported.py reads 1"),
        ({"architecture": {"kind": "oracle", "networks": {}, "numbers": {}}}, "not a whole policy file"),
        ({"action": {"size": 4, "first": 0}}, "its layers do not fit its actions"),
        ({"observation": {}}, "not a whole policy file"),
    ],
)
def test_what_cannot_be_a_policy_is_refused(change, said, tmp_path):
    about, arrays = content_of(agent_for(("rlpd", {})))
    policyfiles.save(tmp_path / "0.npz", about | change, arrays)
    with pytest.raises(Unusable, match=said):
        Exported(tmp_path / "0.npz")


def test_a_run_that_has_diverged_has_a_file_that_says_so(tmp_path):
    agent = agent_for(("rlpd", {}))
    agent = agent.replace(actor=jax.tree.map(lambda x: x * np.float32(np.nan), agent.actor))
    policyfiles.save(tmp_path / "0.npz", *content_of(agent))
    with pytest.raises(Unusable, match=r"0\.npz: has weights that are not finite: the run has diverged"):
        Exported(tmp_path / "0.npz")


# ---------------------------------------------------------------- observations and actions


@pytest.mark.parametrize("kind", [Exported, Policy])
def test_what_is_no_observation_is_said_in_one_line(kind):
    policy = exported_of(("rlpd", {}), kind)
    assert policy(np.zeros(5)).shape == (3,)
    assert policy([0, 1, 2, 3, 4]).shape == (3,)
    assert policy(np.zeros((7, 5))).shape == (7, 3)
    for wrong in (np.zeros(4), np.zeros((5, 4)), np.zeros((1, 2, 5)), 3.0, [[1, 2], [3]], "north", None, {"a": 1}):
        with pytest.raises(
            Unusable, match=r"memory\.npz: an observation must be a vector \[5\], or several \[n, 5\]"
        ) as e:
            policy(wrong)
        assert "\n" not in str(e.value)
    with pytest.raises(Unusable, match=r"the observation is nan at \[1, 2\]"):
        policy(np.where(np.arange(10).reshape(2, 5) == 7, np.nan, 0.0))
    for seed in (-1, 2**32):
        with pytest.raises(Unusable, match=r"seed must lie in 0 \.\.\. 2\^32 - 1"):
            policy(np.zeros(5), seed)


def test_a_dictionary_is_flattened_in_its_order():
    parts = {"keys": ["observation", "desired_goal"], "sizes": [3, 2], "origin": None}
    policy = Exported("memory.npz", content_of(agent_for(("rlpd", {})), faces(**parts)))
    rows = observations(6)
    several = {"desired_goal": rows[:, 3:], "observation": rows[:, :3], "achieved_goal": rows}
    one = {key: part[2] for key, part in several.items()}
    np.testing.assert_array_equal(policy(several), policy(rows))
    np.testing.assert_allclose(policy(one), policy(rows)[2], atol=1e-6)
    with pytest.raises(
        Unusable, match=r"a dictionary of observation \[3\], desired_goal \[2\].*'desired_goal' is missing"
    ):
        policy({"observation": rows[0, :3]})
    with pytest.raises(Unusable, match="'observation' has shape"):
        policy(one | {"observation": rows[0]})


@pytest.mark.parametrize(
    ("name", "size"),
    [("antmaze-umaze", None), ("pointmaze-umaze", None), ("pointmaze-umaze", 6), ("cartpole-mixed", None),
     ("Pendulum-v1", None), ("pen-binary", None)],
)  # fmt: skip
def test_observations_and_actions_are_the_environments_own(name, size, monkeypatch):
    """What a policy makes of a raw observation is what environments.py makes of it, and its action does the same."""
    environment = environments.make(tasks.find(name), size)
    interface = policyfiles.interface(environment)
    sizes = environment.observation_size, environment.action_size
    case = ("discrete_bcq", {}) if environment.numbers is not None else ("rlpd", {})
    policy = Exported("memory.npz", content_of(agent_for(case, sizes=sizes), interface))
    assert (policy.observation_size, policy.action_size) == sizes

    seen = []
    flat = environment._flat
    monkeypatch.setattr(environment, "_flat", lambda raw: seen.append(raw) or flat(raw))
    first = environment.reset(3)
    np.testing.assert_array_equal(policy.rows(seen[0])[0][0], first)
    taken = []
    monkeypatch.setattr(
        environment.raw, "step", lambda action: taken.append(action) or (seen[0], 0.0, False, False, {"success": False})
    )
    environment.step(policy.act(first[None])[0])
    found = policy(seen[0])
    np.testing.assert_array_equal(found, taken[0])
    assert environment.raw.action_space.contains(np.int64(found) if case[0] == "discrete_bcq" else found)
    environment.close()


# ---------------------------------------------------------------- what an algorithm says of itself


class Sayings:
    """Of a run directory as little as PolicyFiles needs."""

    def __init__(self):
        self.said = []
        environment = environments.make(tasks.find("Pendulum-v1"))
        self.files = policyfiles.PolicyFiles(None, environment, None, self.said.append)
        environment.close()

    def check(self, agent, actions=None):
        rows = observations(8, 3)
        stacked = jax.tree.map(lambda x: np.asarray(x)[None], agent)
        actions = np.asarray(agent.act(jnp.asarray(rows))) if actions is None else actions
        self.files.check(stacked, rows[None], actions[None])
        return self.files.problem


def test_what_an_agent_says_of_its_policy_is_held_against_what_it_does():
    agent = agent_for(("rlpd", {}), sizes=(3, 1))
    assert Sayings().check(agent) is None

    class Bolder(type(agent)):  # a copy of the file, with a change in one of two places
        def act(self, observation):
            return -super().act(observation)

    bolder = Bolder(**vars(agent))
    sayings = Sayings()
    assert sayings.check(bolder).startswith("Bolder.portable is not what its act does (actions differ by")
    assert sayings.said == [f"no policies/: {sayings.files.problem}"]
    sayings.files.write(None)  # nothing

    # What has diverged says nothing of it.
    assert Sayings().check(agent, np.full((8, 1), np.nan, np.float32)) is None


def test_an_agent_that_says_nothing_of_its_policy_is_trained_without_files():
    agent = agent_for(("rlpd", {}), sizes=(3, 1))

    class Other(type(agent)):
        def portable(self) -> Portable:
            raise Refused("it looks things up")

    assert Sayings().check(Other(**vars(agent))) == "it looks things up"
