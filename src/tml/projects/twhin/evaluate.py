"""How well a model finds edges that were held out, beside what popularity alone finds.

Each held-out edge is looked for from both of its ends: given the head, its tail among all nodes of that type or among
some that are drawn, and the other way round (`ranking.py`). Filtered, the field's usual way, other edges that are known
from any split do not compete; raw, they do. Measures (`measures.py`) are means over edges and both sides (micro), and
means of the relations' means (macro).

Where a split has labelled pairs, its edges are ranked and the pairs give an AUC by relation besides. Recall@k is of
tails, as items for a user: what the past already has does not compete, but all that is held out does.

Every figure comes with the protocol, in words, and with the same figure of the degree product (`degrees.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt

from tml.core.config import BaseConfig
from tml.core.errors import DataError
from tml.core.progress import progress
from tml.projects.twhin.degrees import Degrees
from tml.projects.twhin.edges import Rows
from tml.projects.twhin.graph import SPLITS, Graph, GraphFolder, Split
from tml.projects.twhin.known import Known, KnownEdges
from tml.projects.twhin.measures import Measures, mean_measures, pair_auc, rank_measures, recalls
from tml.projects.twhin.operators import Side
from tml.projects.twhin.ranking import Ranks, Scorer, rank_among_all, rank_among_drawn

SIDES: tuple[Side, Side] = ("tail", "head")
PAIRS = 1 << 16
"""Labelled pairs that are scored together."""


class EvaluationConfig(BaseConfig):
    """The protocol of an evaluation.

    Attributes:
        split: whose edges are looked for.
        filtered: whether other known edges, of all splits, do not compete.
        candidates: how many are drawn for each edge and side; None ranks among all nodes of the type.
        by: how they are drawn: each node alike, or by its edges of the relation in training.
        recall_at: numbers k of items for Recall@k; none measures none.
        exclude: what of the past does not compete there: edges of the relation, of any relation between the same
            types of node, or nothing.
        seed: of the drawing.
    """

    split: Split = "test"
    filtered: bool = True
    candidates: PositiveInt | None = None
    by: Literal["uniform", "degree"] = "uniform"
    recall_at: tuple[PositiveInt, ...] = ()
    exclude: Literal["relation", "any", "none"] = "relation"
    seed: int = Field(default=0, ge=0)


def evaluate_graph(scorer: Scorer, graphs: Mapping[Split, Graph], config: EvaluationConfig) -> dict[str, Any]:
    """Measure a model and the degree product on the edges of a split.

    Args:
        scorer: the model; its rows are those of the graphs' vocabularies.
        graphs: `train`, the split to measure on, and what other edges are known, all of the same nodes and relations.
        config: the protocol.

    Returns:
        What is written as JSON: `protocol` in words, `config`, `edges`, and for each of `model` and `degree` the
        measures `micro`, `macro`, `tail`, `head` and those of `relations`, by name; `recall` and `pairs` the same
        where they were measured, else None.

    Raises:
        DataError: the split has no edge; a vector is not finite.
    """
    held_out = graphs[config.split].edges_alone()
    if not len(held_out):
        raise DataError(f"{SPLITS[config.split]}.parquet: found no edge, allowed is one or more to measure on")
    scorers: dict[str, Scorer] = {"model": scorer, "degree": Degrees(graphs["train"])}
    measured = {}
    work = len(held_out) * len(scorers) * (len(SIDES) + bool(config.recall_at))
    with progress("evaluate TwHIN", work, "edges") as bar:
        for name, one in scorers.items():
            measured[name] = _Measuring(graphs, held_out, config, bar.advance).measure(one)
    recall = {name: result.pop("recall") for name, result in measured.items()} if config.recall_at else None
    pairs = {name: _pairs(one, graphs[config.split]) for name, one in scorers.items()}
    return {
        "protocol": protocol(graphs, len(held_out), config),
        "config": config.model_dump(mode="json"),
        "edges": len(held_out),
        **measured,
        "recall": recall,
        "pairs": pairs if graphs[config.split].label is not None else None,
    }


def protocol(graphs: Mapping[Split, Graph], edges: int, config: EvaluationConfig) -> str:
    """What was done, in words that can stand beside a figure."""
    among = "all nodes of the type"
    if config.candidates is not None:
        way = "uniformly" if config.by == "uniform" else "by their edges of the relation in training"
        among = f"{config.candidates:,} nodes of the type, drawn {way} for each edge and side (seed {config.seed})"
    filtered = f"filtered: other edges of {_and(list(graphs))} do not compete" if config.filtered else "raw"
    text = (
        f"{edges:,} edges of {config.split}, each looked for from its head and from its tail among {among}; {filtered}"
        "; a tie counts half a place (realistic rank); micro is the mean over edges and both sides, macro the mean of "
        "the relations' means"
    )
    if config.recall_at:
        past = {"relation": "of the relation", "any": "of any relation between the types", "none": ""}[config.exclude]
        known = f"without known edges {past} of {_and(_past(graphs, config.split))}" if past else "the known ones, too"
        text += f"; Recall@k of tails by head, {known}, the mean over heads; macro the mean of the relations"
    return text


@dataclass(frozen=True)
class _Measuring:
    """Ranks the edges of every relation from both sides, and sums up."""

    graphs: Mapping[Split, Graph]
    held_out: Graph
    config: EvaluationConfig
    done: Callable[[int], None] = lambda _: None

    def measure(self, scorer: Scorer) -> dict[str, Any]:
        known = KnownEdges(list(self.graphs.values())) if self.config.filtered else None
        rng = np.random.default_rng(self.config.seed)
        ranks: dict[Side, list[Ranks]] = {side: [] for side in SIDES}
        relations: dict[str, Any] = {}
        recall: dict[str, Measures] = {}
        for number, relation in enumerate(self.held_out.relations):
            edges = len(self.held_out.of_relation(number))
            if not edges:
                continue
            for side in SIDES:
                ranks[side].append(self._rank(scorer, number, side, known.of(number, side) if known else None, rng))
            relations[relation.name] = {"edges": edges, **_by_side(ranks["tail"][-1], ranks["head"][-1])}
            if self.config.recall_at:
                recall[relation.name] = self._recall(scorer, number)
        result: dict[str, Any] = {**_by_side(Ranks.concatenate(ranks["tail"]), Ranks.concatenate(ranks["head"]))}
        result["macro"] = mean_measures([measures["micro"] for measures in relations.values()])
        result["relations"] = relations
        if self.config.recall_at:
            result["recall"] = {"macro": mean_measures(list(recall.values())), "relations": recall}
        return result

    def _rank(self, scorer: Scorer, relation: int, side: Side, known: Known | None, rng: np.random.Generator) -> Ranks:
        ends, targets = _ends(self.held_out, relation, side)
        if self.config.candidates is None:
            return rank_among_all(scorer, relation, side, ends, targets, known, self.done)

        def drawn(shape: tuple[int, int]) -> Rows:
            if self.config.by == "degree":
                return rng.choice(_ends(self.graphs["train"], relation, side)[1], shape)
            between = self.held_out.relations[relation]
            return rng.integers(0, self.held_out.sizes[between.tail if side == "tail" else between.head], shape)

        return rank_among_drawn(scorer, relation, side, ends, targets, drawn, self.config.candidates, known, self.done)

    def _recall(self, scorer: Scorer, relation: int) -> Measures:
        exclude, known = self.config.exclude, None
        if exclude != "none":
            past = [self.graphs[split] for split in _past(self.graphs, self.config.split)]
            known = KnownEdges(past, any_relation=exclude == "any").of(relation, "tail")
        users, items = _ends(self.held_out, relation, "tail")
        ranks = rank_among_all(scorer, relation, "tail", users, items, known, self.done)
        return recalls(ranks, users, self.config.recall_at)


def _by_side(tail: Ranks, head: Ranks) -> dict[str, Measures]:
    both = Ranks.concatenate([tail, head])
    return {"micro": rank_measures(both), "tail": rank_measures(tail), "head": rank_measures(head)}


def _pairs(scorer: Scorer, graph: Graph) -> dict[str, Any] | None:
    """AUC of labelled pairs by relation, and the mean of the relations."""
    if graph.label is None:
        return None
    relations: dict[str, float] = {}
    for number, relation in enumerate(graph.relations):
        pairs = graph.of_relation(number)
        auc = pair_auc(scores_of(scorer, number, graph.lhs[pairs], graph.rhs[pairs]), graph.label[pairs])
        if auc is not None:
            relations[relation.name] = auc
    return {"auc": float(np.mean(list(relations.values()))) if relations else None, "relations": relations}


def scores_of(scorer: Scorer, relation: int, heads: Rows, tails: Rows) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores of edges of one relation, (n,) float64, a block at a time."""
    blocks = [np.zeros(0)]
    with torch.inference_mode():
        for start in range(0, len(heads), PAIRS):
            ends = (torch.from_numpy(rows[start : start + PAIRS]).to(scorer.device) for rows in (heads, tails))
            blocks.append(scorer.score(relation, *ends).double().cpu().numpy())
    return np.concatenate(blocks)


def _ends(graph: Graph, relation: int, side: Side) -> tuple[Rows, Rows]:
    """The given ends of a relation's edges, and the ends to be found."""
    edges = graph.of_relation(relation)
    heads, tails = graph.lhs[edges], graph.rhs[edges]
    return (heads, tails) if side == "tail" else (tails, heads)


def _past(graphs: Mapping[Split, Graph], split: Split) -> list[Split]:
    """The splits before one, of those that are there; what is trained on is always past."""
    order: list[Split] = ["train", "validation", "test"]
    return [name for name in order[: max(1, order.index(split))] if name in graphs]


def _and(names: list[Split]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def evaluate_edges(
    model: Scorer, train: Graph | GraphFolder, held_out: Graph, rng: np.random.Generator, candidates: int = 100
) -> dict[str, float]:
    """AUC and MRR of held-out edges by a protocol that is quick enough to follow a training: raw, uniform candidates.

    Args:
        model: scores the edges.
        train: the edges the model learnt from, whose degrees make the baseline.
        held_out: the edges to find.
        rng: draws the candidates, the same for the model and for the baseline.
        candidates: how many for each edge and side.

    Returns:
        `auc`, `mrr`, `degree_auc`, `degree_mrr`, the means of the relations; and `auc/RELATION` and so on; a relation
        that has no held-out edge is left out.
    """
    config = EvaluationConfig(filtered=False, candidates=candidates, seed=int(rng.integers(1 << 62)))
    results: dict[str, float] = {}
    if not len(held_out):
        return results
    scorers: dict[str, Scorer] = {"": model, "degree_": Degrees(train)}
    for prefix, scorer in scorers.items():
        measured = _Measuring({}, held_out, config).measure(scorer)
        for name in ("auc", "mrr"):
            results[f"{prefix}{name}"] = measured["macro"][name]
            results |= {f"{prefix}{name}/{r}": m["micro"][name] for r, m in measured["relations"].items()}
    return results
