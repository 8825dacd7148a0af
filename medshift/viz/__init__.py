"""Pictures: arrays and tables in, a matplotlib Figure out, one file per kind of picture."""
