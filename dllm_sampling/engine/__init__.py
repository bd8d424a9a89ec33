"""The denoising loop and the sampler that drives it."""
