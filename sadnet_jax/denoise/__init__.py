"""A trained network applied to pictures: `Denoiser`, tiles, the command sadnet-denoise, export."""
