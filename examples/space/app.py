"""The page of sadnet-denoise as a Space of Hugging Face; docs/denoise.md says how to set it up."""

import sys

from sadnet_jax.denoise.command import main

if __name__ == '__main__':
  sys.exit(main(['--app', '--host', '0.0.0.0', '--port', '7860']))
