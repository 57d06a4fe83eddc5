"""Forgeries that are made from photographs while a detector learns, each with a mask of what was forged.

- `self_blend`: a face blended with a changed copy of itself, so that nothing but the blend differs from a photograph
  (Self-Blended Images, Shiohara and Yamasaki 2022, section 3);
- `swap`: another person's face, moved onto the landmarks and blended hard, with a feathered edge or in the gradient
  domain;
- `redrawn`: the generator's rendering of the face, blended into its own photograph;
- `resynthesis`: a picture, or its face, put together again from less, as decoders do: enlarged by zeros and a kernel,
  by repeated pixels, or from the low frequencies of blocks.

A batch depends on its randomness alone. Pictures are float32 (N, 3, S, S) in [0, 1], landmarks (N, 5, 2) are x, y in
pixels: eyes, nose, corners of the mouth.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend.detectors.sbi import MASK_SIDE
from backend.errors import UserError
from backend.fakes import LANDMARK_BLOCK, MIN_LANDMARK_SCORE, find_landmarks, poisson_blend
from backend.training.data import REAL, LabelledBatch, LabelledPictures, stack_images
from backend.training.degradation import degrade_as_online

LEARN_FORGERIES = {"sbi"}  # the architectures that learn from these
WAVES = 5  # of the outline of a mask
WAVINESS = 0.12  # amplitude of the longest wave, of the radius
PART_SHARE = 0.25  # how often a mask covers eyes, nose or mouth alone
SOFTNESS = (0.6, 7.0)  # standard deviation of a mask's edge in pixels
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)  # how much of the forged picture shows, as published
BEND = 2.5  # pixels by which a mask is deformed
SHIFT, SCALE = (0.03, 0.015), 0.05  # of a self-blend's source: of the side, and of its size, as published
GAIN_LIMITS = (0.6, 1.6)  # of colours that are matched
BLENDS = ("hard", "feather", "poisson")
BLOCK = 8  # side of the blocks whose high frequencies are dropped

CANDIDATES = 6  # photographs among which a swap takes the one posed most alike
SELF_BLEND, SWAP, REDRAWN, RESYNTHESIS, RENDERED = "self_blend", "swap", "redrawn", "resynthesis", "reconstruction"
MADE_HERE = (SELF_BLEND, SWAP, REDRAWN, RESYNTHESIS)
TURN, SIZES, PLACE = 10.0, (0.9, 1.12), 0.04  # of a picture that is framed anew: degrees, factors, share of the side
REFRAMED = 0.7  # how often

Randomness = np.random.Generator


class ForgeryBatches:
    """Batches of photographs, and of forgeries made from them, that depend on seed and number alone.

    Args:
        examples: Photographs, the generator's renderings of them (`reconstruction`), and fakes that are shown as they
            are.
        size: How many pictures a batch has; half of them are photographs.
        shares: Kind of forgery to its share; `self_blend`, `swap`, `redrawn` and `resynthesis` are made here, and other
            kinds are drawn from `examples`.
        seed: Of the run.
        colours: Largest change of brightness and of contrast.
        compared_with: Source of fakes by others to the sources of the photographs beside them.
    """

    def __init__(
        self,
        examples: LabelledPictures,
        *,
        size: int,
        shares: Mapping[str, float],
        seed: int,
        colours: float,
        compared_with: Mapping[str, Sequence[str]],
    ) -> None:
        self.examples, self.size, self.seed, self.colours = examples, size, seed, colours
        parts = [find_landmarks(part) for part in examples.pictures.split(LANDMARK_BLOCK)]
        self.points = torch.cat([points for points, _ in parts])
        has_face = torch.cat([scores for _, scores in parts]).numpy() >= MIN_LANDMARK_SCORE
        self.members = {kind: np.flatnonzero(examples.kinds == kind) for kind in set(examples.kinds.tolist())}
        self.faces = np.flatnonzero((examples.kinds == REAL) & has_face)
        if not len(self.faces):
            raise UserError("There are no photographs of faces.", "Name a folder that holds some.")
        made = [kind for kind in MADE_HERE if kind != REDRAWN or RENDERED in self.members]
        present = {kind: share for kind, share in shares.items() if kind in made or kind in self.members}
        self.kinds = list(present)
        self.shares = [share / sum(present.values()) for share in present.values()]
        assert examples.sources is not None
        photographs = self.members[REAL]
        self.counterparts = {
            source: photographs[np.isin(examples.sources[photographs], list(sources))]
            for source, sources in compared_with.items()
        }

    def draw(self, number: int) -> LabelledBatch:
        """Return batch `number`, photographs first; a pair is framed, coloured and saved alike."""
        randomness = np.random.default_rng([self.seed, number])
        half = self.size // 2
        kinds = sorted(str(kind) for kind in randomness.choice(self.kinds, half, p=self.shares))
        groups = [self._forge(kind, kinds.count(kind), randomness) for kind in dict.fromkeys(kinds)]
        real, fake, masks = (torch.cat(parts) for parts in zip(*groups, strict=True))
        real, fake, masks = reframe((real, fake, masks), randomness)
        real, fake = recolour((real, fake), self.colours, randomness)
        seeds = [int(seed) for seed in randomness.integers(1 << 32, size=half)]
        pictures = [
            degrade_as_online(picture, np.random.default_rng(seed))
            for side in (real, fake)
            for picture, seed in zip(_to_arrays(side), seeds, strict=True)
        ]
        forged = F.adaptive_avg_pool2d(masks, MASK_SIDE)
        labels = torch.tensor([0.0] * half + [1.0] * half)
        return LabelledBatch(
            stack_images(pictures), labels, [REAL] * half + kinds, torch.cat([torch.zeros_like(forged), forged])
        )

    def _forge(self, kind: str, count: int, randomness: Randomness) -> tuple[Tensor, Tensor, Tensor]:
        """Return photographs, forgeries and masks (N, 1, S, S) of one kind."""
        if kind == REDRAWN or kind not in MADE_HERE:
            indices = randomness.choice(self.members[RENDERED if kind == REDRAWN else kind], count)
            origins = [self._photograph_of(int(index), randomness) for index in indices]
            real, shown = self._pictures(origins), self._pictures(indices)
            masks = torch.ones(count, 1, *real.shape[-2:])
            if kind == REDRAWN:
                masks = face_masks(self.points[origins], real.shape[-1], randomness)
                shown, masks = blend_faces(real, shown, masks, randomness)
            return real, shown, masks
        chosen = randomness.choice(self.faces, count)
        real, points = self._pictures(chosen), self.points[chosen]
        if kind == SELF_BLEND:
            fake, real, masks = self_blend(real, points, randomness)
            return real, fake, masks
        if kind == SWAP:
            others = [self._similar(int(index), randomness) for index in chosen]
            fake, masks = swap(real, points, self._pictures(others), self.points[others], randomness)
            return real, fake, masks
        masks = torch.ones(count, 1, *real.shape[-2:])
        inner = torch.from_numpy(randomness.random(count) < 0.5).view(-1, 1, 1, 1)
        masks = torch.where(inner, face_masks(points, real.shape[-1], randomness), masks)
        return real, real + masks * (resynthesise(real, randomness) - real), masks

    def _pictures(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        return self.examples.pictures[torch.as_tensor(np.asarray(indices))].float() / 255

    def _similar(self, index: int, randomness: Randomness) -> int:
        others = randomness.choice(self.faces, CANDIDATES)
        distances = (self.points[others] - self.points[index]).abs().sum((1, 2))
        return int(others[int(distances.argmin())])

    def _photograph_of(self, index: int, randomness: Randomness) -> int:
        """Return the photograph that a fake was made from, or one of the same source."""
        assert self.examples.sources is not None
        if self.examples.origins is not None and self.examples.origins[index] >= 0:
            return int(self.examples.origins[index])
        alike = self.counterparts.get(str(self.examples.sources[index]), self.members[REAL])
        return int(randomness.choice(alike))


def reframe(groups: Sequence[Tensor], randomness: Randomness) -> list[Tensor]:
    """Mirror, turn, scale and move pictures; the same ones of every group alike."""
    count = len(groups[0])
    mirrored = torch.from_numpy(randomness.random(count) < 0.5)
    moved = torch.from_numpy(randomness.random(count) < REFRAMED)
    angle = _uniform(randomness, (count,), -TURN, TURN) * math.pi / 180
    factor = _uniform(randomness, (count,), *SIZES)
    cosine, sine = angle.cos() * factor, angle.sin() * factor
    matrices = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    matrices = torch.cat([matrices, 2 * _uniform(randomness, (count, 2, 1), -PLACE, PLACE)], 2)
    matrices = torch.where(moved[:, None, None], matrices, torch.eye(2, 3))
    result = []
    for pictures in groups:
        warped = torch.where(moved[:, None, None, None], warp_each(pictures, matrices), pictures)
        result.append(torch.where(mirrored[:, None, None, None], warped.flip(3), warped))
    return result


def recolour(groups: Sequence[Tensor], limit: float, randomness: Randomness) -> list[Tensor]:
    """Change brightness and contrast of pictures; the same ones of every group alike."""
    count = len(groups[0])
    contrast = (
        1
        + _uniform(randomness, (count, 3, 1, 1), -limit, limit) / 2
        + _uniform(randomness, (count, 1, 1, 1), -limit, limit)
    )
    brightness = _uniform(randomness, (count, 1, 1, 1), -limit, limit)
    return [((pictures - 0.5) * contrast + 0.5 + brightness).clamp(0, 1) for pictures in groups]


def _to_arrays(pictures: Tensor) -> list[np.ndarray]:
    """Return (N, 3, S, S) in [0, 1] as a list of uint8 (S, S, 3)."""
    return list((pictures * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy())


def face_masks(points: Tensor, size: int, randomness: Randomness) -> Tensor:
    """Return soft masks (N, 1, S, S) in [0, 1] around the landmarks: a face with a wavy outline, or a part of it."""
    count = len(points)
    left, right, nose, mouth_left, mouth_right = points.unbind(1)
    eyes, mouth = (left + right) / 2, (mouth_left + mouth_right) / 2
    width = (right - left).norm(dim=1, keepdim=True).clamp_min(1)
    across = (right - left) / width
    down = torch.stack([-across[:, 1], across[:, 0]], 1)
    height = ((mouth - eyes) * down).sum(1, keepdim=True).clamp_min(1)
    centre = (eyes + mouth + nose) / 3
    radii = torch.cat([1.05 * width, height, 1.15 * height], 1)  # across, up, down
    radii = radii * _uniform(randomness, (count, 1), 0.75, 1.3)
    partial = torch.from_numpy(randomness.random(count) < PART_SHARE)
    middles = torch.stack([left, right, eyes, nose, mouth], 1)
    chosen = middles[torch.arange(count), torch.from_numpy(randomness.integers(5, size=count))]
    small = torch.cat(
        [
            width * _uniform(randomness, (count, 1), 0.3, 0.9),
            *[width * _uniform(randomness, (count, 1), 0.25, 0.6)] * 2,
        ],
        1,
    )
    centre = torch.where(partial[:, None], chosen, centre)
    radii = torch.where(partial[:, None], small, radii)
    axis = torch.arange(size, dtype=torch.float32)
    places = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None] - centre[:, None, None]
    u = (places * across[:, None, None]).sum(-1) / radii[:, 0, None, None]
    v = (places * down[:, None, None]).sum(-1)
    v = v / torch.where(v < 0, radii[:, 1, None, None], radii[:, 2, None, None])
    angle, distance = torch.atan2(v, u), torch.hypot(u, v)
    outline = torch.ones_like(angle)
    for wave in range(1, WAVES + 1):
        amplitude, phase = (
            _normal(randomness, (count, 1, 1)) * WAVINESS / wave,
            _uniform(randomness, (count, 1, 1), 0, 2 * math.pi),
        )
        outline = outline + amplitude * torch.cos(wave * angle + phase)
    inside = ((outline - distance) * radii[:, 1, None, None] + 0.5).clamp(0, 1)[:, None]
    return blur_each(_bend(inside, randomness), _uniform(randomness, (count,), *SOFTNESS))


def _bend(masks: Tensor, randomness: Randomness) -> Tensor:
    """Deform masks (N, 1, S, S) smoothly, as the elastic deformation of the paper does."""
    count, size = len(masks), masks.shape[-1]
    coarse = _normal(randomness, (count, 2, 5, 5)) * BEND * 2 / size
    field = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 1, size, size], align_corners=False)
    return F.grid_sample(masks, identity + field, align_corners=False)


def self_blend(pictures: Tensor, points: Tensor, randomness: Randomness) -> tuple[Tensor, Tensor, Tensor]:
    """Blend faces with changed copies of themselves.

    Returns:
        The forged pictures, counterparts that were not blended, and masks (N, 1, S, S). Half of the counterparts are
        the changed copies, so that a change of colours or sharpness alone is no sign of a forgery.
    """
    count, size = len(pictures), pictures.shape[-1]
    changed = change_look(pictures, randomness)
    moved_outside = torch.from_numpy(randomness.random(count) < 0.5)[:, None, None, None]
    inner, outer = torch.where(moved_outside, pictures, changed), torch.where(moved_outside, changed, pictures)
    matrices = torch.zeros(count, 2, 3)
    scale = 1 + _uniform(randomness, (count,), -SCALE, SCALE)
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale
    for row, limit in enumerate(SHIFT):
        matrices[:, row, 2] = 2 * _uniform(randomness, (count,), -limit, limit)
    inner = warp_each(inner, matrices)
    masks = face_masks(points, size, randomness)
    ratios = torch.from_numpy(randomness.choice(RATIOS, count)).float().view(count, 1, 1, 1)
    forged = outer + ratios * masks * (inner - outer)
    plain = torch.from_numpy(randomness.random(count) < 0.5)[:, None, None, None]
    return forged.clamp(0, 1), torch.where(plain, pictures, outer), masks


def change_look(pictures: Tensor, randomness: Randomness) -> Tensor:
    """Change colours, contrast and sharpness of pictures a little, each in its own way."""
    count = len(pictures)
    shape = (count, 1, 1, 1)
    sometimes = lambda share: torch.from_numpy(randomness.random(count) < share).view(shape)  # noqa: E731
    changed = torch.where(
        sometimes(0.5), pictures + _uniform(randomness, (count, 3, 1, 1), -20 / 255, 20 / 255), pictures
    )
    grey = changed.mean(1, keepdim=True)
    changed = torch.where(sometimes(0.5), grey + (changed - grey) * _uniform(randomness, shape, 0.6, 1.4), changed)
    middle = changed.mean((1, 2, 3), keepdim=True)
    contrast = (
        middle + (changed - middle) * _uniform(randomness, shape, 0.8, 1.2) + _uniform(randomness, shape, -0.08, 0.08)
    )
    changed = torch.where(sometimes(0.5), contrast, changed)
    smooth = blur_each(changed, _uniform(randomness, (count,), 0.4, 1.1))
    sharp = changed + (changed - smooth) * _uniform(randomness, shape, 0.4, 1.5)
    changed = torch.where(sometimes(0.35), smooth, torch.where(sometimes(0.35), sharp, changed))
    small = torch.cat([_rescaled(picture[None], float(randomness.uniform(0.5, 0.95))) for picture in changed])
    return torch.where(sometimes(0.35), small, changed).clamp(0, 1)


def swap(
    targets: Tensor, points: Tensor, sources: Tensor, source_points: Tensor, randomness: Randomness
) -> tuple[Tensor, Tensor]:
    """Put the sources' faces on the targets, and return the forged pictures and masks (N, 1, S, S)."""
    count, size = len(targets), targets.shape[-1]
    moved = warp_each(sources, _landmark_matrices(points, source_points, size))
    coarse = torch.from_numpy(randomness.random(count) < 0.5).view(count, 1, 1, 1)  # networks draw small faces
    small = torch.cat([_rescaled(picture[None], float(randomness.uniform(0.35, 0.9))) for picture in moved])
    moved = torch.where(coarse, small, moved)
    masks = face_masks(points, size, randomness)
    return blend_faces(targets, moved, masks, randomness)


def blend_faces(targets: Tensor, faces: Tensor, masks: Tensor, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """Blend faces that lie in place into the targets, colours matched, by a method drawn for each; return the masks."""
    matched = match_colours(faces, targets, masks, randomness)
    blends = [str(randomness.choice(BLENDS)) for _ in range(len(targets))]
    forged, used = targets.clone(), masks.clone()
    for index, blend in enumerate(blends):
        if blend == "feather":
            forged[index] = targets[index] + masks[index] * (matched[index] - targets[index])
            continue
        inside = (masks[index] > 0.5).float()
        used[index] = inside
        if blend == "hard":
            edge = blur_each(inside[None], torch.tensor([0.7]))[0]
            forged[index] = targets[index] + edge * (matched[index] - targets[index])
        else:
            face, target = (picture[index].permute(1, 2, 0).double().numpy() * 255 for picture in (matched, targets))
            solved = poisson_blend(face, target, inside[0].numpy() > 0)
            forged[index] = torch.from_numpy(solved / 255).permute(2, 0, 1).float()
    return forged.clamp(0, 1), used


def match_colours(faces: Tensor, targets: Tensor, masks: Tensor, randomness: Randomness) -> Tensor:
    """Give faces the targets' mean, and mostly their spread, of each colour inside the masks."""
    weight = masks / masks.sum((2, 3), keepdim=True).clamp_min(1e-3)
    means = [(weight * picture).sum((2, 3), keepdim=True) for picture in (faces, targets)]
    deviations = [
        (weight * (picture - mean).square()).sum((2, 3), keepdim=True).sqrt()
        for picture, mean in zip((faces, targets), means, strict=True)
    ]
    gains = (deviations[1] / deviations[0].clamp_min(1e-3)).clamp(*GAIN_LIMITS)
    spread = torch.from_numpy(randomness.random(len(faces)) < 0.7).view(-1, 1, 1, 1)
    share = _uniform(randomness, (len(faces), 1, 1, 1), 0.6, 1.0)  # tools do not match perfectly
    matched = (faces - means[0]) * torch.where(spread, gains, torch.ones_like(gains)) + means[1]
    return (faces + share * (matched - faces)).clamp(0, 1)


def resynthesise(pictures: Tensor, randomness: Randomness) -> Tensor:
    """Put pictures together again from less, each in its own way and strength."""
    return torch.cat([_resynthesise_one(picture[None], randomness) for picture in pictures]).clamp(0, 1)


def _resynthesise_one(picture: Tensor, randomness: Randomness) -> Tensor:
    kind = randomness.choice(["zeros", "repeat", "blocks", "peaks"])
    if kind == "blocks":
        return _without_high_frequencies(picture, int(randomness.integers(2, 5)))
    if kind == "peaks":
        period, size = int(randomness.choice([2, 4, 8])), picture.shape[-1]
        pattern = torch.from_numpy(randomness.standard_normal((1, 3, period, period))).float()
        repeated = (pattern - pattern.mean()).repeat(1, 1, size // period + 1, size // period + 1)[..., :size, :size]
        smooth = blur_each(picture, torch.tensor([randomness.uniform(0.5, 0.9)]))
        return smooth + repeated * randomness.uniform(0.5, 3) / 255
    factor = 2 if kind == "zeros" or randomness.random() < 0.7 else 4
    low = (
        F.avg_pool2d(picture, factor)
        if randomness.random() < 0.5
        else _rescaled_to(picture, picture.shape[-1] // factor)
    )
    kernel = _random_kernel(randomness, 2 * factor - 1 + int(randomness.integers(2)))
    if kind == "zeros":
        enlarged = torch.zeros_like(picture)
        enlarged[..., ::factor, ::factor] = low * factor**2
    else:
        enlarged = low.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    padding = kernel.shape[-1] // 2
    padded = F.pad(enlarged, (padding, kernel.shape[-1] - 1 - padding) * 2, mode="reflect")
    drawn = F.conv2d(padded, kernel.expand(3, 1, *kernel.shape), groups=3)
    detail = picture - blur_each(picture, torch.tensor([float(factor) / 2]))  # a decoder adds detail of its own
    return drawn + detail * randomness.uniform(0, 0.9)


def _random_kernel(randomness: Randomness, side: int) -> Tensor:
    """Return a smoothing kernel (side, side) that was not quite learned; its sum is 1."""
    place = (torch.arange(side) - (side - 1) / 2) / (side / 2)
    bell = torch.exp(-place.square() * randomness.uniform(1, 3))
    kernel = torch.outer(bell, bell) * (1 + 0.25 * _normal(randomness, (side, side)))
    return kernel / kernel.sum()


def _without_high_frequencies(picture: Tensor, kept: int) -> Tensor:
    """Keep `kept` x `kept` frequencies of every block of 8 pixels, as an autoencoder's small code does."""
    place = torch.arange(BLOCK)
    basis = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    projection = basis[:kept].t() @ basis[:kept]
    count, channels, height, width = picture.shape
    blocks = picture.view(count, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    rebuilt = torch.einsum("ncayxb,yz,bd->ncazxd", blocks, projection, projection).reshape(picture.shape)
    return 0.5 * (rebuilt + blur_each(rebuilt, torch.tensor([1.2])))


def blur_each(pictures: Tensor, deviations: Tensor) -> Tensor:
    """Smooth pictures (N, C, S, S), each by a Gaussian of its own standard deviation (N,) in pixels."""
    count, channels, height, width = pictures.shape
    reach = max(1, math.ceil(3 * float(deviations.max())))
    places = torch.arange(-reach, reach + 1, dtype=pictures.dtype)
    kernels = torch.exp(-(places[None] ** 2) / (2 * deviations[:, None] ** 2))
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    flat = pictures.reshape(1, count * channels, height, width)
    rows = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernels[:, :, None], groups=count * channels)
    columns = F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="replicate"), kernels[..., None], groups=count * channels)
    return columns.view_as(pictures)


def warp_each(pictures: Tensor, matrices: Tensor) -> Tensor:
    """Sample pictures at places (N, 2, 3), from those of the result in [-1, 1]."""
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _landmark_matrices(points: Tensor, source_points: Tensor, size: int) -> Tensor:
    """Return the affine maps (N, 2, 3) from target to source, both in [-1, 1], that fit the landmarks best."""
    target, source = ((2 * place + 1) / size - 1 for place in (points, source_points))
    ones = torch.ones_like(target[..., :1])
    solved = torch.linalg.lstsq(torch.cat([target, ones], 2).double(), source.double()).solution
    return solved.transpose(1, 2).float()


def _rescaled(picture: Tensor, factor: float) -> Tensor:
    size = picture.shape[-1]
    return _enlarged(_rescaled_to(picture, max(8, round(size * factor))), size)


def _rescaled_to(picture: Tensor, side: int) -> Tensor:
    return F.interpolate(picture, (side, side), mode="bilinear", antialias=True)


def _enlarged(picture: Tensor, side: int) -> Tensor:
    return F.interpolate(picture, (side, side), mode="bicubic").clamp(0, 1)


def _uniform(randomness: Randomness, shape: Sequence[int], low: float, high: float) -> Tensor:
    return torch.from_numpy(randomness.uniform(low, high, tuple(shape))).float()


def _normal(randomness: Randomness, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(randomness.standard_normal(tuple(shape))).float()
