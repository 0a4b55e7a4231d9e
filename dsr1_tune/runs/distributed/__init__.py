"""Several processes: launch, collectives, unsharding."""
