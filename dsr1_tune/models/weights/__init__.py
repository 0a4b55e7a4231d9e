"""Stored weights: index, layout, number formats, and loading into fewer bits."""
