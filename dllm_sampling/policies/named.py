"""Frozen settings: what configurations, policies and tasks have in common."""

from __future__ import annotations

import inspect
from abc import ABC
from typing import Any, ClassVar

from pydantic import ConfigDict, model_serializer

from dllm_sampling.inputs.settings import Settings


class Named(Settings, ABC):
    """Settings of one class of a kind."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls) and ABC not in cls.__bases__ and "name" not in vars(cls):
            raise TypeError(f"{cls.__name__} needs a name: `name: ClassVar[str] = ...`")

    @model_serializer(mode="wrap")
    def _with_name(self, handler: Any) -> dict[str, Any]:
        return {"name": type(self).name, **handler(self)}
