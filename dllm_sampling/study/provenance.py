"""What a result was made with: code, versions, checkpoint, device."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dllm_sampling.config.run_config import ModelSettings, RunConfig
from dllm_sampling.engine import run_hooks
from dllm_sampling.loading.folder import checkpoint_folder
from dllm_sampling.plugins.discovery import registry
from dllm_sampling.policies.named import Named
from dllm_sampling.study.code import digest, engine_code, file_hash

_DISTRIBUTIONS = ("dllm-sampling", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow")
_WEIGHTS = ("*.json", "*.safetensors", "tokenizer*", "*.jinja", "*/*.jinja", "merges.txt", "*.model")
_BLOB = re.compile(r"[0-9a-f]{64}")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def plugins() -> list[dict[str, Any]]:
    """Every installed plugin: name, version, source, and whether it was loaded."""
    return [
        {"name": info.name, "version": info.version, "source": info.source, "status": info.status}
        for info in registry().plugins
    ]


def checkpoint_hash(model: ModelSettings) -> str:
    """SHA-256 over config, tokenizer, weights and adapter; the hub's own file hashes where it has them."""
    return _checkpoint_hash(model.source, model.revision, model.adapter)


@functools.cache
def _checkpoint_hash(source: str | None, revision: str | None, adapter: str | None) -> str:
    folders = [checkpoint_folder(source, revision)]
    if adapter is not None:
        folders.append(checkpoint_folder(adapter, what="adapter"))
    found = []
    for folder in folders:
        files = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
        found.append([[path.name, _file_hash(path)] for path in files if path.is_file()])
    return digest(found)


def _file_hash(path: Path) -> str:
    target = path.resolve().name
    if path.is_symlink() and _BLOB.fullmatch(target):
        return target
    return file_hash(path)


def policies_of(run: RunConfig) -> list[Named]:
    """Every policy of a run, held ones included."""
    return [policy for _, policy, _ in run_hooks.slots(run_hooks.policies_of(run.sampler))]


def environment(devices: Iterable[str]) -> dict[str, Any]:
    """Machine, versions and plugins of this process."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "devices": {device: device_name(device) for device in sorted(set(devices))},
        "versions": versions(),
        "engine_code": engine_code(),
        "plugins": plugins(),
    }


def device_name(device: str) -> str:
    """What the device is called by its maker."""
    parsed = torch.device(device)
    if parsed.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(parsed)
    return _processor() if parsed.type == "cpu" else parsed.type


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that `folder` lies in and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
