"""The inputs of a batch, from the features of records.

In this order: single elements are extracted, mantissas masked, vectors sliced, types made smaller. The vectors
`continuous` and `binary` become float32 and `discrete` int64, as in an example dataset, unless a smaller type is given.
A feature of a variable number of values gives two tensors, as `torch.nn.EmbeddingBag` takes them: all values under
its name, and under `NAME/offsets` where those of each row begin, with the number of all at the end.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tml.core.errors import ConfigError, DataError
from tml.data.examples import VECTORS
from tml.data.segdense.config import ExtractFeatures, PreprocessConfig, SegdenseSchemaConfig, TruncateAndSlice
from tml.data.segdense.schema import FeatureNames
from tml.data.tf_example_columns import VARIABLE, Array, Arrays, Feature, Ragged, Where

_FLOATS = ("bfloat16", "float16", "float32")


class SegdenseColumns:
    """What is read of the records and what is made of it, but for the labels.

    Args:
        names: the features of the records.
        config: which of them are read.
        preprocess: slices and types.
        labels: names of features that are labels, which are no inputs.

    Attributes:
        features: what a parser has to read, `keep` set where a prefix is enough.

    Raises:
        ConfigError: a name that the schema lacks, or something that cannot be done to a feature of its kind.
        DataError: a mask that cannot be read or does not fit its vector.
    """

    def __init__(
        self,
        names: FeatureNames,
        config: SegdenseSchemaConfig,
        preprocess: PreprocessConfig,
        labels: frozenset[str] = frozenset(),
    ) -> None:
        self.names = names
        chosen = config.features
        read = names.schema.values() if chosen is None else [names.find(name, "features") for name in chosen]
        self.inputs = [f for f in dict.fromkeys(read) if f.name not in labels and not _is_left_out(f, chosen)]
        self.extracted = self._extracted(preprocess.extract_features, labels)
        self.masked_bits = {
            self._floats(name, f"mask_mantissa_features.{name}"): bits
            for name, bits in config.mask_mantissa_features.items()
        }
        self.slices = self._slices(preprocess.truncate_and_slice or TruncateAndSlice())
        self.dtypes = self._dtypes(preprocess.downcast.features if preprocess.downcast else {})
        self.features = tuple(self._to_parse())

    @property
    def widths(self) -> dict[str, int]:
        """The elements of each input of a fixed length, by its name in a batch."""
        widths = dict.fromkeys(self.extracted, 1)
        for feature in self.inputs:
            kept = self.slices.get(feature.name, feature.length)
            widths[self.names.shown(feature)] = kept if isinstance(kept, int) else len(kept)
        return {name: width for name, width in widths.items() if width != VARIABLE}

    def tensors(self, arrays: Arrays, where: Where) -> dict[str, torch.Tensor]:
        """The inputs of a batch by name, (rows, length) each, from its parsed features; `where` names a row.

        Raises:
            DataError: a number that its smaller type does not hold.
        """
        batch: dict[str, torch.Tensor] = {}
        for name, (source, index) in self.extracted.items():
            batch[name] = torch.from_numpy(_fixed(arrays[source])[:, index : index + 1].copy())
        for feature in self.inputs:
            name, values = self.names.shown(feature), arrays[feature.name]
            if isinstance(values, Ragged):
                values, offsets = values
                batch[f"{name}/offsets"] = torch.from_numpy(offsets)
            if bits := self.masked_bits.get(feature.name, 0):
                masked = (values.view(np.int32) & -(1 << bits)).view(np.float32)
                np.copyto(masked, values, where=np.isnan(values))  # without its low bits it would be infinite
                values = masked
            if (kept := self.slices.get(feature.name)) is not None:
                values = np.ascontiguousarray(values[:, :kept]) if isinstance(kept, int) else np.take(values, kept, 1)
            tensor = torch.from_numpy(values)
            if (dtype := self.dtypes.get(feature.name)) is None:
                batch[name] = tensor.to(VECTORS.get(name, tensor.dtype))
            else:
                batch[name] = _smaller(tensor, dtype, f"downcast.features.{name}", where)
        return batch

    def _extracted(self, config: ExtractFeatures | None, labels: frozenset[str]) -> dict[str, tuple[str, int]]:
        """New feature → the vector in the records and the position in it."""
        found: dict[str, tuple[str, int]] = {}
        taken = {self.names.shown(feature) for feature in self.inputs} | labels
        taken |= {self.names.shown(self.names.schema[label]) for label in labels}
        for each in config.extract_feature_table if config else ():
            field = f"extract_features.{each.name}"
            if each.name in taken or each.name in found:
                raise ConfigError(f"{field}: a batch has {each.name} already, allowed is a name of its own")
            source = self.names.find(each.source_tensor, field)
            if source.length == VARIABLE or each.index >= source.length or source.dtype == "bytes_list":
                raise ConfigError(
                    f"{field}: found element {each.index} of {each.source_tensor}, a {source.dtype} of length "
                    f"{source.length}, allowed are elements of a vector of numbers"
                )
            found[each.name] = (source.name, each.index)
        return found

    def _floats(self, name: str, field: str) -> str:
        feature = self.names.find(name, field)
        if feature.dtype != "float_list":
            raise ConfigError(f"{field}: found a {feature.dtype}, allowed are features of floats")
        return feature.name

    def _slices(self, config: TruncateAndSlice) -> dict[str, int | Array]:
        """Vector in the records → how many of the first elements are kept, or which."""
        kept: dict[str, int | Array] = {}
        for vector in ("continuous", "binary"):
            count = getattr(config, f"{vector}_feature_truncation")
            path = getattr(config, f"{vector}_feature_mask_path")
            if count is None and path is None:
                continue
            field = f"truncate_and_slice.{vector}_feature_" + ("mask_path" if count is None else "truncation")
            feature = self.names.find(vector, field)
            if count is not None and (count > feature.length != VARIABLE):
                raise ConfigError(f"{field}: found {count}, allowed are 1 to the {feature.length} of {feature.name}")
            if feature.length == VARIABLE:
                raise ConfigError(f"{field}: {feature.name} has a variable length, allowed are fixed ones")
            kept[feature.name] = count if path is None else _read_mask(path, feature)
        return kept

    def _dtypes(self, config: Mapping[str, str]) -> dict[str, torch.dtype]:
        dtypes = {}
        for name, dtype in config.items():
            feature = self.names.find(name, "downcast.features")
            if feature.dtype == "float_list" and dtype not in _FLOATS:
                raise ConfigError(
                    f"downcast.features.{name}: found {dtype}, allowed for floats are {', '.join(_FLOATS)}"
                )
            dtypes[feature.name] = getattr(torch, dtype)
        return dtypes

    def _to_parse(self) -> list[Feature]:
        """Every feature that is needed, no longer than needed."""
        needed: dict[str, int] = {}
        for feature in self.inputs:
            kept = self.slices.get(feature.name)
            needed[feature.name] = kept if isinstance(kept, int) else feature.length
        for source, index in self.extracted.values():
            needed[source] = max(needed.get(source, 0), index + 1)
        features = (self.names.schema[name] for name in needed)
        return [f if f.length == VARIABLE else replace(f, keep=needed[f.name]) for f in features]


def _is_left_out(feature: Feature, chosen: tuple[str, ...] | None) -> bool:
    if feature.dtype == "bytes_list" and chosen is not None:
        raise ConfigError(f"features: found {feature.name}, a bytes_list, which no tensor holds")
    return feature.dtype == "bytes_list"


def _fixed(values: Array | Ragged) -> Array:
    assert not isinstance(values, Ragged)
    return values


def _read_mask(path: Path, feature: Feature) -> Array:
    """The positions that a mask keeps."""
    try:
        mask: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from None
    allowed = f"allowed are {feature.length:,} booleans or positions from 0 to {feature.length - 1:,}"
    if not isinstance(mask, np.ndarray) or mask.ndim != 1 or mask.dtype.kind not in "bui":
        found = f"an array {mask.shape} of {mask.dtype}" if isinstance(mask, np.ndarray) else "several arrays"
        raise DataError(f"{path}: found {found}, {allowed}")
    if mask.dtype.kind == "b":
        if len(mask) != feature.length:
            raise DataError(f"{path}: found {len(mask):,} booleans, {allowed}")
        mask = np.flatnonzero(mask)
    if not len(mask) or mask.min() < 0 or mask.max() >= feature.length:
        raise DataError(f"{path}: found {f'position {mask.max()}' if len(mask) else 'nothing to keep'}, {allowed}")
    return np.asarray(mask, np.int64)


def _smaller(values: torch.Tensor, dtype: torch.dtype, field: str, where: Where) -> torch.Tensor:
    if values.is_floating_point():
        if dtype == torch.float16:
            largest = torch.finfo(dtype).max
            values = torch.where(values.isfinite(), values.clamp(-largest, largest), values)
        return values.to(dtype)
    small = values.to(dtype)
    odd = small.to(values.dtype) != values
    if odd.any():
        row = int(odd.nonzero()[0, 0])
        place = where(row) if values.ndim == 2 else f"value {row} of the batch"
        raise DataError(f"{place}: {field}: found {values[odd][0].item()}, which {dtype} does not hold")
    return small
