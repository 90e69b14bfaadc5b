"""Parameters on disk: files, checkpoints, PyTorch's formats, the published weights."""
