"""Whether our ranks of trained vectors are PyKEEN's: a check for developers, in an environment that has PyKEEN.

    tml twhin prepare umls/train.txt graph --validation umls/valid.txt --test umls/test.txt
    python benchmarks/peers/pykeen_ranks.py --write graph vectors.npz ours.json    # with tml
    python benchmarks/peers/pykeen_ranks.py vectors.npz ours.json                  # with PyKEEN 1.11.1, no tml

The first command makes random vectors in float64 for three models (translation with dot product, DistMult, TransE with
L1 distance) on the graph, rounded so that many scores tie, and measures them by `evaluate_graph`, filtered and raw. The
second measures the same vectors by PyKEEN's RankBasedEvaluator and prints the largest difference of MRR, MR and Hits@k,
by side and for both; of MR, which PyKEEN has in float32, as a share of it. Raw scores are handed to that evaluator in
batches, since its own loop cannot leave the filter out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

MODELS = {"twhin": ("translation", "dot"), "distmult": ("diagonal", "dot"), "transe": ("translation", "l1")}
MEASURES = {
    "mrr": "inverse_harmonic_mean_rank",
    "mr": "arithmetic_mean_rank",
    "hits@1": "hits_at_1",
    "hits@3": "hits_at_3",
    "hits@10": "hits_at_10",
}


def write(graph_folder: Path, vectors: Path, ours: Path) -> None:
    """Make vectors and measure them by tml."""
    import torch

    from tml.projects.twhin.config import TwhinConfig
    from tml.projects.twhin.evaluate import EvaluationConfig, evaluate_graph
    from tml.projects.twhin.graph import GraphFolder
    from tml.projects.twhin.model import TwhinModel

    folder = GraphFolder(graph_folder)
    graphs = {split: folder.read(split) for split in ("train", "validation", "test")}
    arrays: dict[str, Any] = {
        split: np.stack([graph.lhs, graph.rel, graph.rhs], axis=1) for split, graph in graphs.items()
    }
    results: dict[str, Any] = {}
    for seed, (name, (operator, score)) in enumerate(MODELS.items()):
        config = TwhinConfig(embedding_dim=8, operator=operator, score=score)
        generator = torch.Generator().manual_seed(seed)
        model = TwhinModel(folder.sizes, folder.relations, config, generator).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator).round(decimals=0))
        arrays[f"{name}_nodes"] = model.embeddings.read("node", slice(None)).numpy()
        arrays[f"{name}_relations"] = model.operators.weights[0, 0].detach().numpy()
        for filtered in (True, False):
            measured = evaluate_graph(model, graphs, EvaluationConfig(filtered=filtered))["model"]
            key = f"{name} {'filtered' if filtered else 'raw'}"
            results[key] = {"both": measured["micro"], "tail": measured["tail"], "head": measured["head"]}
    np.savez(vectors, **arrays)
    ours.write_text(json.dumps(results, indent=2))


def compare(vectors: Path, ours: Path) -> None:
    """Measure the same vectors by PyKEEN, and print the largest difference for each model and protocol."""
    import torch
    from pykeen.evaluation import RankBasedEvaluator
    from pykeen.models import ERModel
    from pykeen.nn.modules import Interaction
    from pykeen.nn.representation import Embedding
    from pykeen.triples import CoreTriplesFactory

    class Ours(Interaction):
        """The three scores as PyKEEN takes them."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, h: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            if self.name == "twhin":
                return ((h + r) * t).sum(-1)
            if self.name == "distmult":
                return (h * r * t).sum(-1)
            return -(h + r - t).abs().sum(-1)

    arrays, results = np.load(vectors), json.loads(ours.read_text())
    triples = {split: torch.from_numpy(arrays[split]) for split in ("train", "validation", "test")}
    entities, relations = len(arrays["twhin_nodes"]), len(arrays["twhin_relations"])
    for name in MODELS:
        factory = CoreTriplesFactory(triples["train"], entities, relations)
        shape = arrays[f"{name}_nodes"].shape[1]
        model = ERModel(
            triples_factory=factory,
            interaction=Ours(name),
            entity_representations=Embedding,
            entity_representations_kwargs={"embedding_dim": shape},
            relation_representations=Embedding,
            relation_representations_kwargs={"embedding_dim": shape},
        ).double()
        with torch.no_grad():
            for part, table in (("nodes", model.entity_representations), ("relations", model.relation_representations)):
                table[0]._embeddings.weight.copy_(torch.from_numpy(arrays[f"{name}_{part}"]))
        for filtered in (True, False):
            evaluator = RankBasedEvaluator(filtered=filtered)
            if filtered:
                known = [triples["train"], triples["validation"]]
                done = evaluator.evaluate(
                    model, triples["test"], batch_size=64, additional_filter_triples=known, use_tqdm=False
                )
            else:
                for batch in triples["test"].split(64):
                    for target, column in (("head", 0), ("tail", 2)):
                        scores = model.predict_h(batch[:, 1:]) if target == "head" else model.predict_t(batch[:, :2])
                        true = scores.gather(1, batch[:, column : column + 1])
                        evaluator.process_scores_(batch, target, scores, true_scores=true)
                done = evaluator.finalize()
            key = f"{name} {'filtered' if filtered else 'raw'}"
            worst = max(
                abs(done.get_metric(f"{side}.realistic.{theirs}") - results[key][side][own])
                / max(1.0, results[key][side][own])
                for side in ("both", "tail", "head")
                for own, theirs in MEASURES.items()
            )
            mrr = done.get_metric("both.realistic.inverse_harmonic_mean_rank")
            figure = {"name": f"peers.pykeen.{key}", "pykeen_mrr": mrr, "our_mrr": results[key]["both"]["mrr"]}
            print(json.dumps({**figure, "largest_difference": worst}))


def main() -> None:
    """Run the side that the environment has."""
    parser = argparse.ArgumentParser(description="Compare ranks with PyKEEN's.")
    parser.add_argument("--write", metavar="GRAPH", type=Path)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("ours", type=Path)
    given = parser.parse_args()
    if given.write:
        write(given.write, given.vectors, given.ours)
    else:
        compare(given.vectors, given.ours)


if __name__ == "__main__":
    main()
