"""The whole job on a small simulated log: it ends, it skips what is done, it repeats itself, and it goes on where it
was stopped."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tml.core.config import load_config
from tml.core.errors import DataError, MissingStage, UserError
from tml.core.files import read_json
from tml.pipeline import run_comparison, run_job, run_what_if
from tml.projects.home.recap import train as recap_train
from tml.run_config import Run, RunConfig

TASKS = ("favorited", "video_playback_50", "good_clicked_convo_desc_v2")


def config(**changes: Any) -> RunConfig:
    relations = [{"name": "follow", "source": "follows"}]
    relations += [{"name": "favorited", "source": "engagements", "type": "favorited", "tail": "post"}]
    small = {"mask_blocks": [{"output_size": 8, "aggregation_size": 8}], "mlp": None}
    tree: dict[str, Any] = {
        "simulator": {"users": 150, "posts": 600, "days": 4},
        "tasks": {f"recap.engagement.is_{name}": {"engagement": name} for name in TASKS},
        "twhin": {"relations": relations, "epochs": 2, "batch_size": 256, "embedding_dim": 8},
        "recap": {
            "batch_size": 128,
            "epochs": 2,
            "model": {"backbone": {"mask_net_config": small}},
            "training": {"num_steps": None, "log_every": 5, "evaluate_every": 10, "checkpoint_every": 10},
        },
    }
    return RunConfig.model_validate(tree | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_job(config(), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def times(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (folder / ".stages").iterdir()}


def test_the_run_folder_holds_what_the_contract_says(finished: Path) -> None:
    names = [
        "config.yaml",
        "log",
        "examples",
        "twhin",
        "baselines",
        "recap",
        "evaluation.json",
        "timelines.parquet",
        "report.html",
    ]
    assert {path.name for path in finished.iterdir()} == {*names, ".stages", ".lock"}
    assert load_config(RunConfig, finished / "config.yaml") == config()
    evaluation = read_json(finished / "evaluation.json")
    assert list(evaluation["tasks"]) == [f"recap.engagement.is_{name}" for name in TASKS]
    models = evaluation["tasks"]["recap.engagement.is_favorited"]["models"]
    assert set(models) == {"ranker", "lightgbm", "logistic_regression", "popularity", "base_rate", "oracle"}
    assert 0.5 < models["ranker"]["auc"] <= 1
    assert models["oracle"]["rce"] > models["ranker"]["rce"] > models["base_rate"]["rce"]
    assert abs(models["oracle"]["calibration"] - 1) < 0.3


def test_timelines_are_whole_sessions_in_the_order_of_their_scores(finished: Path) -> None:
    timelines = _columns(finished)
    for session in np.unique(timelines["session_id"]):
        rows = timelines["session_id"] == session
        order = np.argsort(timelines["rank"][rows])
        assert (timelines["rank"][rows][order] == np.arange(1, rows.sum() + 1)).all()
        assert (np.diff(timelines["score"][rows][order]) <= 0).all()
    validation = read_json(finished / "examples" / "schema.json")["parts"]["validation"]["rows"]
    assert len(timelines["rank"]) == validation


def _columns(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    table = pq.read_table(folder / "timelines.parquet", columns=["session_id", "rank", "score"])
    return {name: table[name].to_numpy() for name in table.column_names}


def test_a_second_run_skips_everything(run: Path) -> None:
    before = times(run)
    run_job(config(), run)
    assert times(run) == before


def test_a_changed_setting_runs_again_what_depends_on_it(run: Path) -> None:
    before = times(run)
    run_job(config(weights={"recap.engagement.is_favorited": 2.0}), run)
    after = times(run)
    assert {name for name in after if after[name] != before[name]} == {"evaluate", "rank", "report"}
    assert read_json(run / "evaluation.json")["weights"]["recap.engagement.is_favorited"] == 2.0


def test_the_same_job_gives_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    run_job(config(), tmp_path / "again")
    for name in ("evaluation.json", "timelines.parquet", "recap/model.safetensors", "twhin/embeddings/user.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_stopped_training_goes_on_where_it_was(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "recap")
    (run / ".stages" / "recap.json").unlink()
    steps = 0

    def stop_at_the_thirteenth(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise KeyboardInterrupt

    whole = recap_train.train
    monkeypatch.setattr(recap_train, "train", lambda *a, **k: whole(*a, callbacks=[stop_at_the_thirteenth], **k))
    with pytest.raises(KeyboardInterrupt):
        run_job(config(), run)
    assert not (run / "recap" / "model.safetensors").exists()
    monkeypatch.setattr(recap_train, "train", whole)
    run_job(config(), run)
    assert (run / "evaluation.json").read_bytes() == (finished / "evaluation.json").read_bytes()


def test_damaged_examples_stop_a_training_or_are_skipped_and_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "validation"):
        shard = run / "examples" / part / "part-00000.parquet"
        pq.write_table(pq.read_table(shard), shard, row_group_size=100, use_dictionary=False, write_page_checksum=True)
        vector = pq.ParquetFile(shard).metadata.row_group(1).column(8)
        content = bytearray(shard.read_bytes())
        content[vector.data_page_offset + vector.total_compressed_size - 1] ^= 255
        shard.write_bytes(content)

    def changed(on_error: str) -> RunConfig:
        return config(recap=config().recap.model_copy(update={"on_error": on_error, "epochs": 1.0}).model_dump())

    with pytest.raises(DataError, match=r"part-00000\.parquet row group 1: not readable"):
        run_job(changed("stop"), run, only="recap")
    run_job(changed("skip"), run, only="recap")
    run_job(changed("skip"), run, only="evaluate")
    said = capsys.readouterr().err
    for what in ("train ranker", "predict"):
        assert f"{what}: skipped 100 examples: " in said
    models = read_json(run / "evaluation.json")["tasks"][f"recap.engagement.is_{TASKS[0]}"]["models"]
    assert models["ranker"]["auc"] > 0.5


def test_twhin_knows_nothing_of_what_the_ranker_is_trained_on(run: Path) -> None:
    """Engagements after the start of training, moved to other posts, change neither embeddings nor their users."""
    log = run / "log" / "engagements.parquet"
    start = np.datetime64(read_json(run / "examples" / "schema.json")["parts"]["train"]["start"])
    table = pq.read_table(log)
    posts = table["post_id"].to_numpy().copy()
    later = table["engaged_at"].to_numpy() >= start
    posts[later] = np.roll(posts[later], 1)
    pq.write_table(table.set_column(table.column_names.index("post_id"), "post_id", [posts]), log)
    before = {path.name: path.read_bytes() for path in (run / "twhin" / "embeddings").iterdir()}
    examples = (run / "examples" / "train" / "part-00000.parquet").read_bytes()
    run_job(config(), run, only="twhin")
    run_job(config(), run, only="features")
    assert {path.name: path.read_bytes() for path in (run / "twhin" / "embeddings").iterdir()} == before
    assert (run / "examples" / "train" / "part-00000.parquet").read_bytes() != examples


def test_a_stage_alone_needs_the_ones_before(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingStage, match="run `tml simulate` first"):
        run_job(config(), tmp_path / "new", only="features")
    with pytest.raises(MissingStage, match=r"features is not finished for this config; run `tml features`"):
        run_job(config(split={"validation_start": 0.7}), run, only="recap")
    run_job(config(), run, only="rank")


def test_two_jobs_do_not_share_a_folder(run: Path) -> None:
    import fcntl

    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another tml is at work"):
            run_job(config(), run)


def test_a_task_without_positives_is_named_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    tasks = {"is_shared": {"engagement": "shared"}}
    with pytest.raises(UserError, match=r"tasks\.is_shared\.engagement: found 'shared', which never occurs"):
        run_job(config(tasks=tasks), tmp_path / "run")
    assert not (tmp_path / "run" / "examples").exists()
    assert not list((tmp_path / "run").glob("**/*.partial"))


def test_sampled_negatives_are_left_out_of_training_and_corrected_once(tmp_path: Path, finished: Path) -> None:
    tasks = {f"recap.engagement.is_{name}": {"engagement": name} for name in TASKS}
    tasks["recap.engagement.is_favorited"] |= {"negative_sampling_rate": 0.25}  # type: ignore[dict-item]
    run_job(config(tasks=tasks), tmp_path / "run")
    job = Run(config(tasks=tasks), tmp_path / "run")
    labels = pq.read_table(job.examples / "train")["recap.engagement.is_favorited"].to_numpy()
    full = pq.read_table(finished / "examples" / "train")["recap.engagement.is_favorited"].to_numpy()
    assert np.nansum(labels) == full.sum()
    assert 0.2 < (labels == 0).sum() / (full == 0).sum() < 0.3
    assert np.isfinite(pq.read_table(job.examples / "validation")["recap.engagement.is_favorited"].to_numpy()).all()
    models = read_json(tmp_path / "run" / "evaluation.json")["tasks"]["recap.engagement.is_favorited"]["models"]
    for name in ("ranker", "base_rate"):
        assert 0.6 < models[name]["calibration"] < 1.6, name
    # What is logged on the way is corrected, too.
    logged = [json.loads(line) for line in (tmp_path / "run" / "recap" / "metrics.jsonl").read_text().splitlines()]
    rces = [
        line["validation/rce/recap.engagement.is_favorited"] for line in logged if any("rce" in key for key in line)
    ]
    assert rces[-1] == pytest.approx(models["ranker"]["rce"], abs=1e-3)


def test_a_run_folder_is_evaluated_compared_and_asked_what_if(run: Path) -> None:
    from typer.testing import CliRunner

    from tml.cli import app
    from tml.core.errors import ConfigError

    done = CliRunner().invoke(
        app, ["recap", "evaluate", str(run), "--against", "lightgbm", "--against", str(run), "--by", "posts.topic"]
    )
    assert done.exit_code == 0, done.stderr
    assert "The ranker against lightgbm" in done.stdout
    assert "By posts.topic" in done.stdout
    for name in ("lightgbm.json", "lightgbm.png", "lightgbm.html", "run.json"):
        assert (run / "comparisons" / name).is_file(), name
    task = "recap.engagement.is_favorited"
    assert read_json(run / "comparisons" / "run.json")["tasks"][task]["auc"]["difference"] == 0
    evaluation = read_json(run / "evaluation.json")
    assert set(evaluation["segments"]) == {"author_size", "viewer_activity", "age", "posts.topic"}
    between = evaluation["tasks"][task]["intervals"]["auc"]
    assert between["low"] < evaluation["tasks"][task]["models"]["ranker"]["auc"] < between["high"]
    other = run.rename(run.with_name("v1.2"))
    shutil.copytree(other, run)
    done = CliRunner().invoke(app, ["recap", "evaluate", str(run), "--against", str(other)])
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in (run / "comparisons").glob("v1*")} == {"v1.2.json", "v1.2.png", "v1.2.html"}
    done = CliRunner().invoke(app, ["recap", "what-if", str(run), "--set", "weights.is_favorited=0"])
    assert done.exit_code == 0, done.stderr
    moved = read_json(run / "what_if.json")
    assert (moved["before"]["weights"][task], moved["after"]["weights"][task]) == (0.5, 0.0)
    assert moved["after"]["expected"][task] <= moved["before"]["expected"][task]
    assert 0 < moved["before"]["followed"] < 1
    for change, message in (("weights.nope=1", "weights: found nope"), ("seed=1", r"allowed here is weights\.TASK")):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, ["recap", "what-if", str(run), "--set", change], catch_exceptions=False)


def test_predictions_of_another_model_or_of_a_stopped_evaluation_are_not_used(run: Path, finished: Path) -> None:
    task = "recap.engagement.is_favorited"
    run_what_if(Run(config(), run), {task: 0.0})
    (run / ".stages" / "evaluate.json").unlink()
    with pytest.raises(MissingStage, match="the stage evaluate is not finished for this config; run `tml recap evalu"):
        run_what_if(Run(config(), run), {task: 0.0})
    with pytest.raises(MissingStage, match=f"{run}: the stage evaluate is not finished"):
        run_comparison(Run(config(), finished), str(run))
    shutil.copy(finished / ".stages" / "evaluate.json", run / ".stages")
    again = config(recap={**config().recap.model_dump(), "epochs": 1})
    run_job(again, run, only="recap")
    with pytest.raises(MissingStage, match="the stage evaluate is not finished"):
        run_what_if(Run(again, run), {task: 0.0})


def test_calibration_is_fitted_kept_and_used_in_the_ranking(run: Path) -> None:
    run_job(config(evaluation={"calibration": "platt", "lightgbm": None}), run)
    table = pq.read_table(run / "recap" / "predictions.parquet")
    maps = read_json(run / "recap" / "calibration.json")
    assert set(maps) == {f"recap.engagement.is_{name}" for name in TASKS}
    assert "lightgbm/recap.engagement.is_favorited" not in table.column_names
    ranked = pq.read_table(run / "timelines.parquet").sort_by("impression_id")
    for task in maps:
        raw, said = (table[f"{kind}/{task}"].to_numpy() for kind in ("uncalibrated", "ranker"))
        assert not np.array_equal(raw, said)
        assert ranked[f"probability/{task}"].equals(table.sort_by("impression_id")[f"first/{task}"])
    run_job(config(), run)
    assert not (run / "recap" / "calibration.json").exists()
