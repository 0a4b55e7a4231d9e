"""From a run to a model that one GPU serves: merge, quantize, compare, and say where everything came from."""
