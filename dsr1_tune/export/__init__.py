"""From a run to a model that one GPU serves: merge, quantise, compare, and say where everything came from."""
