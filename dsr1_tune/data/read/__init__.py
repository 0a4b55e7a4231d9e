"""Read rows of any accepted shape from JSON, JSON lines, CSV, TSV and Parquet files."""
