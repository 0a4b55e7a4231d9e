"""Bases and adapters: found, checked, loaded, wrapped."""
