"""Config of TwHIN: which relations make the graph, how large the vectors are, how they are learnt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from tml.core.config import BaseConfig
from tml.core.training import TrainingConfig
from tml.embeddings.local import DataType
from tml.optimizers.config import ALGORITHMS, AdagradConfig, OptimizerConfig
from tml.optimizers.schedules import LearningRate
from tml.projects.twhin.operators import Operator, RelationOperator, Sides
from tml.projects.twhin.scores import Score

Loss = Literal["logistic", "softmax", "margin"]

Name = Annotated[str, Field(min_length=1, pattern=r"^[^/\\]+$")]
"""Of a node type; it names files, too."""


class RelationConfig(BaseConfig):
    """One kind of edge.

    Of a log an edge goes from a user to an author or a post. A graph that was prepared brings its relations with it;
    there a relation of the config says how the graph's relation of that name is learnt, and has no source.

    Attributes:
        name: what the relation is called in files and metrics.
        source: the log's table that holds the edges.
        type: the engagement that makes an edge, such as `favorited`; required but for `follows`.
        head: the node type an edge comes from; `lhs` is another name of the field.
        tail: the node type it goes to, or `rhs`; of a log `author` is the followed account, or the author of the post.
        operator: what the relation does to vectors before they are compared; by default the model's.
        side: the ends of an edge whose vectors it changes; by default the model's.
    """

    name: Annotated[str, Field(min_length=1)]
    source: Literal["follows", "engagements", "history"] | None = None
    type: str | None = None
    head: Name = "user"
    tail: Name = "author"
    operator: Operator | None = None
    side: Sides | None = None

    @model_validator(mode="before")
    @classmethod
    def _published_names(cls, values: Any) -> Any:
        return _renamed(values, {"lhs": "head", "rhs": "tail"})

    @model_validator(mode="after")
    def _fits_its_source(self) -> Self:
        if self.source is None:
            if self.type is not None:
                raise ValueError(f"{self.name} has a type, but no source: allowed are both or none")
            return self
        if self.head != "user" or self.tail not in ("author", "post"):
            ends = f"{self.head} to {self.tail}"
            raise ValueError(f"{self.name} goes from {ends}, allowed of a log is from user to author or post")
        if self.source == "follows" and (self.type is not None or self.tail != "author"):
            raise ValueError(f"{self.name} is of `follows`, allowed there are no type and the tail author")
        if self.source != "follows" and self.type is None:
            raise ValueError(f"{self.name} is of `{self.source}`, but has no type: allowed is an engagement's name")
        return self


def _renamed(values: Any, names: Mapping[str, str]) -> Any:
    """Fields under their published names as ours; one that is given under both is refused."""
    if not isinstance(values, Mapping):
        return values
    for published, own in names.items():
        if published in values and own in values:
            raise ValueError(f"found {published} and {own}, allowed is one of them")
    return {names.get(key, key): value for key, value in values.items()}


def _adagrad(rate: float) -> OptimizerConfig:
    return OptimizerConfig(adagrad=AdagradConfig(), learning_rate=LearningRate(constant=rate))


def _adagrad_if_none(values: Any) -> Any:
    """The default's algorithm where a config says nothing of one, such as only another learning rate."""
    return {"adagrad": {}, **values} if isinstance(values, Mapping) and not set(values) & set(ALGORITHMS) else values


_Optimizer = Annotated[OptimizerConfig, BeforeValidator(_adagrad_if_none)]


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
    """How the vectors of one node type are kept and learnt, where it is not as the others'.

    Attributes:
        name: the node type.
        optimizer: algorithm and learning rate.
        data_type: how a number is kept in the table: fp32, or fp16 or bf16 at half the memory, rounded at random up or
            down so that small steps add up.
        pretrained: an embeddings file with the first vectors of those nodes that it has.
        frozen: the vectors stay as they start.
        num_embeddings: how many nodes the type must have; null takes as many as there are.
        embedding_dim: must be the model's.
        vocab: a Parquet file with the `id` of each node, which must be those of the graph.
    """

    name: Name
    optimizer: OptimizerConfig | None = None
    data_type: DataType = "fp32"
    pretrained: Path | None = None
    frozen: bool = False
    num_embeddings: PositiveInt | None = None
    embedding_dim: PositiveInt | None = None
    vocab: Path | None = None


class EmbeddingsConfig(BaseConfig):
    """How the vectors of nodes are learnt.

    Attributes:
        tables: the node types that have something of their own.
        optimizer: of all other node types.
        initial_scale: the mean length of a vector at the start; small, so that chance is soon outweighed.
        memory: how much memory the vectors and their optimizers' state may take, as `4GB` or `500MB`. Where they need
            more, large tables are cut into partitions on disk; null keeps all in memory.
    """

    tables: tuple[TableConfig, ...] = ()
    optimizer: _Optimizer = _adagrad(0.04)
    initial_scale: float = Field(default=0.03, gt=0)
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)?(KB|MB|GB|TB)$")] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """`memory` as a number."""
        if self.memory is None:
            return None
        units = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
        return round(float(self.memory[:-2]) * units[self.memory[-2:]])

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        _require_unique("tables", [table.name for table in self.tables])
        return self

    def table(self, node: str) -> TableConfig:
        """How the vectors of a node type are kept and learnt."""
        own = next((table for table in self.tables if table.name == node), TableConfig(name=node))
        return own if own.optimizer else own.model_copy(update={"optimizer": self.optimizer})


class TwhinTraining(TrainingConfig):
    """How long to train and what to do on the way; null steps are those of the config's epochs."""

    num_steps: PositiveInt | None = None
    log_every: PositiveInt = 50
    evaluate_every: PositiveInt = 250
    checkpoint_every: PositiveInt = 500

    @model_validator(mode="after")
    def _in_float32(self) -> Self:
        if self.precision != "float32":
            raise ValueError(f"precision: found {self.precision!r}, allowed is 'float32'; `products` can be bf16")
        return self


class TwhinConfig(BaseConfig):
    """The graph, the model and its training.

    Attributes:
        embedding_dim: the dimension of vectors and of the relations' own.
        relations: the kinds of edge; of a log their order is the order of their numbers.
        operator: of relations that have none of their own.
        side: the same, the ends of an edge that it works on.
        score: how vectors are compared.
        reciprocal: each relation has a second operator, for the question "which head?".
        loss: `logistic`, observed edges 1 and negatives 0; `softmax`, the edge among its negatives, for each side;
            `margin`, negatives must score less than the edge by the margin.
        margin: of the loss of that name.
        negative_weight: of the logistic loss: what all negatives of an edge weigh together, the edge itself weighing 1.
        products: the numbers that matrices are multiplied in to compare edges with negatives: fp32; or bf16, with
            `softmax` and with `dot` or `cosine`, several times faster where there are many negatives and the processor
            has AMX (`narrow.py`).
        temperature: scores are divided by it before the loss; cosines, at most 1, need one below it.
        in_batch_negatives: nodes a chunk that replace the head of each of its edges, and as many for the tail, drawn
            from the batch by frequency.
        global_negatives: the same, drawn uniformly from the node type.
        degree_negatives: the same, drawn from the whole graph by the number of edges of the relation.
        all_negatives: every node of the type is a negative, without drawing (1-vs-all).
        exclude_known_edges: a replacement that makes a known edge is no negative; one that makes the edge itself never
            is.
        l2: weighs the mean over edges of the sum of squares of its vectors, added to the loss.
        n3: the same with the cubes of absolute values, of complex ones where the operator is complex.
        dropout: share of the numbers of an edge's vectors that are 0 in a step.
        embeddings: how the vectors are learnt.
        warm_start: a folder of embeddings, as a run writes it, with the first vectors of the nodes and relations that
            it has.
        translation_optimizer: how the vectors of the relations' operators are learnt.
        batch_size: edges a step; `per_replica_batch_size` is another name of the field.
        chunk_size: edges that share their negatives, at most.
        epochs: passes over the edges, where `training.num_steps` does not say otherwise.
        validation_fraction: share of the edges held out to measure on; 0 measures nothing.
        training: when to log, evaluate and save.
    """

    embedding_dim: int = Field(default=32, gt=0)
    relations: tuple[RelationConfig, ...] = Field(default=DEFAULT_RELATIONS, min_length=1)
    operator: Operator = "translation"
    side: Sides = "head"
    score: Score = "dot"
    reciprocal: bool = False
    loss: Loss = "logistic"
    margin: float = Field(default=0.1, ge=0)
    negative_weight: float = Field(default=3.0, ge=0)
    products: Literal["fp32", "bf16"] = "fp32"
    temperature: float = Field(default=1.0, gt=0)
    in_batch_negatives: int = Field(default=32, ge=0)
    global_negatives: int = Field(default=96, ge=0)
    degree_negatives: int = Field(default=0, ge=0)
    all_negatives: bool = False
    exclude_known_edges: bool = False
    l2: float = Field(default=0.0, ge=0)
    n3: float = Field(default=0.0, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    warm_start: Path | None = None
    translation_optimizer: _Optimizer = _adagrad(0.1)
    batch_size: int = Field(default=4096, gt=0)
    chunk_size: int = Field(default=128, gt=0)
    epochs: float = Field(default=12.0, gt=0)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    training: TwhinTraining = TwhinTraining()

    @property
    def node_types(self) -> tuple[str, ...]:
        """The types of node that the config's relations join, in the order of their first mention."""
        return tuple(dict.fromkeys(node for r in self.relations for node in (r.head, r.tail)))

    @model_validator(mode="before")
    @classmethod
    def _published_names(cls, values: Any) -> Any:
        return _renamed(values, {"per_replica_batch_size": "batch_size"})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _require_unique("relations", [relation.name for relation in self.relations])
        for table in self.embeddings.tables:
            if table.embedding_dim not in (None, self.embedding_dim):
                found = f"the embedding_dim {table.embedding_dim} of {table.name}"
                raise ValueError(f"embeddings.tables: found {found}, allowed is the model's, {self.embedding_dim}")
        operators = {self.operator, *(relation.operator for relation in self.relations)}
        if "complex_diagonal" in operators and self.embedding_dim % 2:
            raise ValueError(
                f"embedding_dim: found {self.embedding_dim}, allowed with complex_diagonal are even numbers"
            )
        if self.products == "bf16" and (self.loss != "softmax" or self.score not in ("dot", "cosine")):
            found = f"bf16 with {self.loss} and {self.score}"
            raise ValueError(f"products: found {found}, allowed are the loss softmax and the scores dot and cosine")
        return self

    def relation(self, name: str) -> RelationConfig | None:
        """What the config says of a relation; None where it says nothing."""
        return next((relation for relation in self.relations if relation.name == name), None)

    def operator_of(self, name: str) -> RelationOperator:
        """How a relation changes vectors: its own operator and side, or the model's."""
        own = self.relation(name)
        return RelationOperator((own and own.operator) or self.operator, (own and own.side) or self.side)
