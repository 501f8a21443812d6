"""Play what was trained: episodes of its task, scored as evaluations are, watched or filmed.

    python -m common.play runs/rlpd/pointmaze-medium/20260101-120000-000000
    python -m common.play RUN --run 3 --episodes 100
    python -m common.play RUN --video film.mp4
    python -m common.play 0.npz --env antmaze-umaze --render

RUN is a run directory, one of its checkpoints/STEP, or a policy file. Without --seed the episodes begin as those of the
run's last evaluation did.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from common import counts, films, terminal
from common.errors import Refused, exiting, placed

if TYPE_CHECKING:
    from common.environments import Environment
    from common.evaluation import Outcome
    from common.exported import Exported
    from common.players import Played


@dataclasses.dataclass(frozen=True)
class Play:
    """What is played."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory, one of its checkpoints/STEP, or a policy file."""
    run: int = 0
    """Which of a directory's runs."""
    episodes: int = 10
    """How many."""
    seed: int | None = None
    """Of the episodes. Default: those of the run's last evaluation."""
    env: str | None = None
    """Task to play. Default: the one it was trained on."""
    render: bool = False
    """Show it on a display."""
    video: Path | None = None
    """Film it into this .mp4, without a display (extra: video)."""


def play(
    policy: Exported | str | Path,
    env: str | None = None,
    *,
    run: int = 0,
    episodes: int = 10,
    seed: int | None = None,
    render: bool = False,
    video: str | Path | None = None,
    heard: Callable[[Played], None] = lambda played: None,
) -> Outcome:
    """Play a policy, or what `policies.load` takes: what became of its episodes, in order.

    `env` is a task, by default the one it was trained on. Without a seed, episodes begin as in the run's last
    evaluation. `heard` is told of each as it ends. Raises Refused and EnvironmentFailed.
    """
    film = None if video is None else Path(video)
    if episodes < 1:
        raise Refused(f"--episodes must be at least 1, not {episodes}")
    if seed is not None and not 0 <= seed < 2**31:
        raise Refused(f"--seed must lie in 0 ... 2^31 - 1, not {seed}")
    if render and film is not None:
        raise Refused("--render beside --video: an environment draws for one of them; leave one out")
    if render:
        films.check_display()
    if film is not None:
        films.check(film)
        films.choose_backend()
    from common import policies  # and MuJoCo, which has now been told what to draw with
    from common.evaluation import Outcome, episode_seed
    from common.exported import Exported, Unusable

    if not isinstance(policy, Exported):
        policy = policies.load(policy, run)
    origin = policy.about["provenance"]
    first = (seed, 2, 0)
    if seed is None:
        first = origin["seed"], 1, (origin["evaluation"] or {"total_step": 0})["total_step"]
    mode = "human" if render else "rgb_array" if film else None
    played = []
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(contextlib.closing(_environment(env or origin["task"], policy, mode)))
        rate = environment.raw.metadata.get("render_fps", films.FRAMES_PER_SECOND)
        shown = None if film is None else stack.enter_context(films.Film(film, rate))
        for number in range(episodes):
            try:
                played.append(_episode(environment, policy, episode_seed(*first, number), shown))
            except Unusable as error:
                raise Refused(str(error)) from error
            heard(played[-1])
    return Outcome(*(np.array(column) for column in zip(*played, strict=True)))


def _environment(name: str, policy: Exported, mode: str | None) -> Environment:
    """A task's environment for a policy, with Gymnasium's render mode. Raises Refused if they do not fit."""
    from common import environments, policies, tasks
    from common.resuming import began_in

    folder, saved = policies.command_of(Path(policy.path))
    with contextlib.chdir(began_in(folder, saved) if saved else Path.cwd()):  # where its module and files are
        task = tasks.find(name)
        if mode and task.maker:
            raise Refused(f"{name} is made by a function, which decides what it draws; register it to show or film it")
        environment = environments.make(task, policy.observation_size if task.reaches_goal else None, None, mode)
    if mode:
        films.show_maze(environment.raw)
    if forms := policies.misfit(policy, environment):
        environment.close()
        raise Refused(f"{policy.path}: the policy sees {forms[0]}, {name} has {forms[1]}; play the task it is of")
    return environment


def _episode(environment: Environment, policy: Exported, seed: int, film: films.Film | None) -> Played:
    """One episode, and its pictures. Raises EnvironmentFailed, Refused and Unusable."""
    from common.players import Played

    observation, played, over, reward = environment.reset(seed), Played(0.0, False, 0), False, 0.0
    policy.reset()
    while not over:
        if film is not None:
            film.add(_picture(environment))
        taken = environment.step(policy.act(observation[None], reward=reward)[0])
        observation, over, reward = taken.next_observation, taken.terminated or taken.truncated, taken.reward
        played = Played(played.return_ + taken.reward, played.success or taken.success, played.length + 1)
    if film is not None:
        film.add(_picture(environment))
    return played


def _picture(environment: Environment) -> np.ndarray:
    """uint8 [height, width, 3]. Raises Refused."""
    name = environment.task.name
    try:
        picture = environment.raw.render()
    except (Exception, SystemExit) as error:  # whatever a third-party environment, or what it draws with, raises
        raise Refused(f"--video: {name} cannot be drawn: {placed(error)}") from error
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
        raise Refused(f"--video: {name} draws no pictures (its render returned {type(picture).__name__})")
    return picture


def command(asked: Play) -> None:
    """Play what is asked for, and print what becomes of it. Raises Refused."""
    if asked.video is not None:
        films.check(asked.video)
        films.choose_backend()
    from common import policies, tasks

    console = terminal.console()
    policy = policies.load(asked.path, asked.run)
    console.print(policies.described(policy))
    console.print(f"{'episode':>7}  {'return':>10}  {'success':>7}  {'steps':>6}")
    seen: list[Played] = []

    def heard(played: Played) -> None:
        seen.append(played)
        told = "" if played.success is None else "yes" if played.success else "no"
        console.print(f"{len(seen) - 1:>7}  {played.return_:>10.2f}  {told:>7}  {played.length:>6}")

    values = dataclasses.asdict(asked)
    outcome = play(policy, heard=heard, **{k: v for k, v in values.items() if k not in ("path", "run")})
    row = outcome.row(tasks.find(asked.env or policy.about["provenance"]["task"]))
    known = [f"{name} {row[name]:.2f}" for name in ("score", "success") if np.isfinite(row[name])]
    told = ", ".join([*known, f"return {row['return_mean']:.2f} +- {row['return_std']:.2f}"])
    console.print(f"{told}: mean of {asked.episodes} episode{'s' * (asked.episodes > 1)}")
    if asked.video is not None:
        console.print(f"film in {asked.video}")


def main() -> None:
    """Serve the command line."""
    exiting("common.play", lambda: command(counts.cli(Play, prog="python -m common.play", description=__doc__)))


if __name__ == "__main__":
    main()
