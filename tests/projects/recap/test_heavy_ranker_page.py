"""Every config on the page about the Heavy Ranker is one."""

import re
from pathlib import Path

import pytest
import yaml

from tml.core.config import parse_config
from tml.projects.home.recap.config import ModelConfig

PAGE = Path(__file__).parents[3] / "docs/heavy-ranker.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_config_on_the_page_is_one(block: str) -> None:
    parse_config(ModelConfig, yaml.safe_load(block), PAGE.name)


def test_the_fields_that_the_page_names_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(BLOCKS) == 4
    assert set(ModelConfig.model_fields) <= set(re.findall(r"\w+", text))
