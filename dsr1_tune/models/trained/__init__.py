"""What a run trained: adapters, experts, whole weights, a reward head; saved, loaded and continued from."""
