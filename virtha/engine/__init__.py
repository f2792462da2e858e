"""The server's decisions for one cluster. Pure."""
