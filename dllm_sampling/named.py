"""Frozen settings with a kind and a name: what policies and tasks have in common."""

from __future__ import annotations

import inspect
from abc import ABC
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer


class Named(BaseModel, ABC):
    """Settings of one class of a kind. Fields are parameters; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls) and ABC not in cls.__bases__ and "name" not in vars(cls):
            raise TypeError(f"{cls.__name__} needs a name: `name: ClassVar[str] = ...`")

    @model_serializer(mode="wrap")
    def _with_name(self, handler: Any) -> dict[str, Any]:
        return {"name": type(self).name, **handler(self)}
