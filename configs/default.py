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
  # Patches a step, over all devices of all processes.
  config.batch_size = 16
  # Parts that every device's share of a batch is worked through in, to save memory.
  config.accumulate = 1
  config.steps = 600_000
  # 'l2' (paper, synthetic noise), 'l1' (paper, real noise) or 'charbonnier'.
  config.loss = 'l2'
  # Weights are averaged over about 1 / (1 - ema_decay) steps, and the average is
  # what is evaluated; 0 does not average.
  config.ema_decay = 0.0
  # A step whose loss or gradient is not finite never changes the weights; then
  # 'stop' ends the run, 'skip' counts it and goes on.
  config.on_nonfinite = 'stop'
  # What to take the first weights from: a run's folder, one of its checkpoints, a .safetensors file or
  # its URL, or a name of published weights (sadnet_jax/pretrained).
  config.init_from = ''

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
  # What to train on: the folder of each data set, '' for none. Several are joined.
  # A relative path is looked for here, then under the folder that SADNET_DATA names.
  config.data.train = ml_collections.ConfigDict()
  # Clean images; noise is added to them in the step.
  config.data.train.clean = ''
  # DIV2K by TensorFlow Datasets: its data_dir, where it downloads to. Clean images.
  config.data.train.div2k = ''
  # Noisy and clean images, as downloaded.
  config.data.train.sidd = ''
  config.data.train.renoir = ''
  config.data.train.polyu = ''
  # Any other folder of pairs; docs/data.md says how they are found.
  config.data.train.pairs = ''
  # 'files': the image files as they are, by tf.data. 'tiles': tiles of them, cut once
  # and kept as TFDS shards, by tf.data. 'memory': all images in the device's memory.
  config.data.reader = 'files'
  # Of 'tiles': where they are kept, their side and the distance between two (paper: 300, 150).
  config.data.tiles_dir = 'tiles'
  config.data.tile_px = 300
  config.data.stride_px = 150
  config.data.patch_px = 128
  # Patches cut from an image (or tile) when it is decoded; they go to as many consecutive steps.
  config.data.crops_per_image = 1
  # Scenes of pairs that are not trained on.
  config.data.held_out = ()
  # Leave out damaged and unpaired files, and count them, instead of refusing them.
  config.data.skip_bad = False

  config.noise = ml_collections.ConfigDict()
  # Standard deviation on the scale of 8-bit images, of training and of validation;
  # 0 with pairs, which are noisy already.
  config.noise.sigma_255 = 50.0
  # Lowest and highest of blind training, where every patch draws its own; () to train at sigma_255.
  config.noise.sigma_255_range = ()
  # Probability that a noisy patch is clipped to [0, 1] and rounded to 8 bits. The authors
  # clip every patch; 0.5 trains one network for the protocols unclipped and clipped8.
  config.noise.clip = 1.0

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

  config.validation = ml_collections.ConfigDict()
  # Steps between two validations; 0 does not validate.
  config.validation.every = 5_000
  # Of training on clean images, folders of such (noise.sigma_255 is added); of training on
  # pairs, folders of pairs, or of SIDD's validation .mat files. What is not there is left
  # out. The mean over the first set that is there decides which checkpoint is best.
  config.validation.clean = ('test/CBSD68', 'test/Kodak24')
  config.validation.pairs = ('test/Nam',)
  # Validate on the scenes of data.held_out, before the folders.
  config.validation.held_out = True
  # Of every set: images to measure (evenly spread; 0 for all), and to show in TensorBoard.
  config.validation.images = 0
  config.validation.pictures = 2

  # Steps between two lines of log, and between two checkpoints.
  config.log_every = 100
  config.checkpoint_every = 5_000
  # Newest checkpoints to keep, beside the best.
  config.keep_checkpoints = 3
  return config


def number(text: str, want: str) -> float:
  """A config's argument as a number; ValueError with what is wanted if it is none."""
  try:
    return float(text)
  except ValueError:
    raise ValueError(f'the argument of the config: got {text!r}, want {want}') from None
