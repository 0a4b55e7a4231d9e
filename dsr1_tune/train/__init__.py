"""One readable file per training method; each begins with `run(config)`."""
