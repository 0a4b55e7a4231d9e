"""Scores from small models and word statistics: fluency, difficulty, whether the answer fits the question."""
