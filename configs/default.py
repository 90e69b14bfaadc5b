"""Fields that all experiments share, with the paper's recipe as defaults.

The other files of this folder import this one and change what differs. Every
field can be overridden on the command line: ``--config.batch_size=8``.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The default config: colour, sigma 50, the recipe of the ECCV 2020 paper."""
  config = ml_collections.ConfigDict()
  # Seeds the weights, the data order, the crops and the noise.
  config.seed = 0
  # Patches a step, over all devices.
  config.batch_size = 16
  config.steps = 600_000
  # 'l2' (paper, synthetic noise) or 'l1' (paper, real noise).
  config.loss = 'l2'

  # The fields of sadnet_jax.SADNet.
  config.model = ml_collections.ConfigDict()
  config.model.channels = 3
  config.model.width = 32
  config.model.offset_width = 32
  config.model.deformable_groups = 8
  config.model.dilations = (1, 2, 3, 4)
  config.model.use_rsab = True
  config.model.use_offset_transfer = True
  config.model.use_context = True
  config.model.rsab_order = 'deform_first'
  config.model.last_kernel = 3
  config.model.offset_init = 'zeros'
  # 'float32' or 'bfloat16'; weights are float32 in both.
  config.model.dtype = 'float32'

  config.data = ml_collections.ConfigDict()
  # A folder of clean images, searched with its subfolders. A relative path is
  # looked for here, then under the folder that SADNET_DATA names.
  config.data.train_dir = 'train/DIV2K_train_HR'
  config.data.patch_px = 128

  config.noise = ml_collections.ConfigDict()
  # Standard deviation on the scale of 8-bit images.
  config.noise.sigma_255 = 50.0
  # Clamp noisy images to [0, 1], as the authors' training does.
  config.noise.clip = True

  config.optimizer = ml_collections.ConfigDict()
  # 'adam' (paper) or 'muon'.
  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 1e-4
  # 'step_halving' (paper) or 'cosine'.
  config.optimizer.schedule = 'step_halving'
  config.optimizer.halve_every = 300_000
  config.optimizer.warmup_steps = 0
  config.optimizer.b1 = 0.9
  config.optimizer.b2 = 0.999
  config.optimizer.eps = 1e-8
  # Biases under Muon are trained by Adam at this fraction of the rate.
  config.optimizer.bias_rate = 0.4
  # Clip the gradient to this global norm; 0 does not.
  config.optimizer.clip_norm = 0.0

  # Steps between two lines of log, and between two checkpoints.
  config.log_every = 100
  config.checkpoint_every = 5_000
  # Checkpoints to keep, newest first.
  config.keep_checkpoints = 3
  return config
