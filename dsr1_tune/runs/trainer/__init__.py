"""The trainer and what it is made of: arguments, batches, optimizers, callbacks."""
