"""Scores: in which order positions are committed, whatever a rule says of how many."""
