"""What a run knows: the canvases, positions, plans, what a forward shows, and what is decided."""
