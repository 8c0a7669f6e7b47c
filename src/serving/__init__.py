"""The server: a page to try detectors, and an HTTP endpoint. It needs the packages of the extra `serve`."""
