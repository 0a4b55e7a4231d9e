"""Exact and near duplicates, and rows that stand in an evaluation set."""
