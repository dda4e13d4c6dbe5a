"""Commands for people at a terminal of the server."""
