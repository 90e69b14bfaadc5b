"""Training sets: which files belong together, and tiles of them kept as TFDS shards.

``layouts`` knows the folders as downloaded and needs no TensorFlow; ``tiles`` cuts
them once with TensorFlow Datasets; ``python -m sadnet_jax.data`` does so from
the command line.
"""
