"""How far apart two sets of pictures are, by the features of a network."""

import numpy as np
from numpy.typing import NDArray

from backend.evaluate.metrics.metric import Estimate, mean

DRAWS = 10
DEGREE = 3


def kernel_distance(one: NDArray[np.floating], two: NDArray[np.floating]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of features, the kernel inception distance.

    The kernel is (x . y / D + 1)^3 (Binkowski et al. 2018, section 4). Equal distributions give 0 on average, so a
    single value can lie a little below it.

    Args:
        one: Features (N, D), N > 1.
        two: Features (M, D), M > 1.
    """

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x @ y.T / x.shape[1] + 1) ** DEGREE

    def within(x: NDArray[np.float64]) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    first, second = one.astype(np.float64), two.astype(np.float64)
    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def kernel_distance_of_draws(
    one: NDArray[np.floating], two: NDArray[np.floating], size: int, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Return mean and standard deviation of the distance over seeded draws of `size` rows from each set."""
    randomness = np.random.default_rng(seed)
    return mean(
        kernel_distance(
            one[randomness.choice(len(one), size, replace=False)], two[randomness.choice(len(two), size, replace=False)]
        )
        for _ in range(draws)
    )
