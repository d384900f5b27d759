"""Which parameters are left out of weight decay.

Decay pulls weights towards 0, which suits matrices; biases and the scales of normalisations have other places to be.
"""

from collections.abc import Collection, Mapping

from torch import nn

from tml.core.errors import ConfigError
from tml.optimizers.groups import find_tables, trainable_parameters, walk

KINDS = ("biases", "norms", "embeddings")

_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def without_decay(model: nn.Module, exceptions: Collection[str]) -> set[nn.Parameter | None]:
    """The trainable parameters that exceptions name.

    Args:
        model: bare or wrapped.
        exceptions: `biases`, all parameters of at most one dimension outside normalisations; `norms`, those of
            normalisation modules; `embeddings`, the tables; or module paths, with all that is in them.

    Raises:
        ConfigError: neither one of the kinds nor a module or parameter of the model.
    """
    left_out: set[nn.Parameter | None] = set()
    norms = {p for _, module in walk(model) if isinstance(module, _NORMS) for p in module._parameters.values()}
    aliases = trainable_parameters(model)
    for exception in exceptions:
        left_out |= _named(model, exception, aliases, norms)
    return left_out


def _named(
    model: nn.Module, exception: str, aliases: Mapping[nn.Parameter, list[str]], norms: set[nn.Parameter | None]
) -> set[nn.Parameter | None]:
    if exception == "biases":
        return {parameter for parameter in aliases if parameter.ndim <= 1 and parameter not in norms}
    if exception == "norms":
        return norms
    if exception == "embeddings":
        return {table.weight for table in find_tables(model).values()}
    inside = f"{exception}."
    found: set[nn.Parameter | None] = {
        parameter for parameter, names in aliases.items() if any(f"{name}.".startswith(inside) for name in names)
    }
    if not found:
        raise ConfigError(
            f"no_weight_decay: found {exception!r}, which the model lacks or does not train; allowed are "
            f"{', '.join(KINDS)} and the paths of modules"
        )
    return found
