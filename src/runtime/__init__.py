"""Services for the process: ranks, logging, files and weight files."""
