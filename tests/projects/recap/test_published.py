"""The published configuration: what is accepted, and a training on published files that does what it says."""

import copy
import json
import math
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from reference.ranks import run_ranks
from tml.cli import main
from tml.core.config import load_config, parse_config
from tml.core.errors import ConfigError, MissingStage
from tml.data.segdense import generate
from tml.data.segdense.synthetic import LABELS
from tml.metrics.binary import BinaryMetrics
from tml.projects.home.recap.config import StratifierConfig
from tml.projects.home.recap.model import HeavyRanker, RankerLoss
from tml.projects.home.recap.optimizer import build_optimizer
from tml.projects.home.recap.published import evaluate_published, train_published
from tml.projects.home.recap.published_compare import compare_published
from tml.projects.home.recap.published_config import PublishedConfig
from tml.projects.home.recap.published_data import PublishedInputs, PublishedReader, sampling_ratios
from tml.projects.home.recap.published_evaluation import ValidationSets
from tml.projects.home.recap.published_segments import discrete_element
from tml.projects.home.recap.train import load_ranker

EXAMPLE = Path(__file__).parents[3] / "examples" / "published.yaml"
TASKS = LABELS[:10]
FAVORITED, VIDEO = LABELS[0], LABELS[4]

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows in six files of three days."""
    folder = tmp_path_factory.mktemp("published") / "data"
    generate(folder, rows=600, files=6, days=3)
    return folder


@pytest.fixture
def example(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shipped configuration with a small model without batch norms, 8 steps and two sets: a tree to change."""
    monkeypatch.setenv("TML_DATA", str(data))
    monkeypatch.setenv("TML_RUNS", str(tmp_path / "runs"))
    tree = copy.deepcopy(load_config(PublishedConfig, EXAMPLE).model_dump(mode="json", exclude_unset=True))
    tower = {"mlp_config": {"layer_sizes": [8, 1]}}
    tree["model"] |= {
        "tasks": dict.fromkeys(TASKS, tower),
        "backbone": {"mlp_config": {"layer_sizes": [16], "final_activation": True}},
        "featurization_config": {"log1p_abs_config": {}},
    }
    slices = {"continuous_feature_truncation": 40, "binary_feature_truncation": 8}
    first_days = {"data_root": str(data), "start_date": "2022-10-01", "days": 2}
    own = {"global_batch_size": 20, "preprocess": {"truncate_and_slice": slices}, "examples_shuffle_buffer_size": 40}
    tree["train_data"] |= {**own, "explicit_date_inputs": first_days}
    last_day = {**tree["train_data"], "explicit_date_inputs": None, "inputs": f"{data}/2022/10/03/*.gz"}
    tree["validation_data"] = {
        "last_day": last_day,
        "seen": {**tree["train_data"], "evaluation_tasks": [VIDEO, FAVORITED], "num_files_to_keep": 2},
    }
    rates = tree["optimizer"]["multi_task_learning_rates"]
    rates["backbone_learning_rate"] = {"constant": 0.01}
    rates["tower_learning_rates"] = {task: {"constant": 0.001 * (i + 1)} for i, task in enumerate(TASKS)}
    tree["training"] = {
        "num_train_steps": 8,
        "checkpoint_every_n": 3,
        "checkpoint_max_to_keep": 2,
        "train_log_every_n": 2,
        "eval_log_every_n": 4,
        "save_dir": str(tmp_path / "run"),
    }
    # No two sections share a part of the tree that a test may change.
    return json.loads(json.dumps(tree))  # type: ignore[no-any-return]


def parse(tree: dict[str, Any], *changes: Change) -> PublishedConfig:
    tree = copy.deepcopy(tree)
    for change in changes:
        change(tree)
    return parse_config(PublishedConfig, tree, "published.yaml")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "recap" / "model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "recap" / "metrics.jsonl").read_text().splitlines()]


def test_the_published_training_does_what_it_says(example: dict[str, Any], tmp_path: Path) -> None:
    evaluation = train_published(parse(example), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written == evaluation
    assert {name: (found["examples"], list(found["tasks"])) for name, found in written["sets"].items()} == {
        "last_day": (200, list(example["train_data"]["tasks"])),
        "seen": (200, [VIDEO, FAVORITED]),
    }
    steps = [path.name for path in sorted((tmp_path / "run" / "recap" / "checkpoints").iterdir())]
    assert steps == ["step-00000006", "step-00000008"]
    assert [line["step"] for line in lines(tmp_path / "run") if "train/loss" in line] == [2, 4, 6, 8]
    evaluated = [line for line in lines(tmp_path / "run") if f"validation/last_day/auc/{VIDEO}" in line]
    assert [line["step"] for line in evaluated] == [4, 8]
    assert f"validation/seen/rce/{FAVORITED}" in evaluated[0]
    assert f"validation/seen/rce/{TASKS[1]}" not in evaluated[0]
    again = load_config(PublishedConfig, tmp_path / "run" / "config.yaml")
    assert again == parse(example)
    assert evaluate_published(again, tmp_path / "run") == evaluation
    # The same command again has nothing to do; more steps go on.
    assert train_published(again, tmp_path / "run") == evaluation
    longer = parse(example, lambda tree: tree["training"].update(num_train_steps=10))
    train_published(longer, tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run") if "train/loss" in line] == [2, 4, 6, 8, 10]
    whole = parse(example, lambda tree: tree["training"].update(num_train_steps=10))
    train_published(whole, tmp_path / "whole")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "run")[name], value)


def test_what_was_passed_over_is_told(
    example: dict[str, Any], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(data, copied)
    damaged = sorted((copied / "2022/10/01").glob("*.gz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    own = {"explicit_date_inputs": None, "inputs": f"{copied}/2022/10/01/*.gz", "on_error": "skip"}
    train_published(parse(example, lambda tree: tree["train_data"].update(own)), tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged records" in line]
    assert len(told) == 1
    assert damaged.name in told[0]


def test_a_folder_holds_one_training(example: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(MissingStage, match="no such model"):
        evaluate_published(parse(example), run)
    train_published(parse(example), run)
    with pytest.raises(ConfigError, match=r"save_dir: .*run has the checkpoints of another training \(to step 8\)"):
        train_published(parse(example, lambda tree: tree.update(seed=1)), run)
    with pytest.raises(ConfigError, match=r"num_train_steps: found 4, but .* is trained to step 8 already"):
        train_published(parse(example, lambda tree: tree["training"].update(num_train_steps=4)), run)


def test_towers_learn_their_own_label_whatever_the_order_of_tasks(example: dict[str, Any], tmp_path: Path) -> None:
    """The published towers each trained on another task's label (FACTS 5.1)."""

    def reverse(tree: dict[str, Any]) -> None:
        tree["train_data"]["tasks"] = dict(reversed(tree["train_data"]["tasks"].items()))
        rates = tree["optimizer"]["multi_task_learning_rates"]
        rates["tower_learning_rates"] = dict(reversed(rates["tower_learning_rates"].items()))

    found = train_published(parse(example), tmp_path / "one")
    other = train_published(parse(example, reverse), tmp_path / "other")
    assert found == other
    for name, value in weights(tmp_path / "one").items():
        assert torch.equal(weights(tmp_path / "other")[name], value)


def test_towers_learn(example: dict[str, Any], tmp_path: Path) -> None:
    generate(tmp_path / "more", rows=3000, files=3, days=3)

    def teach(tree: dict[str, Any]) -> None:
        tree["training"] |= {"num_train_steps": 100, "eval_log_every_n": 100}
        tree["model"]["featurization_config"] = {"double_norm_log_config": {}}
        tree["train_data"] |= {"explicit_date_inputs": None, "inputs": str(tmp_path / "more" / "2022/10/0[12]/*.gz")}
        tree["validation_data"]["last_day"]["inputs"] = str(tmp_path / "more" / "2022/10/03/*.gz")
        for data in (tree["train_data"], *tree["validation_data"].values()):
            data["global_batch_size"] = 60
            renamed = data["seg_dense_schema"]["renamed_features"]
            data["seg_dense_schema"]["renamed_features"] = {n: renamed[n] for n in ("continuous", "binary")}

    tasks = train_published(parse(example, teach), tmp_path / "run")["sets"]["last_day"]["tasks"]
    # What a logistic regression on the eight features that decide reaches is 0.77 for half the video.
    for task in (VIDEO, LABELS[1], LABELS[5]):
        assert tasks[task]["models"]["ranker"]["auc"] > 0.68, task
    assert tasks[VIDEO]["models"]["ranker"]["rce"] > 4


def test_a_killed_training_goes_on_as_if_it_had_not_been(example: dict[str, Any], tmp_path: Path) -> None:
    train_published(parse(example), tmp_path / "whole")
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(example, sort_keys=False))
    # At the begin of step 6, with a checkpoint of step 3.
    program = f"""
import os, signal
from pathlib import Path
import torch
from tml.core import training
from tml.core.config import load_config
from tml.projects.home.recap.published import train_published
from tml.projects.home.recap.published_compare import compare_published
from tml.projects.home.recap.published_config import PublishedConfig
take_step = training.take_step
def take_step_or_die(state, *arguments):
    if state.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return take_step(state, *arguments)
training.take_step = take_step_or_die
torch.set_num_threads({torch.get_num_threads()})  # another number gives other bits
train_published(load_config(PublishedConfig, Path({str(path)!r})), Path({str(tmp_path / "run")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [p.name for p in (tmp_path / "run" / "recap" / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert not (tmp_path / "run" / "recap" / "model.safetensors").exists()
    train_published(parse(example), tmp_path / "run")
    whole, resumed = (tmp_path / name / "recap" / "model.safetensors" for name in ("whole", "run"))
    assert resumed.read_bytes() == whole.read_bytes()
    assert (tmp_path / "run" / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()


def test_accumulated_batches_are_one_large_batch(example: dict[str, Any], tmp_path: Path) -> None:
    def halve(tree: dict[str, Any]) -> None:
        tree["train_data"]["global_batch_size"] = 10
        tree["training"]["gradient_accumulation"] = 2

    train_published(parse(example), tmp_path / "one")
    train_published(parse(example, halve), tmp_path / "two")
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-6)


def test_first_weights_come_from_another_training(example: dict[str, Any], tmp_path: Path) -> None:
    train_published(parse(example), tmp_path / "first")
    inputs = PublishedInputs(parse(example))
    trained = load_ranker(tmp_path / "first" / "recap" / "model.safetensors")
    (batch,) = islice(inputs.reader(parse(example).train_data), 1)
    with torch.no_grad():
        expected = RankerLoss(trained)(batch)[0].item()
    for place in ("first", "first/recap/checkpoints", "first/recap/checkpoints/step-00000008"):

        def begin(tree: dict[str, Any], place: str = place) -> None:
            tree["training"] |= {"initial_checkpoint_dir": str(tmp_path / place), "num_train_steps": 1}
            tree["training"]["train_log_every_n"] = 1

        train_published(parse(example, begin), tmp_path / "second" / place)
        assert lines(tmp_path / "second" / place)[0]["train/loss"] == pytest.approx(expected, rel=1e-6)
    begin(example, "nowhere")
    with pytest.raises(MissingStage, match=r"initial_checkpoint_dir: found no checkpoint in .*nowhere"):
        train_published(parse(example), tmp_path / "third")


def test_evaluation_reads_so_many_batches_or_until_time_is_over(
    example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_published(parse(example), tmp_path / "run")
    some = parse(example, lambda tree: tree["training"].update(num_eval_steps=3))
    evaluation = evaluate_published(some, tmp_path / "run")
    assert [(found["examples"], found["complete"]) for found in evaluation["sets"].values()] == [(60, True)] * 2
    hasty = parse(example, lambda tree: tree["training"].update(eval_timeout_in_s=1e-9))
    evaluation = evaluate_published(hasty, tmp_path / "run")
    assert [(found["examples"], found["complete"]) for found in evaluation["sets"].values()] == [(20, False)] * 2
    assert "evaluate seen: stopped after 1e-09 s and 20 examples (eval_timeout_in_s)" in capsys.readouterr().err


def test_sampling_is_corrected_once_and_to_the_rates_of_the_set(example: dict[str, Any], tmp_path: Path) -> None:
    """It was corrected in the loss and by calibration (FACTS 5.2)."""

    def sample(tree: dict[str, Any]) -> None:
        tree["train_data"]["tasks"][VIDEO] = {"pos_downsampling_rate": 0.8, "neg_downsampling_rate": 0.2}
        tree["validation_data"]["seen"]["tasks"][VIDEO] = {"neg_downsampling_rate": 0.5}

    train_published(parse(example), tmp_path / "plain")
    config = parse(example, sample)
    evaluation = train_published(config, tmp_path / "sampled")
    plain, sampled = (weights(tmp_path / name) for name in ("plain", "sampled"))
    assert all(torch.equal(plain[name], sampled[name]) for name in plain)  # the loss knows nothing of it
    ranker = load_ranker(tmp_path / "sampled" / "recap" / "model.safetensors")
    inputs = PublishedInputs(config)
    for name, ratio in (("last_day", 0.25), ("seen", 0.25 / 0.5)):
        labels, probabilities = [], []
        for batch in inputs.reader(config.validation_data[name], epochs=1):
            labels += batch[VIDEO].tolist()
            with torch.no_grad():
                probabilities += torch.sigmoid(ranker(batch)[:, TASKS.index(VIDEO)]).tolist()
        p = np.array(probabilities)
        metrics = BinaryMetrics()
        metrics.update(labels, p * ratio / (1 - p + ratio * p))
        found = evaluation["sets"][name]["tasks"][VIDEO]["models"]["ranker"]
        assert found["calibration"] == pytest.approx(metrics.compute().calibration, rel=1e-6)
        assert found["rce"] == pytest.approx(metrics.compute().rce, rel=1e-5)


def test_what_negatives_were_left_out_of_batches_is_corrected_task_by_task(example: dict[str, Any]) -> None:
    def sample(tree: dict[str, Any]) -> None:
        tree["train_data"]["preprocess"]["downsample_negatives"] = {
            "batch_multiplier": 4,
            "engagements_list": [FAVORITED],
            "num_engagements": 10,
        }

    plain, sampled = parse(example), parse(example, sample)

    def count(config: PublishedConfig) -> tuple[dict[str, list[float]], PublishedReader]:
        reader = PublishedInputs(config).reader(config.train_data, epochs=1)
        rows = {task: [0.0, 0.0] for task in TASKS}
        for batch in reader:
            for task in TASKS:
                positives = float(batch[task].sum())
                rows[task] = [rows[task][0] + positives, rows[task][1] + len(batch[task]) - positives]
        return rows, reader

    there, _ = count(plain)
    kept, reader = count(sampled)
    ratios = sampling_ratios(sampled.train_data, reader)
    assert sum(kept[FAVORITED]) < sum(there[FAVORITED]) / 3
    for task in (FAVORITED, VIDEO):
        odds_there, odds_kept = (rows[task][0] / rows[task][1] for rows in (there, kept))
        # Calibration multiplies the odds by the ratio.
        assert odds_kept * ratios[task] == pytest.approx(odds_there)
    assert ratios[FAVORITED] < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["train_data"].update(tasks=dict.fromkeys(LABELS)),
            "the config: train_data.tasks has recap.engagement.is_bookmarked, recap.engagement.is_shared, "
            "recap.engagement.is_tweet_detail_dwelled_15_sec more than model.tasks; allowed are the same tasks",
        ),
        (
            lambda tree: tree["validation_data"]["seen"]["tasks"].pop(TASKS[3]),
            f"the config: validation_data.seen.tasks lacks {TASKS[3]} of model.tasks",
        ),
        (
            lambda tree: tree["optimizer"]["multi_task_learning_rates"]["tower_learning_rates"].pop(VIDEO),
            f"the config: optimizer.multi_task_learning_rates.tower_learning_rates lacks {VIDEO} of model.tasks",
        ),
        (
            lambda tree: tree["train_data"].update(evaluation_tasks=[VIDEO, "is_liked"]),
            "train_data: evaluation_tasks: found is_liked, allowed are recap",
        ),
        (
            lambda tree: tree["train_data"].update(global_batch=128),
            "train_data.global_batch: unknown field, .*did you mean global_batch_size",
        ),
        (lambda tree: tree["training"].update(num_eval_steps=0), "training.num_eval_steps: found 0"),
        (
            lambda tree: tree["train_data"].update(inputs="*.gz"),
            "train_data: exactly one of inputs, explicit_date_inputs, explicit_datetime_inputs is allowed",
        ),
        (lambda tree: tree["model"].update(tasks=None), "the config: model.tasks: not given, but required"),
    ],
)
def test_what_does_not_fit_is_refused(example: dict[str, Any], change: Change, message: str) -> None:
    with pytest.raises(ConfigError, match=f"published.yaml: {message}"):
        parse(example, change)


def test_tensorflows_knobs_and_how_values_are_written_make_no_difference(
    example: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_otherwise(tree: dict[str, Any]) -> None:
        tree["train_data"] |= {"dataset_service_compression": "AUTO", "cache": True, "map_num_parallel_calls": "8"}
        tree["train_data"] |= {"global_batch_size": "20", "evaluation_tasks": [], "num_files_to_keep": None}
        tree["train_data"]["tasks"] = dict.fromkeys(TASKS)
        tree["validation_data"]["seen"] |= {"dataset_service_compression": 1, "repeat_files": False}
        tree["training"] |= {"num_eval_steps": "-1", "num_train_steps": "8", "initial_checkpoint_dir": None}
        tree["optimizer"]["adam"]["epsilon"] = "1e-7"

    plain = train_published(parse(example), tmp_path / "plain")
    capsys.readouterr()
    other = train_published(parse(example, write_otherwise), tmp_path / "other")
    said = capsys.readouterr().err
    names = "cache, dataset_service_compression, interleave_num_parallel_calls, map_num_parallel_calls, repeat_files"
    assert f"without effect here: {names}\n" in said
    assert said.count("without effect") == 1
    assert plain == other
    assert all(torch.equal(value, weights(tmp_path / "other")[n]) for n, value in weights(tmp_path / "plain").items())


def test_every_kind_of_input_reaches_the_model(example: dict[str, Any], tmp_path: Path) -> None:
    def widen(tree: dict[str, Any]) -> None:
        tree["model"] |= {
            "featurization_config": {"z_score_log_config": {}},
            "small_embeddings": {"tables": [{"index": 1, "num_embeddings": 100}, {"index": 7, "num_embeddings": 5}]},
            "large_embeddings": {"tables": [{"name": "author", "key": "meta.author_id", "num_embeddings": 50}]},
            "position_debias_config": {},
        }
        tree["model"]["tasks"] = {**tree["model"]["tasks"], VIDEO: {**tree["model"]["tasks"][VIDEO]}}
        tree["model"]["tasks"][VIDEO]["applies_if"] = "binary.3"
        for each in (tree["train_data"], *tree["validation_data"].values()):
            each["preprocess"] |= {
                "downcast": {"features": {"continuous": "bfloat16", "binary": "uint8", "user_embedding": "float16"}},
                "extract_features": [{"target": "position", "source_tensor": "continuous", "source_index": 5}],
            }

    config = parse(example, widen)
    evaluation = train_published(config, tmp_path / "run")
    inputs = PublishedInputs(config)
    batches = list(inputs.reader(config.validation_data["last_day"], epochs=1))
    shapes = inputs.shapes()
    assert (shapes.continuous, shapes.binary, len(shapes.discrete), shapes.discrete[1]) == (40, 8, 320, 100)
    assert shapes.embeddings == {"user_embedding": 200, "user_eng_embedding": 200, "author_embedding": 200}
    applies = torch.cat([batch["binary"][:, 3] for batch in batches])
    assert evaluation["sets"]["last_day"]["tasks"][VIDEO]["examples"] == int(applies.sum()) < 200
    assert batches[0]["meta.author_id"].dtype == batches[0]["position"].dtype == torch.int64
    assert torch.equal(batches[0]["position"], batches[0]["continuous"][:, 5].long())
    training = torch.cat([b["continuous"] for b in inputs.reader(config.train_data, epochs=1)]).double()
    logs = np.sign(training.numpy()) * np.log1p(np.abs(training.numpy()))
    np.testing.assert_allclose(shapes.log_mean, logs.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(shapes.log_deviation, logs.std(axis=0), rtol=1e-6)
    vague = parse(example, widen, lambda tree: tree["model"]["small_embeddings"]["tables"][1].pop("num_embeddings"))
    with pytest.raises(ConfigError, match=r"small_embeddings.tables.1: found no num_embeddings, needed are"):
        PublishedInputs(vague).shapes()


def test_stratifiers_cut_every_set(example: dict[str, Any], tmp_path: Path) -> None:
    def cut(tree: dict[str, Any]) -> None:
        tree["model"]["stratifiers"] = [
            {"name": "kind", "index": 4},
            {"name": "one", "feature": "discrete.4", "value": 1},
        ]

    config = parse(example, cut)
    evaluation = train_published(config, tmp_path / "run")
    ranker = load_ranker(tmp_path / "run" / "recap" / "model.safetensors")
    kinds, labels, said = [], [], []
    for batch in PublishedInputs(config).reader(config.validation_data["last_day"], epochs=1):
        kinds += batch["discrete"][:, 4].tolist()
        labels += batch[VIDEO].tolist()
        with torch.no_grad():
            said += ranker.probabilities(batch)[VIDEO].tolist()
    segments = evaluation["sets"]["last_day"]["segments"]
    commonest = Counter(kinds).most_common(1)[0][0]
    assert segments["kind"].keys() <= {*map(str, kinds), "others"}
    assert sum(found[VIDEO]["examples"] for found in segments["kind"].values()) == 200
    assert list(segments["one"]) == ["1"]
    for value, found in ((commonest, segments["kind"][str(commonest)]), (1, segments["one"]["1"])):
        metrics = BinaryMetrics()
        rows = np.array(kinds) == value
        metrics.update(np.array(labels)[rows], np.array(said)[rows])
        expected = metrics.compute()
        assert found[VIDEO]["examples"] == expected.examples == rows.sum()
        assert found[VIDEO]["positives"] == expected.positives
        assert found[VIDEO]["calibration"] == pytest.approx(expected.calibration, rel=1e-6)
    with pytest.raises(ConfigError, match=r"stratifiers.kind.feature: found topic, allowed in published data"):
        discrete_element(StratifierConfig(name="kind", feature="topic"))


def test_what_the_data_lacks_is_named(example: dict[str, Any]) -> None:
    def narrow(tree: dict[str, Any]) -> None:
        slices = {"continuous_feature_truncation": 39, "binary_feature_truncation": 8}
        tree["validation_data"]["seen"]["preprocess"] = {"truncate_and_slice": slices}

    with pytest.raises(ConfigError, match=r"validation_data.seen: found 39 elements of continuous, allowed are the 40"):
        PublishedInputs(parse(example, narrow))
    with pytest.raises(ConfigError, match=r"train_data.seg_dense_schema: found no position, which the model reads"):
        PublishedInputs(parse(example, lambda tree: tree["model"].update(position_debias_config={})))


@pytest.mark.slow
def test_two_ranks_train_on_the_batch_of_one(example: dict[str, Any], tmp_path: Path) -> None:
    path, run = tmp_path / "published.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(example, sort_keys=False))
    # The second training goes on from the checkpoint of the first, each rank from its own place.
    program = f"""
import sys
from tml.cli import app
from tml.core.distributed import process_group
with process_group():
    for steps in (5, 8):
        arguments = ["recap", "train", {str(path)!r}, "--set", f"training.num_train_steps={{steps}}"]
        app(arguments, standalone_mode=False)
"""
    told, silent = run_ranks(program)
    assert told.count("last_day: 200 examples") == 2
    assert silent == ""

    config = parse(example)
    inputs = PublishedInputs(config)
    model = HeavyRanker(config.model, inputs.shapes(), torch.Generator().manual_seed(0))
    model.initialise_biases(inputs.base_rates(model))
    optimizer, scheduler = build_optimizer(objective := RankerLoss(model), config.optimizer)
    readers = [iter(PublishedReader(inputs._segdense(config.train_data, 10, rank, world_size=2))) for rank in range(2)]
    for _ in range(8):
        parts = [next(reader) for reader in readers]
        optimizer.zero_grad()
        objective({name: torch.cat([part[name] for part in parts]) for name in parts[0]})[0].backward()
        optimizer.step()
        scheduler.step()
    found = weights(run)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    # One process says of the same model what the two together do.
    merged = json.loads((run / "evaluation.json").read_text())
    alone = evaluate_published(config, run)
    assert merged["sets"].keys() == alone["sets"].keys()
    for name, own in alone["sets"].items():
        assert merged["sets"][name]["examples"] == own["examples"]
        for task, result in own["tasks"].items():
            for metric, value in result["models"]["ranker"].items():
                other = merged["sets"][name]["tasks"][task]["models"]["ranker"][metric]
                assert other == value or math.isclose(other, value, rel_tol=1e-5)


def test_the_shipped_configuration_trains_with_two_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TML_DATA", "published-data")
    monkeypatch.setenv("TML_RUNS", "runs")

    def tml(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tml", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = tml("data", "synthesize", "published-data", "--rows", "160", "--files", "4", "--days", "4")
    assert (code, out) == (0, "published-data\n")
    blocks = (
        "model.backbone.mask_net_config={mask_blocks: [{output_size: 8, aggregation_size: 8}], mlp: {layer_sizes: [8]}}"
    )
    less = ["--set", blocks, "--set", "training.num_train_steps=2", "--set", "train_data.global_batch_size=16"]
    code, out, said = tml("recap", "train", str(EXAMPLE), *less)
    assert code == 0, said
    assert out.endswith("runs/published/recap/model.safetensors\n")
    assert "without effect here: cache, interleave_num_parallel_calls, map_num_parallel_calls\n" in said
    written = (tmp_path / "runs/published/evaluation.json").read_text()
    assert list(json.loads(written)["sets"]) == ["next_day", "day_after"]
    code, out, _ = tml("recap", "evaluate", str(EXAMPLE), *less)
    assert (code, out.count("is_favorited")) == (0, 2)
    assert (tmp_path / "runs/published/evaluation.json").read_text() == written
    code, again, _ = tml("recap", "evaluate", "runs/published")
    assert (code, again) == (0, out)
    code, _, said = tml("features", str(EXAMPLE))
    assert code == 2
    assert "a published configuration, which has no stages" in said


def test_two_runs_are_compared_on_the_sets_of_one(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = parse(example)
    train_published(ours, tmp_path / "run")

    def deeper(tree: dict[str, Any]) -> None:
        tree["model"]["backbone"] = {"mlp_config": {"layer_sizes": [8, 8], "final_activation": True}}
        # It reads what ours does not, in other batches.
        tree["model"]["small_embeddings"] = {"tables": [{"index": 0, "num_embeddings": 50}]}
        tree["train_data"]["global_batch_size"] = 30
        tree["training"]["num_train_steps"] = 2

    train_published(parse(example, deeper), tmp_path / "v1.2")
    arguments = ["tml", "recap", "evaluate", str(tmp_path / "run"), "--against", str(tmp_path / "v1.2")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "The ranker against v1.2 on last_day" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "comparisons" / "v1.2 on last_day.json").read_text())
    seen = json.loads((tmp_path / "run" / "comparisons" / "v1.2 on seen.json").read_text())
    assert list(seen["tasks"]) == [VIDEO, FAVORITED]
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())["sets"]["last_day"]["tasks"]
    assert found["examples"]["common"] == 200
    assert not found["same"]
    other = ValidationSets(parse(example, deeper), PublishedInputs(parse(example, deeper)))
    ratios = json.loads((tmp_path / "v1.2" / "recap" / "sampling.json").read_text())
    theirs = other.evaluate(load_ranker(tmp_path / "v1.2" / "recap" / "model.safetensors"), ratios)["sets"]["last_day"]
    for task, values in found["tasks"].items():
        if values["auc"] is not None:
            assert values["auc"]["ours"] == pytest.approx(figures[task]["models"]["ranker"]["auc"])
            assert values["rce"]["theirs"] == pytest.approx(theirs["tasks"][task]["models"]["ranker"]["rce"])
            assert values["auc"]["low"] <= values["auc"]["high"]
    itself = compare_published(ours, tmp_path / "run", tmp_path / "run")["last_day"]
    assert itself["same"]
    assert itself["tasks"][VIDEO]["rce"]["low"] == itself["tasks"][VIDEO]["rce"]["high"] == 0
    with pytest.raises(
        ConfigError, match=r"--against .*nope: found no config\.yaml, allowed is the run folder of a pu"
    ):
        compare_published(ours, tmp_path / "run", tmp_path / "nope")
