"""Losses as pure functions that return sums; the training loop divides once by the global count of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pixel_sail.config import Config, ExpertConfig, LossConfig
from pixel_sail.experts.expert import resize_features
from pixel_sail.types import LOGITS_AT_ONCE, Batch, DeferredLogits, Masks, Output

LOSS_COUNTS = {
    "lm": "lm",
    "bce": "mask",
    "dice": "mask",
}  # loss -> its denominator in Batch.counts(); losses of every run

SCORE_COUNTS = {"score": "mask", "presence": "answer"}  # and of a model with a score head

# PointRend (arXiv 1912.08193): three candidates per point; three quarters of the points are the most uncertain ones.
OVERSAMPLE, IMPORTANT_SHARE = 3, 0.75


def loss_counts(config: Config) -> dict[str, str]:
    """The denominator of every loss of a run, a key of Batch.counts(). distill_<expert> is a mean over images."""
    scores = SCORE_COUNTS if config.architecture.mask_scores else {}
    return LOSS_COUNTS | {f"distill_{expert.name}": "image" for expert in config.experts} | scores


def loss_weights(config: Config) -> dict[str, float]:
    """The weight of every loss of a run, in the order of `loss_counts`."""
    weights = {name: getattr(config.loss, name) for name in LOSS_COUNTS}
    weights |= {f"distill_{expert.name}": expert.weight for expert in config.experts}
    return weights | (dict.fromkeys(SCORE_COUNTS, config.loss.score) if config.architecture.mask_scores else {})


def compute_losses(output: Output, batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """Unweighted sums {"lm", "bce", "dice"}, float32 scalars; divide them by the counts that LOSS_COUNTS names.

    And {"score", "presence"}, with SCORE_COUNTS, of a model with a score head.
    """
    bce, dice = mask_losses(output, batch, config)
    sums = {"lm": next_token_loss(output.logits, batch.labels, batch.label_weights), "bce": bce, "dice": dice}
    return sums if output.score_logits is None else sums | score_losses(output, batch)


def next_token_loss(logits: Tensor | DeferredLogits, labels: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted cross entropies. logits (M, V), labels (M,) int64, weights (M,)."""
    return (cross_entropies(logits, labels) * weights).sum()


def cross_entropies(logits: Tensor | DeferredLogits, labels: Tensor) -> Tensor:
    """(M,) float32. More than LOGITS_AT_ONCE logits go through in pieces, which backward computes a second time."""
    deferred = isinstance(logits, DeferredLogits)
    states, vocabulary = (logits.states, logits.vocabulary) if deferred else (logits, logits.shape[1])

    def of_piece(states: Tensor, labels: Tensor) -> Tensor:
        piece = logits.head(states) if deferred else states
        return F.cross_entropy(piece.float(), labels, reduction="none")

    rows = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(labels) <= rows:
        return of_piece(states, labels)
    pieces = zip(states.split(rows), labels.split(rows), strict=True)
    # nothing is random here; keeping the state of random numbers would make the GPU wait
    return torch.cat([checkpoint(of_piece, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces])


def mask_losses(output: Output, batch: Batch, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Sums over all masks of the BCE and Dice losses at sampled points (Pixel-SAIL, arXiv 2504.10465)."""
    bce = dice = sum(logits.float().sum() * 0 for logits in output.mask_logits)  # the head stays in the graph
    for group in _same_size(output.mask_logits, batch.masks):
        logits = torch.cat([output.mask_logits[i] for i in group]).float()  # (K, h', w')
        targets = torch.cat([batch.masks[i].pixels().mT for i in group]).float().mT  # of columns, which are contiguous
        candidates = torch.cat(
            [draw_candidates(batch.seeds[i], len(batch.masks[i]), config, logits.device) for i in group]
        )
        points = choose_points(logits.detach(), candidates, config)
        at_points = sample_points(logits, points)
        truth = sample_points(targets, points)
        bce = bce + F.binary_cross_entropy_with_logits(at_points, truth, reduction="none").mean(1).sum()
        dice = dice + dice_loss(at_points, truth).sum()
    return bce, dice


def score_losses(output: Output, batch: Batch) -> dict[str, Tensor]:
    """Sums of binary cross entropies: of the score of each mask with its IoU, and of presence in each question."""
    ious: list[Tensor] = [output.score_logits.new_empty(0)] * len(batch.masks)
    for group in _same_size(output.mask_logits, batch.masks):
        logits = torch.cat([output.mask_logits[i] for i in group]).detach()
        of_group = mask_ious(logits, torch.cat([batch.masks[i].pixels().mT for i in group]).mT)
        for i, part in zip(group, of_group.split([len(batch.masks[i]) for i in group]), strict=True):
            ious[i] = part
    sums = ((output.score_logits, torch.cat(ious)), (output.presence_logits, batch.with_mask))
    return {
        name: F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        for name, (logits, target) in zip(SCORE_COUNTS, sums, strict=True)
    }


def mask_ious(logits: Tensor, truth: Tensor) -> Tensor:
    """(K,) float32: the IoU of the masks logits > 0 (K, h', w'), each logit as a square of pixels, with the truth.

    `truth`: (K, H, W) in {0, 1}, H and W multiples of h' and w'. Two empty masks have the IoU 1.
    """
    (height, width), drawn = logits.shape[1:], (logits > 0).float()
    square = (truth.shape[2] // width, truth.shape[1] // height)
    cells = F.avg_pool2d(truth.mT.float(), square).mT  # shares of the truth; columns are contiguous
    both = (drawn * cells).sum((1, 2))
    union = drawn.sum((1, 2)) + cells.sum((1, 2)) - both
    return torch.where(union > 0, both / union.clamp(min=1e-6), 1.0)


def dice_loss(logits: Tensor, targets: Tensor, eps: float = 1.0) -> Tensor:
    """(K,) from (K, points): 1 - (2 p.t + eps) / (sum p + sum t + eps)."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum(1)
    return 1 - (2 * overlap + eps) / (probabilities.sum(1) + targets.sum(1) + eps)


def distillation_losses(
    students: dict[str, list[Tensor]], batch: Batch, experts: Sequence[ExpertConfig]
) -> dict[str, Tensor]:
    """Unweighted sums {"distill_<expert>"} over the images of the batch. `students`: see `student_features`."""
    images = [i for i, (h, w) in enumerate(batch.grids_hw) if h * w]
    sums = {}
    for expert in experts:
        maps = students[expert.name]
        if images:
            expert_features = [batch.expert_features[expert.name][i] for i in images]
            sums[f"distill_{expert.name}"] = distillation_loss(maps, expert_features, expert.loss)
        else:
            sums[f"distill_{expert.name}"] = maps[0].float().sum() * 0  # the adapter stays in the graph
    return sums


def distillation_loss(students: Sequence[Tensor], expert_features: Sequence[Tensor], kind: str) -> Tensor:
    """Sum over images of the distance between student and expert features, averaged over the student's grid; float32.

    `students`: (h, w, C) for each image. `expert_features`: (C, h', w') for each image, resized bilinearly to (h, w)
    with align_corners False. `kind` "mse": squared difference, averaged over channels too; "cosine": 1 - cosine of the
    two feature vectors at a position.
    """
    distances = []
    for student, expert in zip(students, expert_features, strict=True):
        student, target = student.float(), resize_features(expert, student.shape[:2])
        if kind == "mse":
            distances.append(F.mse_loss(student, target))
        else:
            distances.append((1 - F.cosine_similarity(student, target, dim=-1)).mean())
    return torch.stack(distances).sum()


def choose_points(logits: Tensor, candidates: Tensor, config: LossConfig) -> Tensor:
    """(K, points, 2) coordinates x, y in 0..1: the most uncertain candidates, and further random points.

    PointRend's rule, with uncertainty -|logit|. `logits` (K, h', w'), `candidates` (K, c, 2), c from `_counts(config)`.
    """
    oversampled, important, _ = _counts(config)
    pool, rest = candidates[:, :oversampled], candidates[:, oversampled:]
    uncertainty = -sample_points(logits, pool).abs()
    best = uncertainty.topk(important, dim=1).indices
    return torch.cat([pool.gather(1, best[..., None].expand(-1, -1, 2)), rest], dim=1)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """(K, points) bilinear values of maps (K, h, w) at x, y in 0..1 of the image (pixel centres at (i + 0.5) / w)."""
    return F.grid_sample(maps[:, None], 2 * points[:, None] - 1, mode="bilinear", align_corners=False)[:, 0, 0]


def _counts(config: LossConfig) -> tuple[int, int, int]:
    """The number of candidates, of those of them that are kept, and of further random points."""
    important = int(IMPORTANT_SHARE * config.points)
    return OVERSAMPLE * config.points, important, config.points - important


def draw_candidates(seed: int, masks: int, config: LossConfig, device: torch.device) -> Tensor:
    """Random coordinates (masks, candidates, 2) that depend on the sequence only, not on packing.

    Drawn on `device`, which nobody waits for; a GPU draws other numbers than a CPU.
    """
    oversampled, _, rest = _counts(config)
    generator = torch.Generator(device).manual_seed(seed)
    return torch.rand(masks, oversampled + rest, 2, generator=generator, device=device)


def _same_size(logits: Sequence[Tensor], masks: Sequence[Masks]) -> list[list[int]]:
    """Indices of the sequences that own masks, grouped by the sizes of their logits and their targets."""
    groups: dict[tuple[torch.Size, tuple[int, int]], list[int]] = {}
    for i, (logit, mask) in enumerate(zip(logits, masks, strict=True)):
        if len(mask):
            groups.setdefault((logit.shape[1:], mask.size_hw), []).append(i)
    return list(groups.values())
