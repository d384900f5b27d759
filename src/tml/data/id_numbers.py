"""Ids as whole numbers of 64 bits: integers as they are, text by a digest that is the same everywhere."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tml.core.errors import DataError

NO_ID = -(2**63)
"""Stands for no id."""


def id_numbers(column: pa.Array | pa.ChunkedArray, name: str) -> npt.NDArray[np.int64]:
    """A column of ids as int64, null as `NO_ID`.

    Args:
        column: of integers or strings.
        name: of the column, for errors.

    Raises:
        DataError: a column of another type.

    Example:
        >>> id_numbers(pa.array([7, None]), "post_id").tolist()
        [7, -9223372036854775808]
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_integer(array.type):
        numbers = array.cast(pa.int64(), safe=False).fill_null(NO_ID)
        return np.array(numbers.to_numpy(zero_copy_only=False))
    if not isinstance(array, pa.DictionaryArray):
        if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
            raise DataError(f"{name}: found ids of type {array.type}, allowed are integers and text")
        array = array.dictionary_encode()
    digests = np.array([*map(_digest, array.dictionary.to_pylist()), NO_ID], np.int64)
    found: npt.NDArray[np.int64] = digests[array.indices.fill_null(len(digests) - 1).to_numpy()]
    return found


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
