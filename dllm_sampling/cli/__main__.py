"""`python -m dllm_sampling.cli`."""

from __future__ import annotations

from dllm_sampling.cli.app import main

main()
