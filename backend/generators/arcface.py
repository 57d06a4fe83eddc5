"""ArcFace identity features (Deng et al. 2019), IR-SE50 at 112 pixels."""

from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators import irse


class ArcFace(nn.Module):
    """Identity network with the published key names: faces to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = irse.stem()
        self.body = irse.body()
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.6), nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return unit-norm features (N, 512) of faces (N, 3, 112, 112) in [-1, 1]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))
