"""Commands that align, score and try rewards."""
