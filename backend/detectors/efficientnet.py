"""EfficientNet (Tan and Le 2019) from timm: B4 as published for face forgery, and B0 narrowed and shortened."""

from torch import nn

VARIANTS = {"efficientnet_b4": "tf_efficientnet_b4"}  # our names to timm's


def build_efficientnet(name: str, classes: int = 2) -> nn.Module:
    """Return an untrained EfficientNet of a published size.

    Args:
        name: A key of `VARIANTS`.
        classes: Number of logits; the network returns (N, classes) for faces (N, 3, S, S) in [-1, 1].
    """
    import timm  # importing it takes seconds, for which the page would have to wait

    return timm.create_model(VARIANTS[name], pretrained=False, num_classes=classes)


def build_slim_efficientnet(width: float = 0.35, depth: float = 0.6, classes: int = 2) -> nn.Module:
    """Return an untrained EfficientNet-B0 scaled by the paper's two factors.

    Args:
        width: Factor on the channels (rounded to multiples of 8); 1.0 is B0.
        depth: Factor on the number of blocks a stage; 1.0 is B0.
        classes: Number of logits; the network returns (N, classes) for faces (N, 3, S, S) in [-1, 1].
    """
    from timm.models.efficientnet import _gen_efficientnet

    # timm's named models fix both factors, so the function behind them is called.
    return _gen_efficientnet("efficientnet_b0", width, depth, pretrained=False, num_classes=classes)
