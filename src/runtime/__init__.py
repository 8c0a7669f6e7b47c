"""Services of the process: ranks, logging, weight files."""
