"""Training and test data: which files belong together, tiles, patches and noise.

`folders` finds folders below SADNET_DATA, `layouts` knows data sets as downloaded and `pairs` any folder of
pairs, `examples` reads their images, `tiles` cuts them into tiles once, `pipeline` and `on_device` cut
patches of them. `noise`, `camera_noise` and `jpeg` synthesise noise, `training_noise` mixes them; `test_sets`
knows test sets by name. Of these only `tiles`, `tile_builder` and `pipeline` import TensorFlow.
``python -m sadnet_jax.data`` cuts tiles.
"""
