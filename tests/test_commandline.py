"""What a command line asks for: numbers, grids, presets, and what is refused before anything is imported to learn."""

import dataclasses

import pytest

from common import commandline, counts, helptext
from common.agent import Hyperparameters, static, traced
from common.errors import Refused

PENDULUM = ("--env", "InvertedPendulum-v5")


class Config(Hyperparameters):
    """A Config of every kind of field."""

    learning_rate: float = 3e-4  # a step size
    discount: float = 0.99  # a discount
    weight: float = traced(1.0, "[0, inf)")  # a weight
    dropout: float = static(0.0)  # a share
    hidden: tuple[int, ...] = (8, 8)  # widths
    layer_norm: bool = True  # a switch
    offline_steps: int = 1000  # steps
    online_steps: int = 0  # steps


PRESETS = {"gym": {"offline_steps": 2e3, "weight": 2}, "short": {"offline_steps": 5.0}, "odd": {"offline_steps": 1.5}}


def parse(*arguments: str, presets=PRESETS) -> commandline.Request:
    return commandline.parse([*PENDULUM, *arguments], "mine", "Mine.", Config, presets)


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), ("1e6", 10**6), ("1_000_000", 10**6), ("1E3", 1000), ("1.5e3", 1500), ("+2", 2), ("-1", -1), ("3.0", 3)],
)
def test_whole_numbers_are_read_as_people_write_them(text, number):
    assert counts.parsed(text) == number


@pytest.mark.parametrize("text", ["1.5", "1e-3", "nan", "inf", "1e999999999", "", "ten", "1,000", "0x10", "1e6.0"])
def test_what_is_no_whole_number_is_told_with_what_would_be(text):
    with pytest.raises(ValueError, match="is not a whole number, such as 1000000, 1_000_000 or 1e6"):
        counts.parsed(text)


def test_counts_of_every_kind_may_have_an_exponent():
    request = parse(*"--offline-steps 1e6 --hidden 1e1 6_4 --eval-every 5e4 --checkpoint-every=1e3 --seed 1e2".split())
    assert (request.config.offline_steps, request.config.hidden) == (10**6, (10, 64))
    assert (request.run.eval_every, request.run.checkpoint_every, request.run.seed) == (50_000, 1000, 100)
    assert isinstance(request.config.offline_steps, int)
    # In presets, too; what is no count stays as it is.
    assert (parse().config.offline_steps, parse().config.weight) == (2000, 2)
    assert isinstance(parse("--preset", "short").config.offline_steps, int)


def test_a_grid_has_a_run_for_every_pair_of_its_values_and_every_seed():
    request = parse(*"--grid.discount 0.9 0.99 --grid.learning-rate 1e-3 3e-4 --num-seeds 5".split())
    assert request.points() == [
        {"learning_rate": 1e-3, "discount": 0.9}, {"learning_rate": 1e-3, "discount": 0.99},
        {"learning_rate": 3e-4, "discount": 0.9}, {"learning_rate": 3e-4, "discount": 0.99},
    ]  # fmt: skip
    assert request.labels()[1] == "learning_rate=0.001, discount=0.99"
    assert request.number_of_runs == 20


@pytest.mark.parametrize(
    "arguments", [("--offline-steps", "1.5"), ("--eval-every", "1e-1"), ("--eval-workers", "0.5"), ("--width", "two")]
)
def test_a_count_that_is_not_whole_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert "is not a whole number" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--grid.discount", "--grid.discount: has no values; name some"),
        ("--grid.discount --seed 1", "--grid.discount: has no values"),
        ("--grid.discount=", "--grid.discount: has no values"),
        ("--grid.learning_rate -h1", "--grid.learning-rate: has no values"),
        ("--grid.discount 0.9 .90", "--grid.discount: holds 0.9 twice; leave one out"),
        ("--grid.learning-rate 1e-3 3e-4 0.001", "--grid.learning-rate: holds 0.001 twice"),
        ("--grid.discount 0.9 0.900000001", "--grid.discount: holds 0.9 and 0.900000001, which are one in single prec"),
        ("--grid.weight 0 -0.0", "--grid.weight: holds -0.0 twice"),
        ("--grid.discount 0.9 --grid.discount 0.99", "--grid.discount: stands there twice; name all its values"),
        ("--grid.learning-rate 0.1 --grid.learning_rate=0.2", "--grid.learning-rate: stands there twice"),
        ("--discount 0.5 --grid.discount 0.9", "--discount beside --grid.discount: the grid's values would replace it"),
        ("--learning_rate=1 --grid.learning-rate 0.9", "--learning-rate beside --grid.learning-rate"),
        ("--grid.discount 0.9 1.1", "--discount must lie in [0, 1], not 1.1"),
        ("--grid.discount nan", "--discount must be finite, not nan"),
        ("--grid.learning-rate 0 1e-3", "--learning-rate must be above 0, not 0.0"),
        ("--grid.weight -1e-3 1", "--weight must be at least 0, not -0.001"),
        ("--grid.dropout 0.1 0.2", "dropout is a shape, count or choice"),
        ("--grid.wait 0.1", "did you mean --grid.weight?"),
        ("--learning-rate 0", "--learning-rate must be above 0, not 0.0"),
        ("--learning-rate 1e-60", "--learning-rate must be above 0 in single precision, not 1e-60"),
        ("--learning-rate inf", "--learning-rate must be finite, not inf"),
        ("--weight 1e39", "--weight must be finite in single precision, not 1e+39"),
        ("--dropout 0.9999999999", "--dropout must lie in [0, 1) in single precision, not 0.9999999999"),
        ("--offline-steps 1e10", "--offline-steps must be below 2^31, not 10000000000"),
        ("--offline-steps 0", "--offline-steps must be at least 1, not 0"),
        ("--online-steps -5", "--online-steps must be at least 0, not -5"),
        ("--hidden", "--hidden must hold at least one number"),
        ("--hidden 8 0", "--hidden must be at least 1, not 0"),
        ("--preset odd", "--offline-steps must be a whole number, not 1.5"),
        ("--eval-every 0", "--eval-every must be at least 1, not 0"),
        ("--seed 2147483648", "--seed must lie in"),
    ],
)
def test_numbers_that_make_no_sense_are_one_line(arguments, told):
    with pytest.raises(Refused) as refusal:
        parse(*arguments.split())
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_grid_is_the_product_of_its_values_and_its_points_have_different_names():
    request = parse("--grid.discount", "0.9999991", "0.9999992", "--grid.weight=-0", "--num-seeds", "3")
    assert request.labels() == ["discount=0.9999991, weight=-0", "discount=0.9999992, weight=-0"]
    assert request.number_of_runs == 6
    assert parse().labels() == [""]
    assert parse("--grid.learning-rate", "1e-3", "100000", "1234567").labels() == [
        "learning_rate=0.001", "learning_rate=100000", "learning_rate=1234567.0",
    ]  # fmt: skip


def test_help_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as ended:
        commandline.parse(["--help"], "mine", "Mine,\nin lines\n    of its own.", Config, PRESETS)
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith("Mine,\nin lines\n    of its own.\n")
    assert sum(line.startswith("  python algorithms/mine.py") for line in said.splitlines()) == 5
    for words in ("pointmaze-{umaze,medium,large}", "--preset short", "below are the values of pointmaze-large"):
        assert words in said
    assert "--preset gym" not in said
    assert "acrobot" not in said  # its actions are of another kind
    assert max(map(len, helptext.helptext("mine", "", Config, PRESETS, "hopper-medium", None).splitlines())) <= 120


def test_the_values_in_help_are_those_of_the_task_and_preset_asked_for(capsys):
    with pytest.raises(SystemExit):
        parse("--help", "--preset", "short")
    said = capsys.readouterr().out
    assert "The defaults below are the values of InvertedPendulum-v5 with --preset short." in said
    flat = " ".join(said.replace("│", " ").split())
    assert "--offline-steps INT steps (default: 5)" in flat
    assert "(default: 2)" in flat  # the family's weight


def test_examples_of_help_are_understood():
    commands = list(helptext.examples("mine", Config, "pointmaze-large").values())
    assert commands.pop(4).endswith(" --env my_module:MyEnv-v0 --dataset my_data.npz")
    assert commandline.resumed(commands.pop(2).split()[2:]).folder.name == "mine"
    asked = [commandline.parse(command.split()[2:], "mine", "", Config, {}) for command in commands]
    assert [request.run.env for request in asked] == ["pointmaze-large", "pointmaze-umaze", "pointmaze-large"]
    assert [request.number_of_runs for request in asked] == [1, 5, 6]


@dataclasses.dataclass(frozen=True)
class Own:
    """Any other command's."""

    size: int | None = None


def test_other_commands_read_counts_alike():
    assert counts.cli(Own, args=["--size", "1e5"]).size == 100_000


@pytest.mark.parametrize("how", [("--dataset", "npz:a.npz"), ("--dataset=npz:a.npz",)])
def test_named_data_have_presets_of_their_own_under_named_ones_and_flags(how):
    known = PRESETS | {"gym/--dataset": {"weight": 3, "dropout": 0.5}, "mine": {"weight": 4}}

    def values(*arguments):
        config = parse(*arguments, presets=known).config
        return config.offline_steps, config.weight, config.dropout

    assert values() == (2000, 2, 0.0)
    assert values(*how) == (2000, 3, 0.5)
    assert values(*how, "--preset", "mine") == (2000, 4, 0.5)
    assert values(*how, "--weight", "1", "--dropout", "0") == (2000, 1, 0.0)
    assert helptext.named(known) == ["mine", "odd", "short"]


def test_rlpd_mixes_half_where_data_are_named():
    from algorithms.rlpd import PRESETS as RLPD
    from algorithms.rlpd import Config as Own

    def ratio(*arguments):
        return commandline.parse([*PENDULUM, *arguments], "rlpd", "", Own, RLPD).config.offline_ratio

    named = "--dataset", "npz:a.npz"
    assert [ratio(), ratio(*named), ratio(*named, "--offline-ratio", "0.25"), ratio(*named, "--preset", "sac")] == [
        0.0, 0.5, 0.25, 0.0,
    ]  # fmt: skip
