"""``python -m sadnet_jax``: the same as the command sadnet-denoise."""

import sys

from sadnet_jax.denoise.command import main

if __name__ == '__main__':
  sys.exit(main())
