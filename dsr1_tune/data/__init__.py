"""From a raw file to records worth learning: read, judge, account for every row."""
