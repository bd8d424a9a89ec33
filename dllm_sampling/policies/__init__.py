"""The base classes of what a researcher can swap, the hooks of a run, and helpers that choose positions."""
