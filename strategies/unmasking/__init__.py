"""Unmasking policies, those that hold others among them."""
