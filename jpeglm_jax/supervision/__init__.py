"""Supervision of a training run: preemption signals, the lease on its folder, the watchdog."""
