"""Hostile requests by the thousand against a real service: it lives, works, says no 500, and keeps nothing of them."""
