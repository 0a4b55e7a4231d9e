"""Compare two models: rows, measures, scores, gates and the page."""
