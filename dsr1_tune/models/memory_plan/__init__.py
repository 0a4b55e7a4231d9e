"""Estimate the memory that a way of training needs."""
