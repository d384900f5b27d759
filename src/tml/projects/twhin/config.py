"""Config of TwHIN: which relations make the graph, how large the vectors are, how they are learnt."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tml.core.config import BaseConfig
from tml.core.training import TrainingConfig
from tml.optimizers.config import AdagradConfig, OptimizerConfig
from tml.optimizers.schedules import LearningRate

Node = Literal["user", "author", "post"]


class RelationConfig(BaseConfig):
    """One kind of edge, from a user to an author or a post.

    Attributes:
        name: what the relation is called in files and metrics.
        source: the log's table that holds the edges.
        type: the engagement that makes an edge, such as `favorited`; required but for `follows`.
        head: the node type an edge comes from.
        tail: the node type it goes to; `author` is the followed account, or the author of the post.
        operator: what the relation does to the head's vector before the product with the tail's.
    """

    name: str = Field(min_length=1)
    source: Literal["follows", "engagements", "history"]
    type: str | None = None
    head: Literal["user"] = "user"
    tail: Literal["author", "post"] = "author"
    operator: Literal["translation"] = "translation"

    @model_validator(mode="after")
    def _fits_its_source(self) -> Self:
        if self.source == "follows" and (self.type is not None or self.tail != "author"):
            raise ValueError(f"{self.name} is of `follows`, allowed there are no type and the tail author")
        if self.source != "follows" and self.type is None:
            raise ValueError(f"{self.name} is of `{self.source}`, but has no type: allowed is an engagement's name")
        return self


def _adagrad(rate: float) -> OptimizerConfig:
    return OptimizerConfig(adagrad=AdagradConfig(), learning_rate=LearningRate(constant=rate))


def _engaged(type_: str) -> RelationConfig:
    return RelationConfig(name=type_, source="engagements", type=type_)


# Whom a user follows, and whose posts the user liked in one of the common ways. Authors whom the user muted or reported
# are left out: relations share the nodes' vectors, so such an edge would draw the two together like any other.
DEFAULT_RELATIONS = (
    RelationConfig(name="follow", source="follows"),
    _engaged("favorited"),
    _engaged("retweeted"),
    _engaged("replied"),
    _engaged("video_playback_50"),
    _engaged("good_clicked_convo_desc_v2"),
    _engaged("profile_clicked_and_profile_engaged"),
)


def _require_unique(field: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{field}: found {', '.join(map(repr, twice))} twice, allowed is each name once")


class TableConfig(BaseConfig):
    """How the vectors of one node type are learnt, where it is not as the others'.

    Attributes:
        name: the node type.
        optimizer: algorithm and learning rate.
    """

    name: Node
    optimizer: OptimizerConfig


class EmbeddingsConfig(BaseConfig):
    """How the vectors of nodes are learnt.

    Attributes:
        tables: the node types with an optimizer of their own.
        optimizer: of all other node types.
        initial_scale: the mean length of a vector at the start; small, so that chance is soon outweighed.
    """

    tables: tuple[TableConfig, ...] = ()
    optimizer: OptimizerConfig = _adagrad(0.04)
    initial_scale: float = Field(default=0.03, gt=0)

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        _require_unique("tables", [table.name for table in self.tables])
        return self


class TwhinConfig(BaseConfig):
    """The graph, the model and its training.

    Attributes:
        embedding_dim: the dimension of vectors and translations.
        relations: the kinds of edge; their order is the order of their numbers.
        embeddings: how the vectors are learnt.
        translation_optimizer: how the relations' translations are learnt.
        in_batch_negatives: nodes a chunk that replace the head of each of its edges, and as many for the tail, drawn
            from the batch by frequency.
        global_negatives: the same, drawn uniformly from the node type.
        negative_weight: what all negatives of an edge weigh together, the edge itself weighing 1.
        batch_size: edges a step.
        chunk_size: edges that share their negatives.
        epochs: passes over the edges, where `training.num_steps` does not say otherwise.
        validation_fraction: share of the edges held out to measure on; 0 measures nothing.
        training: when to log, evaluate and save.
    """

    embedding_dim: int = Field(default=32, gt=0)
    relations: tuple[RelationConfig, ...] = Field(default=DEFAULT_RELATIONS, min_length=1)
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    translation_optimizer: OptimizerConfig = _adagrad(0.1)
    in_batch_negatives: int = Field(default=32, ge=0)
    global_negatives: int = Field(default=96, ge=0)
    negative_weight: float = Field(default=3.0, ge=0)
    batch_size: int = Field(default=4096, gt=0)
    chunk_size: int = Field(default=128, gt=0)
    epochs: float = Field(default=12.0, gt=0)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    training: TrainingConfig = TrainingConfig(num_steps=None, log_every=50, evaluate_every=250, checkpoint_every=500)

    @property
    def node_types(self) -> tuple[Node, ...]:
        """The types of node that the relations join, in the order of their first mention."""
        return tuple(dict.fromkeys(node for r in self.relations for node in (r.head, r.tail)))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _require_unique("relations", [relation.name for relation in self.relations])
        for table in self.embeddings.tables:
            if table.name not in self.node_types:
                known = ", ".join(self.node_types)
                raise ValueError(f"embeddings.tables: found {table.name!r}, allowed are the relations' nodes: {known}")
        return self
