"""For those who write strategies."""
