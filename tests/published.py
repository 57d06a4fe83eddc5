"""Checkpoints in published layouts, and what every network that is trained has to survive."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.efficientnet import timm_name

B4_BLOCKS = 32
ENDS = ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")
LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def official_b4(network: nn.Module) -> dict[str, Tensor]:
    """Return copies of a B4's tensors under efficientnet_pytorch's names; every tensor gets one name of its own."""
    state = network.state_dict()
    layers = [*ENDS, *(f"_blocks.{number}.{layer}" for number in range(B4_BLOCKS) for layer in LAYERS)]
    names = {f"{layer}.{part}": timm_name(f"{layer}.{part}") for layer in layers for part in PARTS}
    renamed = {official: state[ours].clone() for official, ours in names.items() if ours in state}
    assert len(renamed) == len(state)
    return renamed


def assert_trains(network: nn.Module, size: int) -> None:
    """Run forward and backward at batch 1 and 64, in both modes, in both memory orders."""
    for batch, training, order in ((1, True, torch.contiguous_format), (64, True, torch.channels_last)):
        network.to(memory_format=order).train(training)  # type: ignore[call-overload]
        faces = (torch.rand(batch, 3, size, size) * 2 - 1).contiguous(memory_format=order).requires_grad_()
        labels = torch.arange(batch) % 2
        network.zero_grad(set_to_none=True)
        if hasattr(network, "forward_with_extras"):
            logits, extras = network.forward_with_extras(faces, labels.float())
        else:
            logits, extras = network(faces), {}
        (F.cross_entropy(logits, labels) + sum(extras.values())).backward()
        assert logits.shape == (batch, 2)
        assert faces.grad is not None and faces.grad.isfinite().all() and faces.grad.abs().sum() > 0
        assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)
    network.eval()
    faces = torch.rand(3, 3, size, size) * 2 - 1
    with torch.no_grad():
        together, alone = network(faces), torch.cat([network(face[None]) for face in faces])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            together, network(faces.contiguous(memory_format=torch.channels_last)), atol=1e-5, rtol=1e-4
        )


def cam_gradient(network: nn.Module, layer: str, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Return a layer's output and the gradient of the log-odds of fake with respect to it."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        outputs.append(output)

    handle = network.get_submodule(layer).register_forward_hook(keep)
    logits = network.eval()(faces)
    handle.remove()
    (logits[:, 1] - logits[:, 0]).sum().backward()
    assert len(outputs) == 1 and outputs[0].grad is not None
    return outputs[0].detach(), outputs[0].grad
