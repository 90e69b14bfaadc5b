"""Denoises pictures; the same as the command sadnet-denoise.

python denoise.py photo.jpg -o denoised.png
"""

import sys

from sadnet_jax.denoise_files import main

if __name__ == '__main__':
  sys.exit(main())
