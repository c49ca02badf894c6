"""PersonaMagic: a person learnt from one photo as words that change over the denoising schedule."""
