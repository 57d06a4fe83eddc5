"""The benchmark's peer is the same generator, only written plainly."""

import torch

from backend.generators.stylegan2 import StyleGAN2
from benchmarks.plain_stylegan2 import synthesize


def test_the_plain_generator_draws_the_same_faces_with_the_same_slopes():
    torch.manual_seed(0)
    generator = StyleGAN2(32, mapping_layers=1, channels={4: 12, 8: 12, 16: 8, 32: 6})
    for parameter in generator.parameters():  # zeros, as noise strengths start, would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    slopes = []
    for draw in (generator.synthesize, lambda codes: synthesize(generator, codes)):
        codes = torch.randn(3, 8, 512, generator=torch.Generator().manual_seed(1)).requires_grad_()
        drawn = draw(codes)
        assert drawn.shape == (3, 3, 32, 32)
        (slope,) = torch.autograd.grad(drawn.square().sum(), codes)
        slopes.append((drawn.detach(), slope))
    (ours, our_slope), (plain, plain_slope) = slopes
    assert torch.allclose(ours, plain, atol=1e-4)
    assert torch.allclose(our_slope, plain_slope, rtol=1e-3, atol=1e-4 * float(plain_slope.abs().max()))
