"""The published "segdense" TFRecords: what is in them, where they lie, and how they become batches."""

from tml.data.segdense.config import InputsConfig, PreprocessConfig, SegdenseConfig, SegdenseSchemaConfig
from tml.data.segdense.inputs import find_files
from tml.data.segdense.reader import SegdenseReader
from tml.data.segdense.schema import read_schema, write_schema
from tml.data.segdense.synthetic import generate, published_features

__all__ = [
    "InputsConfig",
    "PreprocessConfig",
    "SegdenseConfig",
    "SegdenseReader",
    "SegdenseSchemaConfig",
    "find_files",
    "generate",
    "published_features",
    "read_schema",
    "write_schema",
]
