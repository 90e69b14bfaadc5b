"""Fields that all experiments share, with the paper's recipe as defaults.

The other files in this folder start from this one and change some fields. Every field can be overridden on
the command line: ``--config.batch_size=8``.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The default config: colour, sigma 50, the recipe of the ECCV 2020 paper."""
  config = ml_collections.ConfigDict()
  # Seeds the weights, the data order, the crops and the noise.
  config.seed = 0
  # Patches per step over all devices of all processes.
  config.batch_size = 16
  # Number of parts each device's share of the batch is processed in, one after the other, to save memory.
  config.accumulate = 1
  config.steps = 600_000
  # 'l2' (paper, synthetic noise), 'l1' (paper, real noise) or 'charbonnier'.
  config.loss = 'l2'
  # Average the weights over about 1 / (1 - ema_decay) steps and evaluate the average; 0 for no average.
  config.ema_decay = 0.0
  # What to do after a step whose loss, gradient or new weights are not finite (the weights then stay as they
  # were): 'stop' ends the run, 'skip' counts the step and continues.
  config.on_nonfinite = 'stop'
  # Weights to start from: the folder of a run, one of its checkpoints, a .safetensors or .pth file or its
  # URL, hf://OWNER/NAME, or the name of published weights. Those for colour also start a network for grey
  # images, and those with more deformable groups one with fewer (a divisor). '' for random weights.
  config.init_from = ''
  # A larger trained network to learn from, named as for init_from, and the share of its output in the target;
  # the rest is the clean image. A run's folder must name a checkpoint, since its newest one changes.
  config.teacher = ''
  config.teacher_share = 0.0

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
  # 'float32' or 'bfloat16' for activations; weights are always float32.
  config.model.dtype = 'float32'

  config.data = ml_collections.ConfigDict()
  # The folder of each data set to train on, '' for none; several sets are joined. Relative paths are looked
  # for in the current folder, then in SADNET_DATA.
  config.data.train = ml_collections.ConfigDict()
  # A folder of clean images; training adds noise to them.
  config.data.train.clean = ''
  # The data_dir of TensorFlow Datasets, which downloads DIV2K (clean images) to it.
  config.data.train.div2k = ''
  # Noisy and clean images, as downloaded.
  config.data.train.sidd = ''
  config.data.train.renoir = ''
  config.data.train.polyu = ''
  # Any other folder of pairs; docs/data.md describes how files are paired.
  config.data.train.pairs = ''
  # 'files': decode the image files with tf.data. 'tiles': cut them into tiles once, store these as TFDS
  # shards, and read them with tf.data. 'memory': keep all images in device memory.
  config.data.reader = 'files'
  # For 'tiles': where to store them (a relative path is below SADNET_DATA, if that is set), their side, and
  # the distance between two (paper: 300, 150).
  config.data.tiles_dir = 'tiles'
  config.data.tile_px = 300
  config.data.stride_px = 150
  config.data.patch_px = 128
  # Patches to cut from an image or tile each time it is decoded, for as many consecutive steps.
  config.data.crops_per_image = 1
  # With both clean images and pairs: the share of the patches that come from the pairs; each patch is drawn.
  # Needs data.reader = 'memory'. 0 with only one of the two.
  config.data.pairs_share = 0.0
  # Scenes of pairs to hold out from training.
  config.data.held_out = ()
  # Skip and count damaged and unpaired files, held-out ones too, instead of stopping with an error.
  config.data.skip_bad = False

  config.noise = ml_collections.ConfigDict()
  # Standard deviation of the added noise on the scale of 8-bit images, in training and validation. With
  # sigma_255_range, used in validation only. 0 with pairs, which are noisy already.
  config.noise.sigma_255 = 50.0
  # Blind training: lowest and highest standard deviation; each patch draws its own. () to train at sigma_255.
  config.noise.sigma_255_range = ()
  # Probability that a patch with Gaussian noise is clipped to [0, 1] and rounded to 8 bits. The authors
  # clip every patch; 0.5 trains one network for the protocols unclipped and clipped8.
  config.noise.clip = 1.0
  # Share of the clean patches that get the noise of a camera instead of Gaussian noise, and which: a name of
  # sadnet_jax/data/camera_noise.py ('photo', 'brooks', 'cycleisp_sidd', 'cbdnet').
  config.noise.camera = ''
  config.noise.camera_share = 0.0
  # Share of the patches with Gaussian noise whose noise is blurred and correlated between the channels.
  config.noise.grain_share = 0.0
  # Share of the clean patches without any noise, which teaches the network to leave clean pictures alone.
  config.noise.clean_share = 0.0

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
  # Under Muon, biases are trained by Adam at this fraction of the learning rate.
  config.optimizer.bias_rate = 0.4
  # Factor of the updates of the convolutions that predict offsets and masks.
  config.optimizer.offset_rate = 1.0
  # Clip gradients to this global norm; 0 for no clipping.
  config.optimizer.clip_norm = 0.0

  config.validation = ml_collections.ConfigDict()
  # Steps between two validations; 0 for none.
  config.validation.every = 5_000
  # Folders to validate on: `clean` in training on clean images (noise.sigma_255 is added), `pairs` in
  # training on pairs or with the noise of a camera (folders of pairs, or of SIDD's validation .mat files).
  # Missing folders are skipped. The mean PSNR on the first existing set decides which checkpoint is best: of
  # held-out scenes, then of pairs in training on pairs, then of clean images.
  config.validation.clean = ('test/CBSD68', 'test/Kodak24')
  config.validation.pairs = ('test/Nam',)
  # Validate on the scenes of data.held_out too, as the first set.
  config.validation.held_out = True
  # Images per set to validate on (evenly spread; 0 for all), and to show in TensorBoard.
  config.validation.images = 0
  config.validation.pictures = 2

  # Steps between two lines of the log, and between two checkpoints.
  config.log_every = 100
  config.checkpoint_every = 5_000
  # Number of newest checkpoints to keep, besides the best.
  config.keep_checkpoints = 3
  # Fields that do not exist are errors, in the files that start from this one too.
  return config.lock()


def number(text: str, accepted: str) -> float:
  """Parses a config's argument; raises ValueError naming what is accepted."""
  try:
    return float(text)
  except ValueError:
    raise ValueError(f'the argument of the config is {text!r}, but must be {accepted}') from None
