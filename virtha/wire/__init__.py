"""The agent protocol: messages, codec and a sans-IO session. No sockets, no clock."""
