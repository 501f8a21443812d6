"""What README says of one's own environment, followed to the letter, but for the numbers of steps."""

import importlib.util
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
FEWER = {"10000": "60", "2000": "60", "500": "30"}


def section(page: str, title: str) -> str:
    text = (ROOT / page).read_text()
    start = text.index(f"## {title}\n")
    return text[start : text.find("\n## ", start + 1)]


def block(page: str, title: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", section(page, title), re.S).group(1)


def run(words: list[str], monkeypatch) -> None:
    """A command of Python's, in this process."""
    if words[:2] == ["python", "-m"]:
        path, words = ROOT.joinpath(*words[2].split(".")), words[2:]
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    else:
        path, words = Path(words[1]) if Path(words[1]).exists() else ROOT / words[1], words[1:]
    monkeypatch.setattr(sys, "argv", [str(path), *words[1:]])
    if path.parent == Path():
        runpy.run_path(str(path), run_name="__main__")
        return
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert not left.value.code, words


def test_the_section_on_ones_own_environment_can_be_followed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_module.py").write_text(block("common/README.md", "An environment and its data", "python"))
    commands = block("README.md", "Your own environment and data", "bash").replace("\\\n", " ")
    said = []
    for line in commands.splitlines():
        for command in line.split(" && "):
            run([FEWER.get(word, word) for word in shlex.split(command, comments=True)], monkeypatch)
            said.append(capfd.readouterr().out)
    assert "transitions  4,900 of 5,000 rows" in said[1]
    assert json.loads(Path("runs/mine/summary.json").read_text())["final"][0]["return_mean"] < 0
    assert "mean of 20 episodes" in "".join(said)
    specification = importlib.util.spec_from_file_location("exported", "exported.py")
    exported = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(exported)
    action = exported.Exported("policy.npz")(np.array([0.5, 0.0], np.float32))
    assert action.shape == (1,)
    assert abs(action[0]) <= 1
