"""Pure tensor functions: no state, files, ranks or logging."""
