"""An evaluation as tables for a terminal: the protocol above, the degree product beside every figure that has one."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

MOST_RELATIONS = 40
"""Relations that are shown, those with the most edges; the file has all."""


def evaluation_tables(result: Mapping[str, Any]) -> list[Any]:
    """What `evaluate.evaluate_graph` returns, to print."""
    parts: list[Any] = [f"Protocol: {result['protocol']}.", _ranking(result)]
    if result["recall"]:
        parts.append(_recall(result["recall"]))
    if result["pairs"]:
        parts.append(_pairs(result["pairs"]))
    parts.append(verdict(result))
    return parts


def verdict(result: Mapping[str, Any]) -> str:
    """Whether the model knows more than who is active and who is popular."""
    own, degree = result["model"]["micro"]["mrr"], result["degree"]["micro"]["mrr"]
    if own > degree:
        return f"MRR {own:.3f} against {degree:.3f} of the degree product, which knows only how many edges a node has."
    return f"MRR {own:.3f} does not beat the {degree:.3f} of the degree product: popularity alone knows more."


def _ranking(result: Mapping[str, Any]) -> Table:
    table = Table("relation", title="Finding held-out edges (by degree: of the degree product)")
    for name in ("edges", "MRR", "by degree", "Hits@1", "Hits@3", "Hits@10", "by degree", "MR", "AUC", "by degree"):
        table.add_column(name, justify="right")
    model, degree = result["model"], result["degree"]
    relations = sorted(model["relations"], key=lambda name: -model["relations"][name]["edges"])
    for name in relations[:MOST_RELATIONS]:
        of = model["relations"][name]
        table.add_row(name, f"{of['edges']:,}", *_measures(of["micro"], degree["relations"][name]["micro"]))
    if len(relations) > MOST_RELATIONS:
        table.add_row(f"{len(relations) - MOST_RELATIONS} more, in the file")
    table.add_section()
    rows = {"all edges": "micro", "  their tails": "tail", "  their heads": "head", "mean of relations": "macro"}
    for title, key in rows.items():
        count = f"{result['edges']:,}" if key == "micro" else ""
        table.add_row(title, count, *_measures(model[key], degree[key]), style="bold" if key == "micro" else "")
    return table


def _measures(own: Mapping[str, float], degree: Mapping[str, float]) -> list[str]:
    mr = f"{own['mr']:,.1f}"
    hits = [f"{own[f'hits@{k}']:.3f}" for k in (1, 3, 10)]
    return [
        f"{own['mrr']:.3f}",
        f"{degree['mrr']:.3f}",
        *hits,
        f"{degree['hits@10']:.3f}",
        mr,
        f"{own['auc']:.3f}",
        f"{degree['auc']:.3f}",
    ]


def _recall(recall: Mapping[str, Any]) -> Table:
    model, degree = recall["model"], recall["degree"]
    table = Table("relation", title="Finding the tails of each head")
    for name in model["macro"]:
        table.add_column(name.capitalize(), justify="right")
        table.add_column("by degree", justify="right")
    for relation, own in [*model["relations"].items(), ("mean of relations", model["macro"])]:
        other = degree["relations"].get(relation, degree["macro"])
        table.add_row(relation, *(f"{side[name]:.3f}" for name in own for side in (own, other)))
    return table


def _pairs(pairs: Mapping[str, Any]) -> Table:
    table = Table("relation", title="Telling edges from labelled pairs that are none")
    for name in ("AUC", "by degree"):
        table.add_column(name, justify="right")
    model, degree = pairs["model"], pairs["degree"]
    for relation, auc in model["relations"].items():
        table.add_row(relation, f"{auc:.3f}", f"{degree['relations'][relation]:.3f}")
    if model["auc"] is not None:
        table.add_row("mean of relations", f"{model['auc']:.3f}", f"{degree['auc']:.3f}", style="bold")
    return table
