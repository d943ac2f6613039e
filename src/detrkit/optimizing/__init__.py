"""The frontier of accuracy against latency of one model on this machine."""
