"""Evaluation by published protocols: image sets, methods, metrics, submissions, and a page of results."""
