"""Templates over the fields of a row: Jinja whose work is counted, and that prints nothing by mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import jinja2

from dllm_sampling.errors import ConfigurationError
from dllm_sampling.inputs import chat_template


class Template:
    """One template. `name` and the text name it in errors. Raises ConfigurationError where it is none."""

    def __init__(self, name: str, text: str) -> None:
        try:
            self._template = _Environment().counted(text)
        except Exception as error:  # noqa: BLE001 - besides Jinja's own errors, Python's for what is nested too deeply
            raise ConfigurationError(f"{name} {text!r} is no template: {error}") from None

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The text for a row; raises ConfigurationError naming the row, the field and what is wrong."""
        try:
            shown = {name: _readable(value, name) for name, value in row.items()}
            with chat_template.budget():
                return self._template.render({"row": shown} | shown)
        except Exception as error:  # noqa: BLE001 - a template is a program, and may fail in any way
            cause = (
                str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            )
            raise ConfigurationError(f"{where}: {cause}; its fields: {', '.join(row)}.") from None


class _Missing(jinja2.StrictUndefined):
    """A null: false, equal to none, replaced by `default`; whatever else is done with it is an error."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]  # a strict one refuses
        return other is None or isinstance(other, _Missing)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(None)


def _readable(value: Any, name: str) -> Any:
    """A value of a row in which what must not be printed knows its name and says so. NaN is as null."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _Missing(hint=f"{name!r} is {'null' if value is None else value}")
    if isinstance(value, Mapping):
        return {key: _readable(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_readable(item, f"{name}[{i}]") for i, item in enumerate(value)]
    return value


def _printed(value: Any) -> Any:
    """What `{{ value }}` writes."""
    chat_template.charged(value)
    if isinstance(value, (str, jinja2.Undefined)):
        return value
    if value is None:
        raise jinja2.UndefinedError("a value that is printed is none")
    if isinstance(value, float) and not math.isfinite(value):
        raise jinja2.UndefinedError(f"a value that is printed is {value}")
    if isinstance(value, (bytes, bytearray)):
        raise jinja2.UndefinedError(f"a value that is printed is {type(value).__name__}, not text")
    return _json(value) if isinstance(value, (bool, int, float, list, tuple, dict)) else value


def _json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    """JSON; nulls in it are null, and dates and the like are texts."""
    return json.dumps(value, ensure_ascii=ensure_ascii, default=_plain, allow_nan=False, **settings)


def _plain(value: Any) -> Any:
    return None if isinstance(value, _Missing) else str(value)


class _Environment(chat_template.Sandbox):
    """The sandbox of chat templates with what a row's templates need."""

    def __init__(self) -> None:
        super().__init__()
        self.undefined = jinja2.StrictUndefined
        self.trim_blocks = self.lstrip_blocks = False
        self.keep_trailing_newline = True
        self.finalize = _printed
        self.filters["tojson"] = chat_template.counted_filter("tojson", _json)
        self.tests |= {"none": _is_none, "defined": _is_defined, "undefined": _is_undefined}


def _is_none(value: Any) -> bool:
    return value is None or isinstance(value, _Missing)


def _is_defined(value: Any) -> bool:
    return isinstance(value, _Missing) or not isinstance(value, jinja2.Undefined)


def _is_undefined(value: Any) -> bool:
    return not _is_defined(value)
