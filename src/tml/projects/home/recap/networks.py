"""The network of a config: one function from each architecture's config to its module.

A network maps (batch, width) to (batch, `out_width`). One that ends in an MLP, as every tower does, has that as `mlp`.
"""

from collections.abc import Sequence

import torch
from torch import nn

from tml.projects.home.recap.dcn import DCN
from tml.projects.home.recap.dlrm import DLRM
from tml.projects.home.recap.mask_net import MaskNet
from tml.projects.home.recap.mlp import MLP
from tml.projects.home.recap.network_config import NetworkConfig

Network = MLP | DCN | DLRM | MaskNet


def build_network(
    config: NetworkConfig, width: int, fields: Sequence[int] = (), generator: torch.Generator | None = None
) -> Network:
    """The network of a config.

    Args:
        config: exactly one architecture.
        width: of what the network reads.
        fields: the widths of the last parts of that which are embeddings; what is before them is dense.
        generator: draws the initial weights.

    Raises:
        ConfigError: an architecture that the input does not fit.
    """
    if config.mask_net_config is not None:
        return MaskNet(config.mask_net_config, width, generator)
    if config.dcn_config is not None:
        return DCN(config.dcn_config, width, generator)
    if config.dlrm_config is not None:
        return DLRM(config.dlrm_config, width, fields, generator)
    assert config.mlp_config is not None
    return MLP(config.mlp_config, width, generator)


def last_linear(network: nn.Module) -> nn.Linear:
    """The last linear layer of a network that ends in an MLP: of a tower, the one that gives the logit."""
    mlp = network if isinstance(network, MLP) else network.mlp
    assert isinstance(mlp, MLP)
    return mlp.linears[-1]
