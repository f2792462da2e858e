"""The scenario language, shared by the simulator and the lab. Pure."""
