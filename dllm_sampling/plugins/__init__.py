"""Which classes are installed: discovery of plugins, the registry, and fields that hold policies."""

from __future__ import annotations

from dllm_sampling.plugins.discovery import load, registry
from dllm_sampling.plugins.registry import PluginInfo, Registry

__all__ = ["PluginInfo", "Registry", "load", "registry"]
