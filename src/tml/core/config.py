"""Configs: frozen pydantic models that forbid unknown keys and check everything when they are made.

A file is YAML with anchors, merges (`<<`) and `${VAR}` from the environment; `--set a.b=c` overrides one field of it.
Explicit nulls are the same as leaving a field out. There is one loader, `load_config`, for every config of the package.
"""

import difflib
import hashlib
import json
import os
import re
import types
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tml.core.errors import ConfigError


def _to_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


UtcDatetime = Annotated[datetime, AfterValidator(_to_utc)]
"""A point in time; without an offset it is taken as UTC."""


class BaseConfig(BaseModel):
    """The base of every config. Fields made with `one_of("group")` are alternatives: exactly one must be set.

    With `one_of("group", required=False)` none of them may be set, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items() if v is not None or not cls._has_default_other_than_none(k)}

    @classmethod
    def _has_default_other_than_none(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and not field.is_required() and type(None) not in _options(field.annotation)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads `yes` as true, and pydantic would take true for 1.
        kinds = _leaves(cls.model_fields[str(info.field_name)].annotation)
        if not kinds & {int, float} or bool in kinds:
            return value
        for key, inner in value.items() if isinstance(value, dict) else ():
            if isinstance(inner, bool):
                raise ValueError(f"found {inner} for {key}, allowed is a number")
        if isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(v, bool) for v in value)):
            raise ValueError("allowed is a number")
        return value

    @model_validator(mode="after")
    def _exactly_one_of(self) -> Self:
        groups: dict[tuple[str, bool], list[str]] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and "one_of" in extra:
                groups.setdefault((str(extra["one_of"]), bool(extra["required"])), []).append(name)
        for (_, required), names in groups.items():
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) > 1 or (required and not given):
                found, how_many = " and ".join(given) or "none of them", "exactly" if required else "at most"
                raise ValueError(f"{how_many} one of {', '.join(names)} is allowed, found {found}")
        return self


def one_of(group: str, required: bool = True, **kwargs: Any) -> Any:
    """A field of which exactly one in its group must be set, or at most one; its type must admit None.

    Example:
        >>> class Rate(BaseConfig):
        ...     constant: float | None = one_of("rate")
        ...     ramp: int | None = one_of("rate")
        >>> Rate(constant=0.1).constant
        0.1
    """
    return Field(default=None, json_schema_extra={"one_of": group, "required": required}, **kwargs)


C = TypeVar("C", bound=BaseConfig)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(cls: type[C], path: Path | None, overrides: Sequence[str] = ()) -> C:
    """Read a config file and check it.

    Args:
        cls: the config class to read.
        path: a YAML file; None starts from the defaults.
        overrides: `a.b=value` each, value in YAML; applied in order, after the file.

    Raises:
        ConfigError: one sentence with file, field path, value and what is allowed.
    """
    source = str(path) if path else "the default config"
    tree = _substitute(_read_yaml(path), "", source) if path else {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: found {type(tree).__name__}, allowed is a mapping of field names to values")
    for override in overrides:
        _apply_override(cls, tree, override)
    if overrides:
        source += " with --set"
    return parse_config(cls, tree, source)


def parse_config(cls: type[C], tree: dict[str, Any], source: str) -> C:
    """Check a tree of plain values and make the config of it; `source` names it in errors."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first, *rest = error.errors(include_url=False)
        more = f" (and {len(rest)} more)" if rest else ""
        raise ConfigError(f"{source}: {_explain(cls, first)}{more}") from None


def to_yaml(config: BaseConfig) -> str:
    """The config as YAML, every default written out; `load_config` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def fingerprint(*parts: Any) -> str:
    """A short digest of configs and plain values: equal content, equal digest, in any process."""
    text = json.dumps(parts, sort_keys=True, default=lambda part: part.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable text file ({error})") from None
    try:
        return yaml.load(text, _Loader) or {}
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: found {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def _substitute(value: Any, where: str, source: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(v, f"{where}.{key}".lstrip("."), source) for key, v in value.items()}
    if isinstance(value, list):
        return [_substitute(v, f"{where}.{i}", source) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def from_environment(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{source}: {where}: found ${{{match[1]}}}, but {match[1]} is not in the environment")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", from_environment, value)


def _apply_override(cls: type[BaseConfig], tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set {override}: allowed is FIELD.SUBFIELD=VALUE")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    node: Any = tree
    keys = _override_keys(cls, path)
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(f"--set {override}: found {key!r}, allowed are list positions 0 to {len(node) - 1}")
            index: Any = int(key)
            following = node[index]
        else:
            index, following = key, node.get(key)
        if last:
            node[index] = value
        else:
            # A copy, since YAML anchors make several fields share one mapping.
            node[index] = list(following) if isinstance(following, list) else dict(_mapping(following))
            node = node[index]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _override_keys(cls: type[BaseConfig], path: str) -> list[str]:
    """Split at the dots, but keep what names a key of a free mapping whole: task names have dots."""
    parts = path.split(".")
    annotation: Any = cls
    for depth, part in enumerate(parts):
        model = _config_class(annotation)
        if model is None:
            mapping = next((o for o in _options(annotation) if typing.get_origin(o) is dict), None)
            return parts if mapping is None else parts[:depth] + _mapping_keys(mapping, parts[depth:])
        if part not in model.model_fields:
            return parts
        annotation = model.model_fields[part].annotation
    return parts


def _mapping_keys(mapping: Any, parts: list[str]) -> list[str]:
    """The key of a free mapping, which ends where a field of its values begins, and what follows it."""
    values = typing.get_args(mapping)[1]
    model = _config_class(values)
    fields = model.model_fields if model else {}
    end = next((i for i in range(1, len(parts)) if parts[i] in fields), len(parts))
    key = ".".join(parts[:end])
    return [key, *_override_keys(model, ".".join(parts[end:]))] if model and end < len(parts) else [key]


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _leaves(annotation: Any) -> set[Any]:
    """The plain types that an annotation is made of."""
    if typing.get_origin(annotation) is Annotated:
        return _leaves(typing.get_args(annotation)[0])
    inner = typing.get_args(annotation)
    return set().union(*map(_leaves, inner)) if inner else {annotation}


def _config_class(annotation: Any) -> type[BaseConfig] | None:
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseConfig):
            return option
    return None


def _class_at(cls: type[BaseConfig], location: tuple[str | int, ...]) -> type[BaseConfig] | None:
    """The config class found by following field names, list positions and mapping keys from `cls`."""
    annotation: Any = cls
    for step in location:
        model = _config_class(annotation)
        if model is not None:
            if step not in model.model_fields:
                return None
            annotation = model.model_fields[str(step)].annotation
        else:
            inner = [a for option in _options(annotation) for a in typing.get_args(option) if a is not Ellipsis]
            annotation = inner[-1] if inner else None
    return _config_class(annotation)


def _explain(cls: type[BaseConfig], error: ErrorDetails) -> str:
    location = error["loc"]
    path = ".".join(str(step) for step in location) or "the config"
    if error["type"] == "extra_forbidden":
        owner = _class_at(cls, location[:-1])
        allowed = sorted(owner.model_fields) if owner else []
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{path}: unknown field, allowed here are {', '.join(allowed)}{hint}"
    if error["type"] == "missing":
        return f"{path}: not given, but required"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | BaseModel):
        return f"{path}: {message}"
    shown = repr(error["input"])
    shown = shown if len(shown) < 80 else f"{shown[:77]}..."
    return f"{path}: found {shown}: {message[:1].lower()}{message[1:]}"
