"""`data clean`: read in chunks, apply rules, deduplicate, judge, hold out, write and report."""
