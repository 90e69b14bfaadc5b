"""Evaluation by published protocols: sets, methods, figures, submissions, a page to look at."""
