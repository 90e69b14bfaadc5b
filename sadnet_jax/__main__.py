"""``python -m sadnet_jax`` runs the command sadnet-denoise."""

from sadnet_jax.denoise.command import run

if __name__ == '__main__':
  run()
