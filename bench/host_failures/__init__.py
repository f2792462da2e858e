"""The parts of ``bench/failover.py``."""
