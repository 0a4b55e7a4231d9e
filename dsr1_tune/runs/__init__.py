"""The run folder, and what watches and reports a run."""
