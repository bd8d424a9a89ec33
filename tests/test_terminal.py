"""What others wrote is shown to a terminal, never obeyed; in a pipe it stays as it is."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dllm_sampling
from dllm_sampling.bundled import FOLDER
from dllm_sampling.cli.terminal import shown, visible

TITLE = "\x1b]0;PWN\x07"
HOSTILE = f"a{TITLE}\x1b[2J\x9b2J\x08\r\u202ez"


class Terminal(io.StringIO):
    def isatty(self):
        return True
