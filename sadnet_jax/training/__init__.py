"""Training: one run, from its config to its weights. `loop.train` is the way in."""
