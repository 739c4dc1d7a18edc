"""Signals, leases and hangs."""
