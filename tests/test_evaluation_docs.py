"""The commands of docs/evaluation.md exist, and the options that they name."""

import re
from pathlib import Path

from typer.testing import CliRunner

from tml.cli import app
from tml.projects.home.recap.evaluation_config import EvaluationConfig

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"


def test_the_commands_and_fields_of_the_page_exist() -> None:
    text = DOCS.read_text()
    commands = re.findall(r"tml (recap [a-z-]+)([^`\n#]*)", text)
    assert {verb for verb, _ in commands} == {"recap evaluate", "recap what-if", "recap baselines"}
    for verb, arguments in commands:
        shown = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "200"}).stdout
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in shown, (verb, option)
    fields = {name for name in re.findall(r"evaluation\.(\w+)", text) if name not in ("json", "md")}
    assert fields <= set(EvaluationConfig.model_fields), fields
