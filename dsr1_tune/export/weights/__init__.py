"""Merged weights: where they come from, the updates, the certificate that nothing was lost."""
