"""TR-Net: remove the spatial, spectral and noise traces of a fake face, and show what is left of them."""
