"""TwHIN's loss, slow and obvious: one edge and one negative at a time, in float64, with autograd."""

import torch


def complex_product(x, r):
    a, b = torch.tensor_split(x, 2)
    c, d = torch.tensor_split(r, 2)
    product = torch.complex(a, b) * torch.complex(c, d)
    return torch.cat([product.real, product.imag])


OPERATORS = {
    "identity": lambda x, _: x,
    "translation": lambda x, r: x + r,
    "diagonal": lambda x, r: x * r,
    "complex_diagonal": complex_product,
}
SCORES = {
    "dot": lambda q, c: sum(q[i] * c[i] for i in range(len(q))),
    "cosine": lambda q, c: torch.dot(q, c) / torch.sqrt(torch.dot(q, q) * torch.dot(c, c)),
    "l1": lambda q, c: -sum(abs(q[i] - c[i]) for i in range(len(q))),
    "l2": lambda q, c: -torch.sqrt(sum((q[i] - c[i]) ** 2 for i in range(len(q)))),
}


def score(config, weights, number, operator, head, tail, found):
    """`weights` is (directions, 2, relations, dimension): of the end that is asked from, and of the end found."""
    direction = 1 if config.reciprocal and found == "head" else 0
    source, target = (tail, head) if direction else (head, tail)
    apply = OPERATORS[operator.operator]
    if operator.side in ("head", "both"):
        source = apply(source, weights[direction, 0, number])
    if operator.side in ("tail", "both"):
        target = apply(target, weights[direction, 1, number])
    return SCORES[config.score](source, target) / config.temperature


def loss_of_edge(config, positive, negatives):
    """`positive` and `negatives` by the side that is found; negatives are lists of scores."""
    every = torch.stack([*negatives["tail"], *negatives["head"], torch.zeros((), dtype=torch.float64)])[:-1]
    if config.loss == "softmax":
        sides = [-torch.log_softmax(torch.stack([positive[side], *negatives[side]]), 0)[0] for side in ("tail", "head")]
        return sum(sides) / 2
    if config.loss == "margin":
        terms = [torch.relu(config.margin - positive[side] + s) for side in positive for s in negatives[side]]
        return sum(terms) / max(len(terms), 1)
    ones = sum(-torch.log(torch.sigmoid(value)) for value in positive.values()) / 2
    zeros = -torch.log(1 - torch.sigmoid(every))
    return ones + (config.negative_weight * zeros.mean() if len(every) else 0.0)


def penalty(config, operator, vector):
    absolute = vector.abs()
    if operator.operator == "complex_diagonal":
        a, b = torch.tensor_split(vector, 2)
        absolute = torch.sqrt(a**2 + b**2)
    return config.l2 * (absolute**2).sum() + config.n3 * (absolute**3).sum()


def batch_loss(config, relations, tables, weights, batch, known=()):
    """The mean by weight over the edges of a batch; `known` are (head, relation, tail) that are no negatives."""
    total, weight = 0.0, 0.0
    for chunk, slots in enumerate(batch["weight"].tolist()):
        for slot, of_edge in enumerate(slots):
            if of_edge == 0:
                continue
            number = int(batch["relation"].expand_as(batch["head"])[chunk, slot])
            between, operator = relations[number], config.operator_of(relations[number].name)
            head, tail = int(batch["head"][chunk, slot]), int(batch["tail"][chunk, slot])
            heads, tails = tables[between.head], tables[between.tail]
            pairs = {
                "tail": [(head, int(n)) for n in batch["tail_negatives"][chunk]],
                "head": [(int(n), tail) for n in batch["head_negatives"][chunk]],
            }
            left_out = {(head, tail)} | {(h, t) for h, r, t in known if r == number}
            negatives = {
                side: [
                    score(config, weights, number, operator, heads[h], tails[t], side)
                    for h, t in pairs[side]
                    if (h, t) not in left_out
                ]
                for side in pairs
            }
            positive = {
                side: score(config, weights, number, operator, heads[head], tails[tail], side) for side in pairs
            }
            loss = loss_of_edge(config, positive, negatives)
            loss = loss + penalty(config, operator, heads[head]) + penalty(config, operator, tails[tail])
            for direction in range(len(weights)):
                for place, side in ((0, "head"), (1, "tail")):
                    if operator.works_on(side):
                        loss = loss + penalty(config, operator, weights[direction, place, number])
            total, weight = total + of_edge * loss, weight + of_edge
    return total / weight
