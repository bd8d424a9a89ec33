"""The JSON schema of a run file."""

from __future__ import annotations

import warnings
from typing import Any

from pydantic.errors import PydanticUserError

from dllm_sampling.config.run_config import RunConfig
from dllm_sampling.errors import PluginWarning, told
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.plugins.nested import POLICY_MARK
from dllm_sampling.policies.kinds import KINDS


def json_schema() -> dict[str, Any]:
    """JSON Schema of a run, with the parameters of every installed policy."""
    schema = RunConfig.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for kind in KINDS:
        classes = registry().classes(kind.kind)
        options: list[dict[str, Any]] = [{"enum": list(classes)}] if classes else []
        for name, cls in classes.items():
            try:
                own = cls.model_json_schema()
            except PydanticUserError as error:  # a type that JSON does not have
                warnings.warn(
                    f"the parameters of {name} are not in the schema: {told(error)}",
                    PluginWarning,
                    stacklevel=2,
                )
                own = {"properties": {field: {} for field in cls.model_fields}, "additionalProperties": False}
            definitions.update(own.pop("$defs", {}))
            own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
            own["required"] = ["name", *own.get("required", [])]
            definitions[f"{kind.kind}.{name}"] = own
            options.append({"$ref": f"#/$defs/{kind.kind}.{name}"})
        # Nothing is valid where no plugin offers anything.
        definitions[kind.kind] = {"anyOf": options} if options else {"enum": []}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_with_references(schema)}


def _with_references(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_references(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: _with_references(value) for key, value in node.items() if key != POLICY_MARK}
    if POLICY_MARK in node:
        changed["$ref"] = f"#/$defs/{node[POLICY_MARK]}"
    return changed
