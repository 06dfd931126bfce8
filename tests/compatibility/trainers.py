"""The compatibility table's trainers: transformers' own, TRL, sentence-transformers, SetFit, PEFT, timm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments, set_seed

from hf_adaptive_lr.auto import AutoController
from hf_adaptive_lr.controllers.linear import Linear
from hf_adaptive_lr.trainer.callback import AdaptiveLRCallback
from hf_adaptive_lr.trainer.mixin import AdaptiveLRMixin, AdaptiveLRTrainer
from tests.compatibility import models as tiny
from tests.compatibility.checks import LR, STEPS, Check, Kit, check_kit, check_log, require, trained


def _trainer(folder: Path) -> list[str]:
    kit = Kit(Trainer, TrainingArguments, lambda: {"model": tiny.bert(), "train_dataset": tiny.encoded()})
    return check_kit(kit, folder)


def _seq2seq(folder: Path) -> list[str]:
    def parts() -> dict[str, Any]:
        return {"model": tiny.t5(), "train_dataset": tiny.copies()}

    return check_kit(Kit(Seq2SeqTrainer, Seq2SeqTrainingArguments, parts), folder)


def _sft_parts(**more: Any) -> dict[str, Any]:
    texts = tiny.sentences().select_columns("text")
    return {"model": tiny.llama(), "train_dataset": texts, "processing_class": tiny.tokenizer(), **more}


_TRL = {"bf16": False, "gradient_checkpointing": False}


def _trl(name: str, parts: Callable[[], dict[str, Any]], *, loss: bool = False, **settings: Any) -> Callable[..., Any]:
    """The facts of one of TRL's trainers; `loss` is whether the loss that it trains is the model's own."""

    def facts(folder: Path) -> list[str]:
        import trl

        trainer, arguments = getattr(trl, f"{name}Trainer"), getattr(trl, f"{name}Config")
        kit = Kit(trainer, arguments, parts, {**_TRL, **settings}, callback_sees_loss=loss)
        return [*check_kit(kit, folder), check_log(kit, folder)]

    return facts


def _preference_parts() -> dict[str, Any]:
    return {
        "model": tiny.llama(),
        "ref_model": tiny.llama(),
        "train_dataset": tiny.preferences(),
        "processing_class": tiny.tokenizer(),
    }


def _kto_parts() -> dict[str, Any]:
    rows = tiny.preferences()
    halves = {
        "prompt": list(rows["prompt"]),
        "completion": list(rows["chosen"]),
        "label": [True, False] * (len(rows) // 2),
    }
    return {**_preference_parts(), "train_dataset": datasets.Dataset.from_dict(halves)}


def _reward_parts() -> dict[str, Any]:
    return {"model": tiny.llama_scores(), "train_dataset": tiny.preferences(), "processing_class": tiny.tokenizer()}


def dogs(completions: list[str], **_: Any) -> list[float]:
    """Reward of a completion: the share of its words that are "dog"."""
    return [text.split().count("dog") / 4 for text in completions]


def rollout_parts() -> dict[str, Any]:
    """What GRPO and RLOO train with, the reward between 0 and 1."""
    return {
        "model": tiny.llama(),
        "train_dataset": tiny.prompts(),
        "processing_class": tiny.tokenizer(),
        "reward_funcs": dogs,
    }


ROLLOUT: dict[str, Any] = {"num_generations": 4, "max_completion_length": 4, "beta": 0.0}
"""Settings of GRPO and RLOO: no reference model, as one would be loaded from the Hub."""


def _sft_lora(folder: Path) -> list[str]:
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    def parts() -> dict[str, Any]:
        set_seed(5)  # of the adapters
        return _sft_parts(peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))

    settings = {"max_length": 16, "bf16": False, "gradient_checkpointing": False, "learning_rate": 0.1}
    return check_kit(Kit(SFTTrainer, SFTConfig, parts, settings), folder)


def _sentence_model(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    if not folder.exists():  # bodies come from folders or the Hub
        tiny.bert(dropout=0.0).bert.save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
    body = Transformer(str(folder))
    return SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu")


def _sentence(folder: Path) -> list[str]:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    def parts() -> dict[str, Any]:
        model, texts = _sentence_model(folder / "body"), tiny.sentences()["text"]
        pairs = datasets.Dataset.from_dict({"anchor": texts, "positive": [text[: len(text) // 2] for text in texts]})
        return {"model": model, "train_dataset": pairs, "loss": MultipleNegativesRankingLoss(model)}

    trainer, arguments = SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    return check_kit(Kit(trainer, arguments, parts, callback_sees_loss=False), folder)


def _setfit(folder: Path) -> list[str]:
    """SetFit hides a sentence-transformers trainer, which can be exchanged for one with a controller."""
    import setfit
    from setfit.trainer import BCSentenceTransformersTrainer
    from sklearn.linear_model import LogisticRegression

    class Adaptive(AdaptiveLRMixin, BCSentenceTransformersTrainer):  # type: ignore[misc]
        pass

    def build(name: str, *callbacks: Any) -> Any:
        set_seed(0)
        model = setfit.SetFitModel(model_body=_sentence_model(folder / "body"), model_head=LogisticRegression())
        settings = {"batch_size": 8, "max_steps": STEPS, "body_learning_rate": LR, "report_to": "none", "seed": 3}
        args = setfit.TrainingArguments(output_dir=str(folder / name), **settings)
        rows = tiny.sentences()
        return setfit.Trainer(model, args, train_dataset=rows, callbacks=list(callbacks) or None)

    def weights(trainer: Any) -> torch.Tensor:
        trainer.train()
        return tiny.flat(trainer.model.model_body)

    def exchange(trainer: Any, controller: Any) -> Any:
        trainer.st_trainer = Adaptive(
            setfit_model=trainer.model, setfit_args=trainer.args, callbacks=[], controller=controller
        )
        return trainer

    called = weights(build("callback", AdaptiveLRCallback(Linear())))
    mixed = weights(exchange(build("mixed"), Linear()))
    require(torch.equal(called, mixed), "`linear` as callback equals the exchanged trainer")
    require(not torch.equal(weights(build("native")), called), "the callback makes a difference")
    universal = exchange(build("universal"), AutoController.from_pretrained("universal"))
    require(bool(torch.isfinite(weights(universal)).all()), "finite weights")
    rates = universal.st_trainer.lr_scheduler.lr_history()
    require(len(rates) == STEPS and len(set(rates)) > 1, f"{STEPS} updates at different rates, got {rates}")
    return [
        "`linear` as callback equals the trainer exchanged (`trainer.st_trainer = Adaptive(...)`)",
        "`universal` in the exchanged trainer steers the embedding phase",
    ]


def _lora(folder: Path) -> list[str]:
    from peft import LoraConfig, get_peft_model

    def parts() -> dict[str, Any]:
        set_seed(5)
        config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["classifier"])
        return {"model": get_peft_model(tiny.bert(), config), "train_dataset": tiny.encoded()}

    return check_kit(Kit(Trainer, TrainingArguments, parts), folder)


def _lora_plus(folder: Path) -> list[str]:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    ratio = 16.0
    for controller in ("linear", "universal"):
        set_seed(5)
        model = get_peft_model(tiny.bert(), LoraConfig(r=2, target_modules=["query", "value"]))
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=ratio)
        base = [group["lr"] for group in optimizer.param_groups]
        a, b = base.index(LR), base.index(LR * ratio)
        args = TrainingArguments(
            output_dir=str(folder / controller), max_steps=STEPS, report_to="none", use_cpu=True, disable_tqdm=True
        )
        trainer = AdaptiveLRTrainer(
            model=model,
            args=args,
            train_dataset=tiny.encoded(),
            optimizers=(optimizer, None),
            controller=AutoController.from_pretrained(controller),
        )
        trained(trainer)
        for decision in trainer.lr_scheduler.trace:
            found = decision.lr[b] / decision.lr[a]
            require(abs(found - ratio) < 1e-6, f"B keeps {ratio:g} times the rate of A, got {found} ({controller})")
    return [f"the groups of B keep {ratio:g} times the rate of A at every update, under `linear` and `universal`"]


def _timm(folder: Path) -> list[str]:
    from torchvision.extension import _has_ops
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 32, 32, generator=generator)
    rows = [{"pixel_values": image, "labels": number % 3} for number, image in enumerate(images)]

    def parts() -> dict[str, Any]:
        set_seed(0)
        shape: dict[str, Any] = {"architecture": "resnet10t", "num_labels": 3}
        config = TimmWrapperConfig(**shape)
        return {"model": TimmWrapperForImageClassification(config), "train_dataset": rows}

    held = check_kit(Kit(Trainer, TrainingArguments, parts), folder)
    return held if _has_ops() else [*held, "torchvision's compiled operators were not loaded; timm's models use none"]


TRAINERS: tuple[Check, ...] = (
    Check("Trainer", ("transformers",), _trainer),
    Check("Seq2SeqTrainer", ("transformers",), _seq2seq),
    Check("TRL's SFTTrainer", ("trl",), _trl("SFT", _sft_parts, loss=True, max_length=16)),
    Check("TRL's SFTTrainer with LoRA", ("trl", "peft"), _sft_lora),
    Check("TRL's DPOTrainer", ("trl",), _trl("DPO", _preference_parts, max_length=16)),
    Check("TRL's KTOTrainer", ("trl",), _trl("KTO", _kto_parts, max_length=16)),
    Check("TRL's RewardTrainer", ("trl",), _trl("Reward", _reward_parts, max_length=16)),
    Check("TRL's GRPOTrainer", ("trl",), _trl("GRPO", rollout_parts, **ROLLOUT)),
    Check("TRL's RLOOTrainer", ("trl",), _trl("RLOO", rollout_parts, **ROLLOUT)),
    Check("sentence-transformers' trainer", ("sentence-transformers",), _sentence),
    Check("SetFit's trainer", ("setfit",), _setfit),
    Check("PEFT LoRA", ("peft",), _lora),
    Check("PEFT LoRA+", ("peft",), _lora_plus),
    Check("timm through transformers' wrapper", ("timm", "torchvision"), _timm),
)
"""Rows of the table, in order."""
