"""Watch a run: loss, gradients, expert load, alarms, rollback, trackers."""
