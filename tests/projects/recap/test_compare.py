"""Comparison of two models, segments, and what other weights do, against loops and scikit-learn."""

import io
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score

from tml.core.errors import ConfigError, DataError, MissingStage
from tml.projects.home.recap.compare import compare, comparison_table
from tml.projects.home.recap.evaluate_segments import evaluate_segments, segment_table
from tml.projects.home.recap.input_config import StratifierConfig
from tml.projects.home.recap.intervals import order_intervals, task_intervals
from tml.projects.home.recap.segments import AGE, _by_quantile, _by_value, segment_examples
from tml.projects.home.recap.what_if import concentration, what_if, what_if_table
from tml.report.comparison import write_comparison_picture

TASKS = ["is_click", "is_like"]


def predictions(noise: float = 1.0, seed: int = 0, sessions: int = 300) -> pa.Table:
    rng = np.random.default_rng(7)
    sizes = rng.integers(2, 16, sessions)
    n = int(sizes.sum())
    session = np.repeat(np.arange(sessions), sizes)
    signal = rng.normal(size=(2, n))
    other = np.random.default_rng(seed).normal(size=(2, n)) * noise
    shift = np.array([[0.0], [-2.5]])
    labels = (rng.random((2, n)) < 1 / (1 + np.exp(-signal - shift))).astype(np.float32)
    columns = {
        "impression_id": np.arange(n) + 10,
        "session_id": session,
        "user_id": [f"u{i % 90}" for i in session],
        "author_id": rng.integers(0, 40, n),
        "position": np.concatenate([np.arange(size) for size in sizes]),
    }
    for number, task in enumerate(TASKS):
        said = 1 / (1 + np.exp(-signal[number] - other[number] - shift[number]))
        columns |= {f"label/{task}": labels[number], f"ranker/{task}": said.astype(np.float32)}
        columns[f"lightgbm/{task}"] = np.float32(1 / (1 + np.exp(-signal[number] - shift[number])))
    return pa.table(columns)


def written(folder, table: pa.Table):
    path = folder / "recap" / "predictions.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return path


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_a_worse_model_is_found_worse_and_the_same_one_is_not(tmp_path) -> None:
    table = predictions()
    path = written(tmp_path / "ours", table)
    found = compare(path, TASKS, "lightgbm", draws=100, confidence=0.95, seed=0)
    click = found["tasks"]["is_click"]
    y = table["label/is_click"].to_numpy()
    for side, name in (("ours", "ranker"), ("theirs", "lightgbm")):
        assert click["auc"][side] == pytest.approx(roc_auc_score(y, table[f"{name}/is_click"].to_numpy()))
    assert click["auc"]["high"] < 0
    assert click["rce"]["low"] < click["rce"]["difference"] < click["rce"]["high"] < 0
    assert click["auc"]["p"] < 0.001
    written(tmp_path / "same", table)
    compared = compare(path, TASKS, str(tmp_path / "same"), draws=30, confidence=0.95, seed=0)
    same = compared["tasks"]
    assert all(one["auc"]["difference"] == one["auc"]["low"] == one["auc"]["high"] == 0 for one in same.values())
    assert same["is_like"]["rce"]["p"] == 1
    assert "the two say the same of every example" in shown(comparison_table(compared, "same"))
    assert "say the same" not in shown(comparison_table(found, "lightgbm"))
    json.dumps(found, allow_nan=False)
    assert "<0.001" in shown(comparison_table(found, "lightgbm"))
    for suffix in (".png", ".html"):
        write_comparison_picture(found, "lightgbm", tmp_path / f"picture{suffix}")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert "var(--ranker)" in (tmp_path / "picture.html").read_text()


def test_runs_are_compared_on_the_examples_that_both_have_in_any_order(tmp_path) -> None:
    ours, theirs = predictions(), predictions(noise=0.5, seed=1)
    chosen = np.random.default_rng(0).permutation(len(theirs))[:900]
    path = written(tmp_path / "ours", ours)
    written(tmp_path / "theirs", theirs.take(chosen))
    compared = compare(path, TASKS, str(tmp_path / "theirs"), draws=30, confidence=0.9, seed=0)
    assert compared["examples"] == {"ours": len(ours), "theirs": 900, "common": 900}
    assert "of the 900 examples that both have" in shown(comparison_table(compared, "theirs"))
    found = compared["tasks"]["is_click"]
    y = ours["label/is_click"].to_numpy()[chosen]
    assert found["examples"] == 900
    assert found["auc"]["theirs"] == pytest.approx(roc_auc_score(y, theirs["ranker/is_click"].to_numpy()[chosen]))
    assert found["auc"]["ours"] == pytest.approx(roc_auc_score(y, ours["ranker/is_click"].to_numpy()[chosen]))


def test_what_cannot_be_compared_is_said(tmp_path) -> None:
    path = written(tmp_path / "ours", predictions())
    with pytest.raises(DataError, match=r"--against nope: found neither .* allowed are lightgbm and the folder"):
        compare(path, TASKS, "nope", 20, 0.95, 0)
    far = predictions()
    written(tmp_path / "far", far.set_column(0, "impression_id", pa.array(np.arange(len(far)) + 10**6)))
    with pytest.raises(DataError, match="judged on none of this run's examples"):
        compare(path, TASKS, str(tmp_path / "far"), 20, 0.95, 0)
    text = far.set_column(0, "impression_id", far["impression_id"].cast(pa.string()))
    written(tmp_path / "text", text)
    with pytest.raises(DataError, match="found other types of ids, needed is the same log"):
        compare(path, TASKS, str(tmp_path / "text"), 20, 0.95, 0)
    with pytest.raises(MissingStage, match="tml recap evaluate"):
        compare(tmp_path / "gone.parquet", TASKS, "lightgbm", 20, 0.95, 0)


def test_another_log_whose_ids_are_the_same_numbers_is_refused(tmp_path) -> None:
    ours = predictions()
    path = written(tmp_path / "ours", ours)
    users = [f"v{user}" for user in ours["user_id"].to_pylist()]
    written(tmp_path / "log", ours.set_column(ours.column_names.index("user_id"), "user_id", pa.array(users)))
    with pytest.raises(DataError, match="found impression 10 with another user_id, needed is the same log and split"):
        compare(path, TASKS, str(tmp_path / "log"), 20, 0.95, 0)
    place = ours.column_names.index("label/is_like")
    labels = ours["label/is_like"].to_numpy().copy()
    labels[3] = 1 - labels[3]
    written(tmp_path / "labels", ours.set_column(place, "label/is_like", pa.array(labels)))
    with pytest.raises(DataError, match="found another label is_like of impression 13, needed are tasks of the same"):
        compare(path, TASKS, str(tmp_path / "labels"), 20, 0.95, 0)
    labels[3] = np.nan  # it does not count there, so it counts for neither
    written(tmp_path / "nan", ours.set_column(place, "label/is_like", pa.array(labels)))
    found = compare(path, TASKS, str(tmp_path / "nan"), 20, 0.95, 0)["tasks"]
    assert found["is_like"]["examples"] == len(ours) - 1
    assert found["is_click"]["examples"] == len(ours)


def test_intervals_lie_around_the_figures(tmp_path) -> None:
    table = predictions()
    found = task_intervals(written(tmp_path, table), TASKS, 100, 0.95, 0)
    auc = roc_auc_score(table["label/is_click"].to_numpy(), table["ranker/is_click"].to_numpy())
    assert found["is_click"]["auc"]["low"] < auc < found["is_click"]["auc"]["high"]
    orders = order_intervals(table, dict.fromkeys(TASKS, 1.0), 5, 100, 0.95, 0)
    assert orders["ndcg"]["low"] > 0
    assert orders["weighted_engagement_at_5"]["p"] < 0.001


def test_segments_are_the_examples_cut_and_their_figures(simulated, tmp_path) -> None:
    from tml.data.config import TaskConfig
    from tml.data.log import open_log
    from tml.data.shards import read_part
    from tml.features.build import build_examples
    from tml.features.config import FeaturesConfig, SplitConfig

    task = {"liked": TaskConfig(engagement="favorited")}
    with open_log(simulated) as log:
        build_examples(log, task, FeaturesConfig(), SplitConfig(), tmp_path / "examples", 0, "")
    names = ["author_size", "viewer_activity", AGE, "posts.topic", "follows_author", "posts.length"]
    segments = segment_examples(tmp_path / "examples", names, buckets=4)
    held_out = pa.concat_tables(read_part(tmp_path / "examples", "validation", ["user_id", "author_id", "liked"]))
    train = pa.concat_tables(read_part(tmp_path / "examples", "train", ["author_id"]))
    rng = np.random.default_rng(0)
    said = rng.random(len(held_out)).astype(np.float32)
    columns = {"label/liked": held_out["liked"], "ranker/liked": said}
    path = written(tmp_path, pa.table(columns))
    found = evaluate_segments(path, ["liked"], segments)
    for segment in segments:
        assert len(segment.bucket) == len(held_out)
        assert set(segment.bucket) == set(range(len(segment.labels)))
        for number, label in enumerate(segment.labels):
            rows = segment.bucket == number
            y = held_out["liked"].to_numpy()[rows]
            figures = found[segment.name][label]["liked"]
            assert (figures["examples"], figures["positives"]) == (rows.sum(), y.sum())
            if 0 < y.sum() < len(y):
                assert figures["auc"] == pytest.approx(roc_auc_score(y, said[rows]))
    counts = {row["values"]: row["counts"] for row in train["author_id"].value_counts().to_pylist()}
    sizes = np.array([counts.get(author, 0) for author in held_out["author_id"].to_pylist()])
    by_size = segments[0]
    lows, highs = zip(
        *((sizes[by_size.bucket == i].min(), sizes[by_size.bucket == i].max()) for i in range(3)), strict=True
    )
    assert all(high < low for high, low in zip(highs, lows[1:], strict=False))
    assert "author_size" in shown(segment_table("author_size", found["author_size"]))
    discrete = pa.concat_tables(read_part(tmp_path / "examples", "validation", ["discrete"]))["discrete"]
    hours = np.array(discrete.to_pylist())[:, 0]
    strata = [StratifierConfig(name=str(i), index=0, value=value) for i, value in enumerate((9, None, 10**6))]
    strata += [StratifierConfig(name="by name", feature="hour"), StratifierConfig(name="3", feature="discrete.0")]
    cut = evaluate_segments(path, ["liked"], segment_examples(tmp_path / "examples", [], 4, stratifiers=strata))
    assert [sum(b["liked"]["examples"] for b in cut[name].values()) for name in ("0", "1", "2", "by name")] == [
        (hours == 9).sum(),
        len(hours),
        0,
        len(hours),
    ]
    assert list(cut["1"].values()) == list(cut["3"].values()) == list(cut["by name"].values())
    assert next(iter(cut["0"].values())) in cut["1"].values()
    with pytest.raises(
        ConfigError, match=r"model\.stratifiers\.far\.index: found 99, allowed are the discrete columns 0 to"
    ):
        segment_examples(tmp_path / "examples", [], 4, stratifiers=[StratifierConfig(name="far", index=99)])
    with pytest.raises(ConfigError, match=r"evaluation\.segments: found nope, allowed are author_size"):
        segment_examples(tmp_path / "examples", ["nope"], 4)


def test_buckets_of_near_numbers_and_of_the_same_word_keep_their_own_names() -> None:
    rng = np.random.default_rng(0)
    values = 1_700_000_000 + rng.integers(0, 100, 400).astype(float)
    by_quantile = _by_quantile("posts.made", values, buckets=4)
    by_value = _by_value("posts.topic", rng.integers(0, 30, 400), {1: "unknown", 2: "others", 3: "cats", 4: "cats"})
    for segment in (by_quantile, by_value):
        assert len(set(segment.labels)) == len(segment.labels) > 3
        assert set(segment.bucket) == set(range(len(segment.labels)))


def test_what_if_agrees_with_loops() -> None:
    table = predictions()
    before, after = {"is_click": 1.0, "is_like": 5.0}, {"is_click": 1.0, "is_like": 0.0}
    followed = np.random.default_rng(1).random(len(table)) < 0.3
    found = what_if(table, TASKS, before, after, followed, k=4)
    session = table["session_id"].to_numpy()
    tops, overlaps, agree, pairs = {"before": [], "after": []}, [], 0, 0
    for number in range(300):
        rows = np.flatnonzero(session == number)
        orders = {}
        for side, weights in (("before", before), ("after", after)):
            score = sum(weight * table[f"ranker/{t}"].to_numpy()[rows].astype(float) for t, weight in weights.items())
            orders[side] = rows[np.argsort(-score, kind="stable")]
            tops[side] += list(orders[side][:4])
        both = set(orders["before"][:4]) & set(orders["after"][:4])
        overlaps.append(len(both) / min(4, len(rows)))
        places = [np.argsort(orders[side]) for side in ("before", "after")]
        n = len(rows) * (len(rows) - 1) // 2
        agree += kendalltau(*places).statistic * n
        pairs += n
    assert found["overlap"] == pytest.approx(np.mean(overlaps))
    assert found["kendall_tau"] == pytest.approx(agree / pairs)
    for side, top in tops.items():
        assert found[side]["followed"] == pytest.approx(followed[top].mean())
        for task in TASKS:
            assert found[side]["expected"][task] == pytest.approx(
                table[f"ranker/{task}"].to_numpy()[top].astype(float).mean()
            )
            assert found[side]["observed"][task] == pytest.approx(table[f"label/{task}"].to_numpy()[top].mean())
        places = np.bincount(table["author_id"].to_numpy()[top], minlength=40)
        assert found[side]["authors"] == concentration(places)
    assert found["after"]["expected"]["is_like"] < found["before"]["expected"]["is_like"]
    text = shown(what_if_table(found))
    assert "weight of like" in text
    same = what_if(table, TASKS, before, before, k=4)
    assert (same["overlap"], same["kendall_tau"], same["other_first_post"]) == (1, 1, 0)
    assert same["before"]["followed"] is None


def test_concentration_agrees_with_the_definition() -> None:
    counts = np.random.default_rng(0).integers(0, 9, 150)
    found = concentration(counts)
    differences = [abs(a - b) for a, b in itertools.product(counts.tolist(), repeat=2)]
    assert found["gini"] == pytest.approx(np.mean(differences) / (2 * counts.mean()))
    assert found["herfindahl"] == pytest.approx(sum((c / counts.sum()) ** 2 for c in counts))
    assert found["top_1_percent"] == pytest.approx(sum(sorted(counts)[-2:]) / counts.sum())
    assert concentration([0, 0])["gini"] is None
