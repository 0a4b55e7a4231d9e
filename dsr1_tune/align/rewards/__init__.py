"""Layered rewards: components, gates, functions, reward files, and their preview."""
