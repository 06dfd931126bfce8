"""Inputs of the learned controllers: twelve scale-free numbers from [`Observation`]s and their history.

Every feature is a logarithm of a ratio, a cosine or a share, clipped to a few units, so that none depends on a model's
size. The history is explicit state, so one encoder serves a live run and hundreds of vectorised ones.

Ratios need a positive loss. From the first negative one on (the likelihood of a density, a policy gradient) a constant
is added, so that the lowest loss so far stands four times its distance to the highest above zero; the history is put
on the new scale whenever the constant grows. Runs without a negative loss do not notice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..observation import Observation

NEEDS = frozenset({"loss", "grad_norm", "alignment", "update_ratio", "gain_ratio"})
"""Optional observation fields that the encoder reads."""

FEATURES = (
    "loss / first loss",
    "loss / fast average",
    "fast average / slow average",
    "fast average / best fast average",
    "grad norm / first grad norm",
    "grad norm / slow average",
    "alignment",
    "update ratio",
    "gain ratio",
    "progress",
    "remaining",
    "last move",
)
"""Names of the features, in order; ratios enter as natural logarithms."""

STEERING_FEATURES = (*FEATURES, "trend / scatter", "shift", "unit / first unit", "length", "length is known")
"""Names of the features of controllers that steer the relative update.

"update ratio" is then relative to their `rho`, the gain ratio counts only where an update was large enough to be
measured, and "alignment" is its mean over its root mean square, as cosines in a net of a million weights are a
hundredth of those in a toy. "trend / scatter" is the fall of the loss in units of the difference between batches.
"""

_FAST, _SLOW = 0.5, 0.85  # decay per decision: half-lives of one and about four decisions
_LOG_CLIP = 4.0
_TINY, _HUGE = 1e-12, 1e12
_RESERVE = 4.0  # distance of the lowest loss from zero, in units of the range, once a loss was negative
_UPDATE, _GAIN, _ALIGNMENT = (FEATURES.index(name) for name in ("update ratio", "gain ratio", "alignment"))
_VISIBLE = 1e-5  # relative update below which the gain ratio is rounding of the loss


def init_history(batch_shape: tuple[int, ...], device: torch.device | str | None = None) -> dict[str, Tensor]:
    """State of the encoder before the first decision: `seen` counts decisions, `low`, `high` and `offset` are losses.

    `offset` is what is added to every loss; the others are logarithms.
    """
    names = ("first_loss", "fast", "slow", "best", "first_norm", "norm", "move", "low", "high", "offset")
    zeros = {name: torch.zeros(batch_shape, dtype=torch.float32, device=device) for name in names}
    return {**zeros, "seen": torch.zeros(batch_shape, dtype=torch.int64, device=device)}


def encode(obs: Observation, history: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of one decision, batch_shape + (12,) in float32 within [-4, 4], and the history with it; pure.

    `obs` has every field of [`NEEDS`], but perhaps the gain ratio, which is then 0; without `total_steps`, progress is
    0 and remaining 1. `history` is from `init_history` or the last call.
    """
    history = {**history, **_above_zero(obs, history)}
    loss, norm = _log(obs.require("loss").float() + history["offset"]), _log(obs.require("grad_norm"))
    start = history["seen"] == 0
    first_loss = torch.where(start, loss, history["first_loss"])
    first_norm = torch.where(start, norm, history["first_norm"])
    fast = torch.where(start, loss, _FAST * history["fast"] + (1 - _FAST) * loss)
    slow = torch.where(start, loss, _SLOW * history["slow"] + (1 - _SLOW) * loss)
    average = torch.where(start, norm, _SLOW * history["norm"] + (1 - _SLOW) * norm)
    best = torch.where(start, fast, torch.minimum(history["best"], fast))
    if obs.total_steps is None:
        progress, remaining = torch.zeros_like(loss), torch.ones_like(loss)
    else:
        progress, remaining = obs.progress.float(), obs.remaining.float()
    ratio = _log(obs.require("update_ratio"))
    columns = [
        loss - first_loss,
        loss - history["fast"].where(~start, loss),
        fast - slow,
        fast - best,
        norm - first_norm,
        norm - history["norm"].where(~start, norm),
        obs.require("alignment").float(),
        torch.where(obs.require("update_ratio") > 0, (ratio + 7.0) / 2, torch.zeros_like(ratio)),
        torch.zeros_like(loss) if obs.gain_ratio is None else obs.gain_ratio.float().clamp(-2, 2) - 1,
        progress,
        (remaining + 1e-3).log() / 2,
        history["move"],
    ]
    features = torch.stack([column.nan_to_num(0.0).clamp(-_LOG_CLIP, _LOG_CLIP) for column in columns], dim=-1)
    after = {
        "first_loss": first_loss,
        "fast": fast,
        "slow": slow,
        "best": best,
        "first_norm": first_norm,
        "norm": average,
        "seen": history["seen"] + 1,
        **{name: history[name] for name in ("move", "low", "high", "offset")},
    }
    return features, after


def _above_zero(obs: Observation, history: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of the history that changes when a new constant has to be added to all losses; see the module."""
    loss, start = obs.require("loss").float(), history["seen"] == 0
    # States of version 0.1 have none of these.
    low, high = (history.get(name, history["first_loss"].exp()) for name in ("low", "high"))
    before = history.get("offset", torch.zeros_like(loss))
    known = torch.isfinite(loss)
    low = torch.where(known, torch.where(start, loss, torch.minimum(low, loss)), low)
    high = torch.where(known, torch.where(start, loss, torch.maximum(high, loss)), high)
    offset = torch.where(low < 0, torch.maximum(_RESERVE * (high - low) - low, before), before)
    more = offset - before
    changed: dict[str, Tensor] = {"low": low, "high": high, "offset": offset}
    for name in ("first_loss", "fast", "slow", "best"):
        changed[name] = torch.where(more > 0, (history[name].exp() + more).log(), history[name])
    if "scatter" in history:  # a square of differences of logarithms
        shrunk = (history["slow"] - changed["slow"]).exp().square() * history["scatter"]
        changed["scatter"] = torch.where(more > 0, shrunk, history["scatter"])
    return changed


def encode_steering(
    obs: Observation, state: Mapping[str, Tensor], *, rho: float, max_shift: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """[`STEERING_FEATURES`] of one decision, batch_shape + (17,) within [-4, 4], and the history with it; pure.

    `obs` as for [`encode`]; `state` has the history, `unit`, `first_unit` (see `_relative_update`) and `shift`, of
    which `max_shift` is the scale. `rho` is the relative update that counts as 1.
    """
    state = {**state, **_above_zero(obs, state)}
    features, after = encode(obs, state)
    noise, more_after = _signal_over_noise(obs, state, after)
    features[..., _ALIGNMENT] = noise[0]
    ratio = obs.require("update_ratio")
    features[..., _UPDATE] = torch.where(ratio > 0, (_log(ratio) - math.log(rho)) / 2, 0.0).clamp(-4, 4)
    features[..., _GAIN] = torch.where(ratio > _VISIBLE, features[..., _GAIN], 0.0)
    length, known = torch.zeros_like(state["shift"]), torch.zeros_like(state["shift"])
    if obs.total_steps is not None:
        total = torch.as_tensor(obs.total_steps, dtype=torch.float32, device=length.device)
        length, known = length + (total / 100).log() / 2, known + 1
    settled = (state["unit"] - state["first_unit"]).float()
    more = torch.stack((noise[1], 2 * state["shift"] / max_shift, settled, length, known), dim=-1)
    return torch.cat((features, more.clamp(-_LOG_CLIP, _LOG_CLIP)), dim=-1), {**after, **more_after}


def _signal_over_noise(
    obs: Observation, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Two features that are ratios of a running mean to a running size, and the history of both."""
    cosine = obs.require("alignment").float().nan_to_num(0.0)
    off = (_log(obs.require("loss").float() + before["offset"]) - before["slow"]).square()
    start, second = before["seen"] == 0, before["seen"] == 1  # before the first there is no update, nor a scatter
    mean = torch.where(second, cosine, _SLOW * before["cosine"] + (1 - _SLOW) * cosine)
    size = torch.where(second, cosine.square(), _SLOW * before["cosine_sq"] + (1 - _SLOW) * cosine.square())
    scatter = torch.where(second, off, _SLOW * before["scatter"] + (1 - _SLOW) * off)
    zero = torch.zeros_like(mean)
    history = {"cosine": mean, "cosine_sq": size, "scatter": scatter}
    history = {name: torch.where(start, zero, value) for name, value in history.items()}
    agreement = history["cosine"] / history["cosine_sq"].sqrt().clamp_min(_TINY)
    trend = (after["fast"] - after["slow"]) / history["scatter"].sqrt().clamp_min(1e-4)
    return (agreement, torch.where(start, zero, trend)), history


def init_steering(batch_shape: tuple[int, ...], device: torch.device | str | None = None) -> dict[str, Tensor]:
    """State of [`encode_steering`] before the first decision."""
    names = ("cosine", "cosine_sq", "scatter")
    zeros = {name: torch.zeros(batch_shape, dtype=torch.float32, device=device) for name in names}
    return init_history(batch_shape, device) | zeros


def _log(value: Tensor) -> Tensor:
    return value.float().nan_to_num(_HUGE, _HUGE, _TINY).clamp(_TINY, _HUGE).log()
