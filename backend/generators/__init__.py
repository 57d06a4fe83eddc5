"""Face generators: StyleGAN2, the encoders that invert faces into it, and identity features."""
