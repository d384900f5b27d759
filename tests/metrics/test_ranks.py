"""Two processes that share the examples find what one process finds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tml.metrics.binary import BinaryMetrics
from tml.metrics.bootstrap import BinaryBootstrap

PROGRAM = """
import json, sys
import numpy as np
import torch.distributed as dist
from tml.metrics.binary import BinaryMetrics
from tml.metrics.bootstrap import BinaryBootstrap
from tml.metrics.ranks import merged_over_ranks

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
viewers, y, p = np.load(f"{folder}/examples.npy")[:, rank::2]
metrics, drawn = BinaryMetrics(), BinaryBootstrap(["a"], 8, 0)
metrics.update(y, p)
drawn.update(viewers.astype(int), y, {"a": p})
result = merged_over_ranks(metrics).compute()
aucs = merged_over_ranks(drawn).values("a")["auc"].tolist()
open(f"{folder}/{rank}.json", "w").write(json.dumps([result.auc, result.rce, result.ece, aucs]))
dist.destroy_process_group()
"""


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    viewers, p = rng.integers(0, 20, 301), rng.random(301)
    y = rng.random(301) < p
    np.save(tmp_path / "examples.npy", np.stack([viewers, y, p]))
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    metrics, drawn = BinaryMetrics(), BinaryBootstrap(["a"], 8, 0)
    metrics.update(y, p)
    drawn.update(viewers, y, {"a": p})
    result = metrics.compute()
    for rank in range(2):
        auc, rce, ece, aucs = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (auc, rce, ece) == (result.auc, result.rce, result.ece)
        np.testing.assert_allclose(aucs, drawn.values("a")["auc"], rtol=1e-12)
