"""Submissions to SIDD's benchmark and to DND, whose ground truth is not public."""
