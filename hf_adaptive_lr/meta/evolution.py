"""Antithetic evolution strategies (Salimans et al. 2017, arXiv:1703.03864): no critic, no gradient through the run.

Pair i plays the same run twice, with weights m + s e_i and m - s e_i. The runs of a pair share weights, data,
mini-batches and initial learning rate, so the difference of their log final losses is due to e_i alone:

    d_i = log L(m - s e_i) - log L(m + s e_i)           gradient = -mean_i shape(d_i) e_i / s           m <- Adam(m)

`shape` makes the differences of easy and hard runs comparable: the signed rank of |d_i|, in [-1, 1], or d_i over its
scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..controller import Controller
from ..distributed import generator
from .episode import Episode, play_through
from .problem import Problem
from .tasks import make_task
from .tasks.base import Split, Task
from .vector_run import VectorRun
from .weights import WeightTrainer


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of the trainer."""

    decisions: int = 20  # moves per episode
    sigma: float = 0.1  # standard deviation of the perturbation of every weight, above 0
    sigma_end: float = 0.05  # end of the geometric decay of `sigma`
    lr: float = 0.02  # learning rate of Adam at the start; decays linearly to zero
    decay_over: int = 0  # iterations that the two decays last; with 0 they last as long as the training says
    betas: tuple[float, float] = (0.9, 0.99)  # decay rates of Adam
    shape: Literal["rank", "scale"] = "rank"  # signed ranks of the differences, or these over their root mean square

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.sigma_end > 0 and self.lr > 0 and self.decisions > 0 and self.decay_over >= 0):
            raise ValueError(f"sigma, sigma_end, lr and decisions must be above 0, decay_over at least 0: {self}")

    def at(self, iteration: int, progress: float = 0.0) -> tuple[float, float]:
        """Sigma and learning rate of an iteration; without `decay_over` they follow the progress of the training."""
        done = min(iteration / self.decay_over if self.decay_over else progress, 1.0)
        return self.sigma * (self.sigma_end / self.sigma) ** done, self.lr * (1 - done)


class Paired(Task):
    """A task whose n runs are played twice: run i and run i + n have the same weights, data and mini-batches."""

    def __init__(self, task: Task) -> None:
        # Not the parent's: this task draws nothing, all randomness is the inner task's.
        self.task, self.spec, self.runs, self.generator = task, task.spec, 2 * task.runs, task.generator

    @classmethod
    def start(cls, problem: Problem) -> VectorRun:
        """The runs of a problem, each twice, before their first update."""
        base_lr = problem.start().base_lr
        return VectorRun(cls(make_task(problem.task)), problem.optimizer, base_lr.repeat(2), problem.total_steps)

    def init(self) -> Tensor:
        """Weights of the runs, twice."""
        return self.task.init().repeat(2, 1)

    def batch(self, split: Split) -> Any:
        """One mini-batch for both members of each pair."""
        return self.task.batch(split)

    def loss(self, weights: Tensor, batch: Any) -> Tensor:
        """Loss of either half on the same mini-batch."""
        return torch.cat([self.task.loss(half, batch) for half in weights.chunk(2)])

    def evaluate(self, weights: Tensor, split: Split) -> Tensor:
        """Loss of either half."""
        return torch.cat([self.task.evaluate(half, split) for half in weights.chunk(2)])


def shaped(differences: Tensor, shape: Literal["rank", "scale"]) -> Tensor:
    """Differences, (pairs,), made comparable as in [`EvolutionConfig`]; odd: swapping a pair swaps the sign."""
    if shape == "scale":
        return (differences / differences.square().mean().sqrt().clamp_min(1e-12)).float()
    ranks = differences.abs().argsort(stable=True).argsort(stable=True) + 1
    return (differences.sign() * ranks / len(differences)).float()


class EvolutionTrainer(WeightTrainer):
    """Evolution strategies for any controller whose `decide` takes weights with a leading run dimension.

    Same seed and same problems give the same weights, bit for bit. Perturbations are drawn from (seed, iteration,
    rank), so a checkpoint is the weights and Adam's moments, the same on every process.
    """

    method = "evolution"

    def __init__(self, controller: Controller, config: EvolutionConfig | None = None, seed: int = 0) -> None:
        self.config = config or EvolutionConfig()
        super().__init__(controller, self.config.lr, self.config.betas, seed)

    @torch.no_grad()
    def iterate(self, problems: Sequence[Problem], iteration: int, progress: float = 0.0) -> dict[str, float]:
        """One step of the mean; see `driver.Trainer`. Figures also have `sigma`, `lr` and `gradient_norm`.

        `runs` of a problem are its number of pairs; every pair has a perturbation of its own.
        """
        sigma, lr = self.config.at(iteration, progress)
        draws = generator("evolution", self.seed, iteration)
        gradients = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        improved, lost, steps = [], [], 0
        for problem in problems:
            noise = {k: torch.randn(problem.task.runs, *v.shape, generator=draws) for k, v in self.weights.items()}
            params = {k: v + sigma * torch.cat([noise[k], -noise[k]]) for k, v in self.weights.items()}
            episode = Episode(Paired.start(problem), self.config.decisions, controller=self.start)
            plus, minus = play_through(self.start, episode, params, seed=self.seed).chunk(2)
            fitness = shaped(minus - plus, self.config.shape)
            for name, gradient in gradients.items():
                gradient -= torch.tensordot(fitness, noise[name], 1) / (problem.task.runs * sigma * len(problems))
            improved.append(episode.start - episode.value)
            lost.append(episode.lost)
            steps += 2 * problem.task.runs * problem.total_steps
        norm = self.descend(gradients, lr)
        return {
            "return": float(torch.cat(improved).mean()),
            "diverged": float(torch.cat(lost).double().mean()),
            "sigma": sigma,
            "lr": lr,
            "gradient_norm": norm,
            "inner_steps": float(steps),
        }
