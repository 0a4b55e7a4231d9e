"""Adapter files and their configuration."""
