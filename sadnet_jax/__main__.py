"""``python -m sadnet_jax`` runs the command sadnet-denoise."""

import sys

from sadnet_jax.denoise.command import main

if __name__ == '__main__':
  sys.exit(main())
