"""A detector that is asked about a crop and looks at another one of the same photo."""

from torch import Tensor

from backend.detectors.card import Detector
from backend.views import View


class Looking(Detector):
    """A detector that is shown its own view of a photo where it is asked about the generator's crop.

    Args:
        detector: The detector, whose network it shares.
        view: What it sees.
    """

    def __init__(self, detector: Detector, view: View) -> None:
        super().__init__(
            detector.network, detector.card, temperature=detector.temperature, threshold=detector.threshold
        )
        self.to(detector.mean.device)
        self.view = view.to(detector.mean.device)

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return calibrated, differentiable log-odds of fake (N,) for changed crops (N, 3, C, C) in [0, 1]."""
        return super().logit_fake(self.view.of(images))
