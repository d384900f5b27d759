import pytest

from tml.core.config import load_config, parse_config
from tml.core.errors import ConfigError
from tml.optimizers.config import AdagradConfig
from tml.projects.home.recap.train import RecapConfig
from tml.projects.twhin.config import TwhinConfig
from tml.run_config import RunConfig


def _refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(TwhinConfig, tree, "twhin.yaml")


def test_default_relations_go_from_users_to_authors():
    config = TwhinConfig()
    assert config.node_types == ("user", "author")
    assert [relation.name for relation in config.relations][:2] == ["follow", "favorited"]
    assert not any(r.type in ("negative_feedback_v2", "report_tweet_clicked") for r in config.relations)


def test_published_names_are_fields():
    sgd = {"sgd": {}, "learning_rate": {"constant": 0.01}}
    tree = {
        "embeddings": {"tables": [{"name": "user", "optimizer": sgd}]},
        "relations": [{"name": "fav", "source": "engagements", "type": "favorited", "operator": "translation"}],
        "translation_optimizer": sgd,
        "in_batch_negatives": 10,
        "global_negatives": 0,
    }
    assert parse_config(TwhinConfig, tree, "twhin.yaml").embeddings.tables[0].optimizer.learning_rate.at(0) == 0.01


def test_a_relation_must_fit_its_source():
    like = {"name": "like", "source": "engagements", "type": "favorited"}
    _refused({"relations": [like, like]}, "relations: found 'like' twice")
    _refused({"relations": []}, "relations")
    _refused({"relations": [{"name": "like", "source": "engagements"}]}, "like is of `engagements`, but has no type")
    _refused({"relations": [{"name": "f", "source": "follows", "type": "favorited"}]}, "allowed there are no type")
    _refused({"relations": [{"name": "f", "source": "follows", "tail": "post"}]}, "allowed there are no type")
    _refused({"relations": [{**like, "source": "likes"}]}, "relations.0.source: found 'likes'")
    _refused({"relations": [{**like, "operator": "rotation"}]}, "relations.0.operator: found 'rotation'")


def test_tables_are_those_of_the_relations_and_once_each():
    table = {"name": "post", "optimizer": {"sgd": {}, "learning_rate": {"constant": 0.01}}}
    _refused({"embeddings": {"tables": [table, table]}}, "tables: found 'post' twice")
    _refused({"in_batch_negatives": -1}, "in_batch_negatives: found -1")


def test_of_a_training_one_field_can_be_given():
    for name, cls in (("twhin", TwhinConfig), ("recap", RecapConfig)):
        config = getattr(load_config(RunConfig, None, [f"{name}.training.log_every=10"]), name)
        assert config.training == cls().training.model_copy(update={"log_every": 10})


def test_of_an_optimizer_the_rate_alone_can_be_given():
    sets = ["twhin.embeddings.optimizer.learning_rate=0.5", "twhin.translation_optimizer.learning_rate=0.25"]
    config = load_config(RunConfig, None, sets).twhin
    for optimizer, rate in ((config.embeddings.optimizer, 0.5), (config.translation_optimizer, 0.25)):
        assert (optimizer.algorithm, optimizer.learning_rate.at(0)) == (AdagradConfig(), rate)
    _refused({"translation_optimizer": {"sgd": {}}}, "translation_optimizer.learning_rate")


def test_training_computes_in_float32():
    for precision in ("bfloat16", "auto"):
        _refused({"training": {"precision": precision}}, f"precision: found '{precision}', allowed is 'float32'")


def test_products_in_bfloat16_are_of_the_softmax_of_products():
    assert parse_config(TwhinConfig, {"products": "bf16", "loss": "softmax"}, "twhin.yaml").products == "bf16"
    allowed = "allowed are the loss softmax and the scores dot and cosine"
    _refused({"products": "bf16"}, f"products: found bf16 with logistic and dot, {allowed}")
    _refused(
        {"products": "bf16", "loss": "softmax", "score": "l2"}, f"products: found bf16 with softmax and l2, {allowed}"
    )
