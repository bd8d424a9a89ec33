"""Settings that take exactly what they say."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

LARGEST_INT = 2**63 - 1


class Settings(BaseModel):
    """Fields are parameters. Unknown ones are errors, and so is what only looks like the right type.

    A number is not true, false or text; a whole number is no float; infinities and NaN are refused, and
    integers of more than 64 bits. An integer is fine where a float is asked for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_the_right_type(cls, value: Any, info: ValidationInfo) -> Any:
        _refuse_lookalikes(cls.model_fields[str(info.field_name)].annotation, value)
        return value


def _refuse_lookalikes(annotation: Any, value: Any) -> None:
    """Raise for a value that pydantic would take for a number or a truth value without being one."""
    kinds = set(_alternatives(annotation))
    if isinstance(value, (list, tuple)):
        for inner, item in _items(kinds, value):
            _refuse_lookalikes(inner, item)
        return
    if not kinds <= {int, float, bool, str, type(None)}:
        return
    given = type(value)
    if given is int and abs(value) > LARGEST_INT:
        raise PydanticCustomError("int_size", "Input should be an integer of at most 64 bits")
    wanted = kinds - {type(None)}
    fine = given in wanted or (given is int and float in wanted)
    if fine or given not in {bool, int, float, str, bytes} or wanted == {str}:
        return
    what = {int: "a valid integer", float: "a valid number", bool: "a valid boolean", str: "a valid string"}
    named = [what[kind] for kind in (float, int, str, bool) if kind in wanted]
    raise PydanticCustomError("lookalike", "Input should be {wanted}", {"wanted": " or ".join(named)})


def _alternatives(annotation: Any) -> list[Any]:
    """The types of a union, without what annotates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for part in typing.get_args(annotation) for kind in _alternatives(part)]
    return [annotation]


def _items(kinds: set[Any], values: Any) -> list[tuple[Any, Any]]:
    """The items of a list or tuple, each with the type that it should have, where that is known."""
    for kind in kinds:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin is list or (origin is tuple and args[-1:] == (...,)):
            return [(args[0], value) for value in values]
        if origin is tuple:
            return list(zip(args, values, strict=False))
    return []
