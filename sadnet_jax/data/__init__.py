"""Training and test data: which files belong together, tiles, patches and noise.

`layouts` knows data sets as downloaded, `tiles` cuts them into tiles once, `pipeline` and `on_device` cut
patches of them, `noise` and `camera_noise` add noise, `test_sets` knows test sets by name. Of these only
`tiles`, `tile_builder` and `pipeline` import TensorFlow. ``python -m sadnet_jax.data`` cuts tiles.
"""
