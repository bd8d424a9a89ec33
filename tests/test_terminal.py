"""What others wrote is shown to a terminal, never obeyed; in a pipe it stays as it is."""

from __future__ import annotations

import io

TITLE = "\x1b]0;PWN\x07"
HOSTILE = f"a{TITLE}\x1b[2J\x9b2J\x08\r\u202ez"


class Terminal(io.StringIO):
    def isatty(self):
        return True
