"""Fields that hold policies: a name, a mapping or an instance, looked up among what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic_core import CoreSchema, core_schema

from dllm_sampling.policies.kinds import BlockSchedule, CachePolicy, Policy, Score, UnmaskingPolicy

if TYPE_CHECKING:
    pass


P = TypeVar("P", bound=Policy)


def resolve(kind: type[P], value: object) -> P:
    """A policy from an instance, a name, or a dict of a name and its parameters."""
    from dllm_sampling.plugins.discovery import registry

    return registry().build(kind, value)


POLICY_MARK = "x-policy-kind"


class Nested:
    """Validates a field that holds a policy through the registry, and writes it as name and settings."""

    def __init__(self, kind: type[Policy]) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: resolve(self.kind, value),
            core_schema.is_instance_schema(self.kind),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda policy: policy.model_dump()
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        # pydantic cannot refer to definitions it did not make: `config.json_schema` turns this into one.
        return {POLICY_MARK: self.kind.kind}


NestedUnmaskingPolicy = Annotated[UnmaskingPolicy, Nested(UnmaskingPolicy)]
"""The type of a field that holds an unmasking policy: a name, a mapping and an instance are all taken."""

NestedCachePolicy = Annotated[CachePolicy, Nested(CachePolicy)]
"""The type of a field that holds a cache policy: a name, a mapping and an instance are all taken."""

NestedBlockSchedule = Annotated[BlockSchedule, Nested(BlockSchedule)]
"""The type of a field that holds a block schedule: a name, a mapping and an instance are all taken."""


NestedScore = Annotated[Score, Nested(Score)]
"""The type of a field that holds a score: a name, a mapping and an instance are all taken."""
