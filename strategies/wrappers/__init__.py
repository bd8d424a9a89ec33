"""Wrappers: changes to what other policies do."""
