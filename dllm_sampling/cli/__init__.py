"""The command line. Nothing here imports torch before a command needs it."""

from __future__ import annotations

from dllm_sampling.cli.app import app, main

__all__ = ["app", "main"]
