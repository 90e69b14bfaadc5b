"""Applying a trained network to pictures: `Denoiser`, tiles, the command sadnet-denoise, export."""
