"""A small ranker of one's own: what `build_optimizer(algorithm).train()` needs of it, and nothing more.

It learns who engages with what among 500 viewers and 2,000 posts whose tastes and topics are drawn at random.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

TASKS = (
    "recap.engagement.is_favorited",
    "recap.engagement.is_replied",
    "recap.engagement.is_replied_reply_engaged_by_author",
)
VIEWERS, POSTS, WIDTH = 500, 2_000, 16
BASE_RATES = (0.2, 0.05, 0.01)


class RecommendationAlgorithm(nn.Module):
    """A backbone on two embeddings, and a tower for each engagement, by which its learning rate is found."""

    def __init__(self) -> None:
        super().__init__()
        self.viewers = nn.Embedding(VIEWERS, WIDTH)
        self.posts = nn.Embedding(POSTS, WIDTH)
        self.backbone = nn.Sequential(nn.Linear(3 * WIDTH, 64), nn.ReLU())
        # A module's name has no dots, so a task's name is written with slashes.
        self.towers = nn.ModuleDict({task.replace(".", "/"): nn.Linear(64, 1) for task in TASKS})

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """The loss of a batch, and each task's loss for the log."""
        viewer, post = self.viewers(batch["viewer"]), self.posts(batch["post"])
        hidden = self.backbone(torch.cat([viewer, post, viewer * post], dim=1))
        losses = {
            task: nn.functional.binary_cross_entropy_with_logits(tower(hidden)[:, 0], batch[task])
            for task, tower in zip(TASKS, self.towers.values(), strict=True)
        }
        return torch.stack(list(losses.values())).mean(), {"losses": losses}

    def training_batches(self) -> Iterator[dict[str, Tensor]]:
        """One pass over the training data: what forward takes."""
        generator = torch.Generator().manual_seed(0)
        tastes = torch.randn(VIEWERS, 4, generator=generator)
        topics = torch.randn(POSTS, 4, generator=generator)
        base = torch.logit(torch.tensor(BASE_RATES))
        for _ in range(2_000):
            viewer = torch.randint(VIEWERS, (256,), generator=generator)
            post = torch.randint(POSTS, (256,), generator=generator)
            logits = (tastes[viewer] * topics[post]).sum(dim=1, keepdim=True) + base
            labels = torch.bernoulli(torch.sigmoid(logits), generator=generator)
            yield {"viewer": viewer, "post": post, **dict(zip(TASKS, labels.unbind(dim=1), strict=True))}
