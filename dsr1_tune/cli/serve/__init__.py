"""Commands that talk to a model or serve it."""
