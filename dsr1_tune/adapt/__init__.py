"""One command from a data file to a checked, quantised model: every stage in turn, resumable."""
