"""The example of the README runs as it stands."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    names = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    assert names["table"].shape == (5, 12)
    assert torch.isfinite(names["loss"])


def test_readme_pictures_exist():
    for target in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text()):
        assert (README.parent / target).is_file()
