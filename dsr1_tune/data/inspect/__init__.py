"""Look at data: tables, single rows, statistics and templates."""
