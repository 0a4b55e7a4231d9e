"""Formats that weights are quantized to."""
