"""Block schedules."""
