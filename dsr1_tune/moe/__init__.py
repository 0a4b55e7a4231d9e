"""Mixture of experts: where its parts are, and how they learn. Knows torch.nn, no trainers."""
