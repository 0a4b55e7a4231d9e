"""One command from a data file to a checked, quantized model: every stage in turn, resumable."""
