"""tf.Example by protocol buffers' own library: the message described here, and read into arrays value by value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto


def example_class() -> Any:
    """The class of tensorflow.Example, as TensorFlow's example.proto and feature.proto describe it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    lists = {"bytes_list": ("BytesList", Field.TYPE_BYTES), "float_list": ("FloatList", Field.TYPE_FLOAT)}
    lists["int64_list"] = ("Int64List", Field.TYPE_INT64)
    for name, kind in lists.values():
        values = file.message_type.add(name=name).field.add(name="value", number=1, type=kind)
        values.label = Field.LABEL_REPEATED
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, (kind_name, _)) in enumerate(lists.items(), 1):
        _message_field(feature, name, number, kind_name).oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
    _message_field(entry, "value", 2, "Feature")
    _message_field(features, "feature", 1, "Features.FeatureEntry").label = Field.LABEL_REPEATED
    _message_field(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def _message_field(message: Any, name: str, number: int, kind: str) -> Any:
    return message.field.add(
        name=name, number=number, type=Field.TYPE_MESSAGE, type_name=f".tensorflow.{kind}", label=Field.LABEL_OPTIONAL
    )


Example = example_class()


def make_example(values: dict[str, Any]) -> Any:
    """An example with a feature for every value: a list of bytes, or an array of floats or integers."""
    example = Example()
    for name, value in values.items():
        feature = example.features.feature[name]
        if isinstance(value, list):
            feature.bytes_list.value.extend(value)
        elif value.dtype.kind == "f":
            feature.float_list.value.extend(value.tolist())
        else:
            feature.int64_list.value.extend(value.tolist())
    return example


def parse(records: Sequence[bytes], shapes: dict[str, tuple[type, int]]) -> dict[str, np.ndarray[Any, Any]]:
    """The features of a batch as arrays, by (dtype, length), with the quickest plain code that there is for it."""
    arrays = {name: np.zeros((len(records), length), dtype) for name, (dtype, length) in shapes.items()}
    for row, record in enumerate(records):
        for name, feature in Example.FromString(record).features.feature.items():
            arrays[name][row] = np.asarray(getattr(feature, feature.WhichOneof("kind")).value)
    return arrays
