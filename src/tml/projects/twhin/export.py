"""TwHIN's vectors as files that others read: one for each node type, and one for the relations.

`user.parquet`, `author.parquet` and `post.parquet`, as far as the graph has the type, hold `id` and `vector` in the
order of the ids, with the ids as the log has them. `relations.parquet` has the relation's name as `id` and its
translation as `vector`: adding it to a head's vector gives the query for its tails.
"""

from pathlib import Path

import pyarrow as pa

from tml.core.files import whole_folder
from tml.embeddings.files import write_embeddings
from tml.projects.twhin.data import Graph
from tml.projects.twhin.model import TwhinModel


def export_embeddings(model: TwhinModel, graph: Graph, out: Path) -> None:
    """Write the vectors of a model, trained on `graph`, into the folder `out`, whole or not at all."""
    with whole_folder(out) as folder:
        for node, ids in graph.vocabularies.items():
            vectors = model.embeddings.vectors(node).cpu().numpy()
            write_embeddings(folder / f"{node}.parquet", ids, vectors)
        names = pa.array([relation.name for relation in graph.relations])
        write_embeddings(folder / "relations.parquet", names, model.operators.weights[0, 0].detach().cpu().numpy())
