"""The plan of learning rates: what it shows of a config, in a terminal and as a picture."""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sklearn.isotonic import isotonic_regression
from typer.testing import CliRunner

from tml.cli import app
from tml.core.config import parse_config
from tml.core.errors import ConfigError, UserError
from tml.optimizers.schedules import LearningRate
from tml.projects.home.recap.optimizer import RecapOptimizerConfig
from tml.projects.home.recap.optimizer.config import default_config
from tml.projects.home.recap.train import RecapConfig
from tml.report.schedule import Plan, learning_rates, load_optimizer, plan_of_optimizer, plan_of_ranker
from tml.report.schedule_picture import picture, spread, write_picture

TASKS = [
    "recap.engagement.is_favorited",
    "recap.engagement.is_good_clicked_convo_desc_favorited_or_replied",
    "recap.engagement.is_replied_reply_engaged_by_author",
    "recap.engagement.is_video_playback_50",
]


def plan(*rates: Any, steps: int = 100, **named: Any) -> Plan:
    groups = {f"is_{number}": rate for number, rate in enumerate(rates)} | named
    rates = {name: LearningRate.model_validate(rate) for name, rate in groups.items()}
    towers = tuple(name for name in rates if name not in ("backbone", "model"))
    return Plan("x.yaml", rates, towers, steps, "steps")


def ramp(rate: float, steps: int) -> dict[str, Any]:
    return {"linear_ramp_to_constant": {"learning_rate": rate, "num_ramp_steps": steps}}


@pytest.fixture
def published() -> Plan:
    """The published rates of four towers and the backbone."""
    return plan_of_optimizer(default_config(TASKS), "published.yaml")


def printed(shown: Plan, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as text:
        console.print(shown)
    return text.get().splitlines()


def test_groups_are_the_backbone_and_the_towers_or_the_model() -> None:
    rates = learning_rates(default_config(TASKS))
    assert list(rates) == ["backbone", *TASKS]
    assert rates["backbone"].at(500) == 5e-5
    assert rates[TASKS[3]].at(10_000) == 3e-3
    single = RecapOptimizerConfig(single_task_learning_rate=LearningRate(constant=0.1))
    assert learning_rates(single) == {"model": LearningRate(constant=0.1)}
    towers = {"multi_task_learning_rates": {"tower_learning_rates": {"is_click": 0.1}}}
    assert list(learning_rates(parse_config(RecapOptimizerConfig, towers, "x"))) == ["is_click"]


def test_it_looks_a_quarter_further_than_the_last_change(published: Plan) -> None:
    assert published.steps == 6250
    assert plan_of_optimizer(default_config(TASKS), "x", 70).steps == 70
    assert plan_of_optimizer(default_config([]), "x").steps == 100
    none = parse_config(RecapOptimizerConfig, {"multi_task_learning_rates": {"tower_learning_rates": {}}}, "x")
    with pytest.raises(ConfigError, match="found no learning rate"):
        plan_of_optimizer(none, "x.yaml")


def test_a_ranker_without_an_optimizer_has_schedules_fitted_to_its_steps() -> None:
    guessed = plan_of_ranker(RecapConfig(), TASKS, "x")
    assert guessed.steps == 1000
    assert "an assumption: neither --steps nor recap.training.num_steps" in guessed.about
    assert {rate.horizon for rate in guessed.rates.values()} == {1000}
    training = RecapConfig().training.model_copy(update={"num_steps": 300})
    config = RecapConfig(training=training)
    assert plan_of_ranker(config, TASKS, "x").about == "the default schedules, fitted to 300 steps"
    assert plan_of_ranker(config, TASKS, "x", 40).rates["backbone"].horizon == 40
    explicit = RecapConfig(training=training, optimizer=default_config(TASKS))
    assert plan_of_ranker(explicit, TASKS, "x").steps == 300
    assert plan_of_ranker(explicit, TASKS, "x").rates == learning_rates(default_config(TASKS))


def test_groups_with_one_schedule_share_a_line(published: Plan) -> None:
    assert [line.groups for line in published.lines] == [("backbone", TASKS[2]), *((TASKS[i],) for i in (0, 1, 3))]
    assert published.names(published.lines[0]) == "backbone, reply the author answers"
    same = plan(ramp(0.1, 5), ramp(0.1, 5), ramp(0.1, 5), backbone=ramp(0.1, 5))
    assert same.names(same.lines[0]) == "backbone and all 3 towers"


def test_a_peak_between_two_drawn_steps_is_found() -> None:
    warm = {"inverse_square_root": {"learning_rate": 0.25, "num_ramp_steps": 1001}}
    jumps = {"piecewise_constant": {"learning_rate_boundaries": [70_001, 70_002], "learning_rate_values": [1, 3, 2]}}
    lines = plan(warm, jumps, ramp(1, 2_000_000), steps=1_000_000).lines
    assert [(line.start, line.peak) for line in lines] == [(0, 0.25), (1, 3), (0, 0.5)]
    assert lines[0].end == pytest.approx(0.25 * (1001 / 1e6) ** 0.5)


def test_bars_are_linear_where_peaks_are_alike_and_else_logarithmic() -> None:
    linear = plan(ramp(8, 8), 1, 0, steps=8)
    assert not linear.scale.log
    assert [linear.bars(line, 9) for line in linear.lines] == [" ▁▂▃▄▅▆▇█", "▁▁▁▁▁▁▁▁▁", " " * 9]
    # From 0.001, a power of ten below a tenth of the lowest peak, to 10: four decades on eight blocks.
    powers = {
        "piecewise_constant": {"learning_rate_boundaries": [1, 2, 3], "learning_rate_values": [1e-3, 1e-2, 1, 10]}
    }
    logarithmic = plan(powers, 0.05, 0, steps=3)
    assert (logarithmic.scale.log, logarithmic.scale.low, logarithmic.scale.high) == (True, 0.001, 10)
    assert [logarithmic.bars(line, 4) for line in logarithmic.lines] == [" ▂▆█", "▄▄▄▄", " " * 4]


@pytest.mark.parametrize("width", [60, 80, 140, 160])
def test_the_table_fits_the_terminal_and_reads_well(published: Plan, width: int) -> None:
    lines = printed(published, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "Learning rates of published.yaml: 6,250 steps" in text
    assert "recap.engagement" not in text
    assert "logarithmic, from 1e-05 to 0.003" in text
    (video,) = [line for line in lines if "half the" in line]
    assert re.search(r"half the.* 0 +0\.003 +0\.003 +[▅▆▇]*█+ ", video)
    assert ("ramp over 1,000 steps to 0.003" in video) == (width >= 120)
    # One line a schedule, where there is room.
    if width >= 140:
        assert sum("█" in line or "▄" in line for line in lines) == len(published.lines)
        assert len(lines) <= len(published.lines) + 7


def test_a_name_is_never_markup() -> None:
    assert any("[red]a" in line for line in printed(plan(**{"[red]a": 0.1}), 100))


def path_of(svg: str, color: str) -> np.ndarray[Any, Any]:
    (path,) = re.findall(rf'<path d="(M[^"]+)"[^>]*stroke="var\(--{color}\)" stroke-width="2.2"', svg)
    return np.array(re.findall(r"([-\d.]+),([-\d.]+)", path), float)


def test_a_line_of_the_picture_follows_the_rate() -> None:
    svg = picture(plan(ramp(0.5, 20), 0.25, steps=100), alone=False)
    (x, y), level = path_of(svg, "series-0").T, path_of(svg, "series-1")
    bottom, middle, top = y[0], level[0, 1], y[-1]
    assert len(set(level[:, 1])) == 1
    # Upwards is negative in SVG; half the rate is half the way.
    np.testing.assert_allclose((bottom - middle) / (bottom - top), 0.5, atol=1e-3)
    expected = np.minimum(1, (x - x[0]) / (x[-1] - x[0]) * 5)
    np.testing.assert_allclose((bottom - y) / (bottom - top), expected, atol=2e-2)


def test_the_picture_names_what_it_shows(published: Plan) -> None:
    svg = picture(published, alone=True)
    for name in ("half the video", "favorite", "backbone, reply the author answers", "conversation and a reaction"):
        assert f">{name}</text>" in svg
    for said in ("finished steps", "learning rate (logarithmic)", "ramp over 5,000 steps to 0.0008", "6,250 steps"):
        assert f">{said}</text>" in svg
    assert ">Learning rates of published.yaml</text>" in svg
    # A label for each line, each apart from the next.
    heights = sorted(float(y) for y in re.findall(r'translate\(660,([\d.]+)\)"[^>]*>ramp over', svg))
    assert len(heights) == len(published.lines)
    assert min(np.diff(heights)) >= 33


def test_a_long_label_counts_its_groups_and_a_long_name_stays_whole() -> None:
    long = "a_" * 30 + "b"
    svg = picture(
        plan(0.2, **{"is_first": 0.1, "is_second, too": 0.1, long: 0.1, f"{long}c": 0.2, f"{long}d": 0.3}), True
    )
    for name in ("first and 2 more", "0 and 1 more", f"{long}d".replace("_", " ")):
        assert f">{name}</text>" in svg


@pytest.mark.parametrize(
    "shown",
    [
        plan(0),
        plan(0.1, steps=1),
        plan(1e-9, 1, 0),
        plan(*[{"exponential": {"learning_rate": 10**-n, "decay_rate": 0.5, "decay_steps": 1}} for n in range(30)]),
        plan({"polynomial": {"learning_rate": 1, "final_num_steps": 10**9}}, steps=10**10),
        plan(0.1, steps=10**20),
        plan(1e-300, 1e300),
        plan(5e-324, 1),
    ],
    ids=["zero", "one step", "ten decades", "thirty groups", "long", "very long", "far apart", "smallest"],
)
def test_anything_can_be_drawn(shown: Plan) -> None:
    assert printed(shown, 80)
    svg = picture(shown, alone=True)
    assert "NaN" not in svg
    assert svg.count("constant ") + svg.count("then times") + svg.count("linear to") >= len(shown.lines)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=10))
def test_labels_stand_as_near_as_can_be_without_overlap(wanted: list[float]) -> None:
    # Middles less what the labels before take up must not fall: an isotonic regression within bounds.
    wanted, size, room = sorted(wanted), 30.0, 300.0
    offsets = size * (np.arange(len(wanted)) + 0.5)
    best = isotonic_regression(np.array(wanted) - offsets, y_min=0, y_max=room - size * len(wanted)) + offsets
    np.testing.assert_allclose(spread(wanted, size, room), best, atol=1e-6)


def test_every_format_is_written(published: Plan, tmp_path: Path) -> None:
    for name in ("a.png", "b.SVG", "sub/c.html"):
        write_picture(published, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "b.SVG").read_text()
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["width"]) > 700
    assert "var(" not in svg
    page = (tmp_path / "sub" / "c.html").read_text()
    assert page.count("<tr>") == 1 + len(published.lines)
    assert "<td>0.0008</td>" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert not list(tmp_path.glob("**/*.partial"))


@pytest.mark.parametrize(
    ("name", "said"), [("x.pdf", "found .pdf"), ("x", "found no ending"), ("f/x.svg", "cannot be")]
)
def test_a_picture_that_cannot_be_written_is_refused(published: Plan, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "f").write_text("a file")
    with pytest.raises(UserError, match=said):
        write_picture(published, tmp_path / name)


RATES = {
    "backbone_learning_rate": ramp(0.01, 80),
    "tower_learning_rates": {"is_click": 0.005, "is_like": ramp(0.02, 800)},
}


def config_file(folder: Path, tree: Any) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize(
    "tree",
    [
        {"optimizer": {"multi_task_learning_rates": RATES}, "training": {"num_train_steps": 10}, "model": None},
        {"multi_task_learning_rates": RATES, "single_task_learning_rate": None},
        {"recap": {"optimizer": {"multi_task_learning_rates": RATES}}, "seed": 1},
    ],
    ids=["published", "section", "job"],
)
def test_the_verb_takes_any_kind_of_config(tree: Any, tmp_path: Path) -> None:
    path = config_file(tmp_path, tree)
    done = CliRunner().invoke(app, ["recap", "schedule", str(path), "--out", str(tmp_path / "x.svg")])
    assert done.exit_code == 0, done.output
    assert f"Learning rates of {path}: 1,000 steps" in " ".join(done.output.split())
    assert next(line.split()[0] for line in done.output.splitlines() if "▄" in line) == "backbone"
    assert str(tmp_path / "x.svg") in done.output
    assert (tmp_path / "x.svg").is_file()


def test_the_verb_takes_steps_and_overrides(tmp_path: Path) -> None:
    path = config_file(tmp_path, {"optimizer": {"single_task_learning_rate": 0.1}})
    override = "optimizer.single_task_learning_rate=0.25"
    done = CliRunner().invoke(app, ["recap", "schedule", str(path), "--steps", "77", "--set", override])
    assert "77 steps" in done.output
    assert "constant 0.25" in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"]
    default = CliRunner().invoke(app, ["recap", "schedule"])
    assert "an assumption" in default.output
    assert "backbone and all 10 towers" in default.output


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"optimizer": {"single_task_learning_rate": -1}}, "c.yaml: optimizer.single_task_learning_rate.*found -1"),
        ({"single_task_learning_rate": 1, "multi_task_learning_rates": RATES}, "c.yaml: the config: exactly one of"),
        ({"single_task_learning_rate": 1, "adm": {}}, "c.yaml: adm: unknown field.*did you mean adam"),
        ({"optimizr": {}}, "c.yaml: optimizr: unknown field"),
        ([1], "c.yaml: found list"),
    ],
)
def test_a_wrong_config_is_said_in_one_sentence(tree: Any, said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["recap", "schedule", str(config_file(tmp_path, tree))])
    assert isinstance(done.exception, UserError)
    assert re.search(said, str(done.exception))


def test_a_job_is_not_taken_for_an_optimizer(tmp_path: Path) -> None:
    assert load_optimizer(config_file(tmp_path, {"seed": 1, "recap": {}})) is None


def test_a_weight_decay_that_follows_the_step_is_drawn_too() -> None:
    decay = {"linear_ramp_to_constant": {"learning_rate": 0.1, "num_ramp_steps": 400}}
    tree = {
        "weight_decay": 0.01,
        "multi_task_learning_rates": {
            "backbone_learning_rate": 0.001,
            "tower_learning_rates": {"is_click": 0.001, "is_like": 0.002},
        },
    }
    constant = plan_of_optimizer(parse_config(RecapOptimizerConfig, tree, "x"), "x")
    assert list(constant.rates) == ["backbone", "is_click", "is_like"]
    one = parse_config(RecapOptimizerConfig, {**tree, "groups": {"is_click": {"weight_decay": decay}}}, "x")
    plan = plan_of_optimizer(one, "x")
    assert plan.rates["weight decay"].at(400) == 0.1
    assert plan.steps == 500
    assert [plan.names(line) for line in plan.lines] == ["backbone, click", "like", "weight decay"]
    two = parse_config(
        RecapOptimizerConfig, {**tree, "weight_decay": decay, "groups": {"is_like": {"weight_decay": 0}}}, "x"
    )
    assert list(plan_of_optimizer(two, "x").rates)[3:] == ["weight decay"]
    both = parse_config(
        RecapOptimizerConfig,
        {
            **tree,
            "groups": {
                "is_click": {"weight_decay": decay},
                "is_like": {
                    "weight_decay": {"exponential": {"learning_rate": 0.1, "decay_rate": 0.5, "decay_steps": 10}}
                },
            },
        },
        "x",
    )
    assert list(plan_of_optimizer(both, "x").rates)[3:] == ["weight decay of click", "weight decay of like"]


def test_embedding_tables_with_a_rate_of_their_own_are_drawn_too() -> None:
    decay = {"polynomial": {"learning_rate": 0.1, "final_num_steps": 600}}
    tables = {"adamw": {}, "learning_rate": ramp(0.5, 400), "weight_decay": decay}
    tree = {"optimizer": {"single_task_learning_rate": 0.1}, "embedding_optimizer": tables}
    plan = plan_of_ranker(parse_config(RecapConfig, tree, "x"), ["is_click"], "x")
    assert list(plan.rates) == ["model", "embeddings", "weight decay of embeddings"]
    assert plan.rates["embeddings"].at(400) == 0.5
    assert plan.steps == 750
    default = plan_of_ranker(
        parse_config(RecapConfig, {"embedding_optimizer": {**tables, "weight_decay": 0.1}}, "x"), ["is_click"], "x", 100
    )
    assert list(default.rates) == ["backbone", "is_click", "embeddings"]
