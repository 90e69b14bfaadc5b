"""One training run: its config, its step, its loop."""
