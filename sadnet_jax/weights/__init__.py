"""Parameters at rest: files, checkpoints, PyTorch's formats, the published weights."""
