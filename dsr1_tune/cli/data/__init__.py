"""`dsr1-tune data ...`."""
