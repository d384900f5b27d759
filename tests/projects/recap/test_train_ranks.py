"""Two ranks train on an example dataset as one does: they share the batch, and what they measure is of both."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reference.ranks import run_ranks
from tml.core.config import parse_config, to_yaml
from tml.data.config import LogConfig, published_tasks
from tml.data.examples import Schema
from tml.data.log import open_log
from tml.data.reader import ExampleReader
from tml.features.build import build_examples
from tml.features.config import FeaturesConfig, SplitConfig
from tml.projects.home.recap.data import RankerInputs
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.optimizer import build_optimizer
from tml.projects.home.recap.train import RecapConfig, _base_rates, _evaluator, default_optimizer

STEPS, ROWS = 6, 32


@pytest.mark.slow
def test_two_ranks_train_on_the_batch_of_one(simulated: LogConfig, tmp_path: Path) -> None:
    examples = tmp_path / "examples"
    with open_log(simulated) as log:
        build_examples(log, published_tasks(), FeaturesConfig(), SplitConfig(), examples, seed=0, fingerprint="")
    schema = Schema.read(examples)
    tower = {"mlp_config": {"layer_sizes": [4, 1]}}
    tree = {
        "batch_size": ROWS,
        "model": {
            "tasks": dict.fromkeys(schema.tasks, tower),
            "backbone": {"mlp_config": {"layer_sizes": [8], "final_activation": True}},
            "featurization_config": {"log1p_abs_config": {}},
        },
        "training": {"num_steps": STEPS, "evaluate_every": STEPS},
    }
    config = parse_config(RecapConfig, tree, "test")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    program = f"""
from pathlib import Path
from tml.core.config import load_config
from tml.core.distributed import process_group
from tml.projects.home.recap.train import RecapConfig, train_recap
folder = Path({str(tmp_path)!r})
with process_group():
    train_recap(load_config(RecapConfig, folder / "config.yaml"), folder / "examples", None, folder / "run", 0, "")
"""
    _, silent = run_ranks(program)
    assert silent == ""

    inputs = RankerInputs(schema, {}, None, config.model)
    model = HeavyRanker(config.model, inputs.shapes(), torch.Generator().manual_seed(0))
    model.initialise_biases(_base_rates(inputs, model.conditions, examples, "stop"))
    optimizer, scheduler = build_optimizer(objective := RankerLoss(model), default_optimizer(schema.tasks, STEPS))
    readers = [
        iter(ExampleReader(examples, "train", ROWS // 2, 0, config.pool_bytes, inputs.batch, inputs.columns(), rank, 2))
        for rank in range(2)
    ]
    for _ in range(STEPS):
        parts = [next(reader) for reader in readers]
        optimizer.zero_grad()
        objective({name: torch.cat([part[name] for part in parts]) for name in parts[0]})[0].backward()
        optimizer.step()
        scheduler.step()
    found = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    measured = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    with torch.no_grad():
        expected = _evaluator(inputs, examples, "stop")(objective.eval())
    assert len(expected) > len(schema.tasks)
    for name, value in expected.items():
        assert measured[f"validation/{name}"] == pytest.approx(value, rel=1e-4), name
