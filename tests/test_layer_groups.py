"""Learning rates by part of the model, under any controller."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
)

from hf_adaptive_lr import (
    AdaptiveLRCallback,
    AdaptiveLRTrainer,
    AdaptiveLRTrainingArguments,
    AutoController,
    ControlledLR,
    split_groups,
)
from hf_adaptive_lr.optimizers.places import PARTS, places
from tests import integrations
from tests.compatibility.models import llama, t5
from tests.tiny import LENGTH, VOCAB, Tokens, bert, mlp, vit


def _gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2))


def _resnet() -> ResNetForImageClassification:
    return ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1]))


# --- which part ---


@pytest.mark.parametrize(
    "make, name, part",
    [
        (bert, "bert.embeddings.word_embeddings.weight", "embeddings"),
        (bert, "bert.encoder.layer.0.output.dense.weight", "body"),
        (bert, "classifier.weight", "head"),
        (vit, "vit.embeddings.cls_token", "embeddings"),
        (vit, "classifier.bias", "head"),
        (llama, "model.embed_tokens.weight", "embeddings"),
        (llama, "model.layers.1.mlp.up_proj.weight", "body"),
        (llama, "lm_head.weight", "head"),
        (_gpt2, "transformer.wte.weight", "embeddings"),
        (_gpt2, "transformer.h.1.attn.c_attn.weight", "body"),
        (_resnet, "classifier.1.weight", "head"),
        (_gpt2, "transformer.wpe.weight", "embeddings"),
        (t5, "shared.weight", "embeddings"),
        (mlp, "0.weight", "body"),
    ],
)
def test_the_part_of_a_parameter(make, name, part) -> None:
    model = make()
    assert name in dict(model.named_parameters())
    assert places(model)[name].part == part


def test_adapters_and_saved_modules_of_peft() -> None:
    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    model = get_peft_model(bert(), config)
    found = places(model)
    parts = {found[name].part for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"lora_A", "lora_B", "head"}


# --- splitting ---


def test_every_parameter_once_with_its_own_settings() -> None:
    model = bert()
    optimizer = integrations.optimizer_for(model)
    before = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    split_groups(optimizer, model, {"embeddings": 0.1, "head": 10.0})
    after = [(id(p), group) for group in optimizer.param_groups for p in group["params"]]
    assert len(after) == len(before)
    found = places(model)
    parts = {id(p): found[n].part for n, p in model.named_parameters()}
    for key, group in after:
        assert group["weight_decay"] == before[key]
        factor = {"embeddings": 0.1, "head": 10.0}.get(parts[key], 1.0)
        assert group["lr"] == pytest.approx(integrations.LR * factor)
    assert optimizer.param_groups[0]["lr"] == integrations.LR, "the group that is reported"


def test_layerwise_decay_is_the_formula() -> None:
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    split_groups(optimizer, model, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["model.embed_tokens.weight"] == 0.125
    assert by_name["model.layers.0.mlp.up_proj.weight"] == 0.25
    assert by_name["model.layers.1.mlp.up_proj.weight"] == 0.5
    assert by_name["model.norm.weight"] == by_name["lm_head.weight"] == 1.0


@pytest.mark.parametrize(
    "factors, decay, said",
    [
        ({"heads": 2.0}, None, "'heads' is no part of a model; parts are: embeddings, body, head, lora_A, lora_B"),
        ({"head": 0.0}, None, r"factor 0.0 of 'head' is outside \[1e-06, 1e\+06\]"),
        ({"head": float("nan")}, None, "factor nan of 'head'"),
        ({"head": "10"}, None, "factor '10' of 'head'"),
        ({}, 0.0, r"layer_decay=0.0 is outside \(0, 1\]"),
        ({}, True, r"layer_decay=True is outside \(0, 1\]"),
        ({}, "3", r"layer_decay='3' is outside \(0, 1\]"),
        ({}, 1.5, r"layer_decay=1.5 is outside \(0, 1\]"),
    ],
)
def test_bad_factors_fail_fast_before_anything_is_touched(factors, decay, said, tmp_path) -> None:
    model = bert()
    optimizer = integrations.optimizer_for(model)
    with pytest.raises(ValueError, match=said):
        split_groups(optimizer, model, factors, decay)
    assert len(optimizer.param_groups) == 2
    with pytest.raises(ValueError, match=said):
        AdaptiveLRTrainingArguments(output_dir=str(tmp_path), lr_factors=factors or None, layer_decay=decay)


def test_an_optimizer_that_has_stepped_fails_fast() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 4)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="has made updates already"):
        split_groups(optimizer, model, {"body": 2.0})


def test_a_part_that_the_model_does_not_have_fails_fast() -> None:
    model = _gpt2()
    with pytest.raises(
        ValueError, match=r"no 'head' \(a head that is tied to the embeddings is theirs\); there are: "
    ):
        split_groups(torch.optim.SGD(model.parameters(), lr=1.0), model, {"head": 10.0})
    with pytest.raises(ValueError, match="no 'lora_B'; there are: embeddings "):
        split_groups(torch.optim.SGD(model.parameters(), lr=1.0), model, {"lora_B": 16.0})


def test_the_optimizer_of_another_model_fails_fast() -> None:
    with pytest.raises(ValueError, match="4 of the optimizer's parameters are not in this model"):
        split_groups(torch.optim.SGD(mlp().parameters(), lr=1.0), bert(), layer_decay=0.9)


def test_what_was_put_where_is_logged(caplog) -> None:
    model = llama()
    with caplog.at_level("INFO", "hf_adaptive_lr"):
        split_groups(torch.optim.SGD(model.parameters(), lr=1.0), model, layer_decay=0.5)
    assert (
        "embeddings (3 below the head): model.embed_tokens; body (2 below the head): model.layers.0; "
        "body (1 below the head): model.layers.1; body (0 below the head): model.norm; head (0 below the head): "
        "lm_head"
    ) in caplog.text


# --- under a controller ---


@pytest.mark.parametrize("name", ["linear", "universal", "hypergradient"])
def test_every_controller_keeps_the_factors(tmp_path, name) -> None:
    args = integrations.arguments(
        tmp_path, AdaptiveLRTrainingArguments, lr_factors='{"head": 10, "embeddings": 0.1}', layer_decay=0.5
    )
    trainer = AdaptiveLRTrainer(
        model=bert(), args=args, train_dataset=Tokens(), controller=AutoController.from_pretrained(name)
    )
    trainer.train()
    factors = [group["lr_factor"] for group in trainer.lr_scheduler.optimizer.param_groups]
    assert sorted(set(factors)) == pytest.approx([0.025, 0.5, 1.0, 10.0]) and factors[0] == 1.0
    for decision in trainer.lr_scheduler.trace:
        assert [lr / decision.lr[0] for lr in decision.lr] == pytest.approx(factors)


def test_the_same_through_all_integrations(tmp_path) -> None:
    factors = {"head": 4.0}
    args = integrations.arguments(tmp_path / "a", AdaptiveLRTrainingArguments, lr_factors=factors)
    mine = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller="linear")
    mine.train()

    def prepared():
        model = bert()
        optimizer = integrations.optimizer_for(model)
        split_groups(optimizer, model, factors)
        return model, optimizer

    model, optimizer = prepared()
    scheduler = ControlledLR(optimizer, "linear", model=model, total_steps=integrations.STEPS, max_grad_norm=0.0)
    passed = Trainer(
        model=model,
        args=integrations.arguments(tmp_path / "b"),
        train_dataset=Tokens(),
        optimizers=(optimizer, scheduler),
    )
    passed.train()
    model, optimizer = prepared()
    called = Trainer(
        model=model,
        args=integrations.arguments(tmp_path / "c"),
        train_dataset=Tokens(),
        optimizers=(optimizer, None),
        callbacks=[AdaptiveLRCallback("linear")],
    )
    called.train()
    weights = [integrations._flat(trainer.model) for trainer in (mine, passed, called)]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    plain = AdaptiveLRTrainer(
        model=bert(), args=integrations.arguments(tmp_path / "d"), train_dataset=Tokens(), controller="linear"
    )
    plain.train()
    assert not torch.equal(weights[0], integrations._flat(plain.model))


def test_a_resumed_run_has_the_same_groups(tmp_path) -> None:
    def run(folder, **options):
        args = integrations.arguments(
            folder, AdaptiveLRTrainingArguments, lr_factors={"head": 4.0}, save_strategy="steps", save_steps=3
        )
        trainer = AdaptiveLRTrainer(model=bert(), args=args, train_dataset=Tokens(), controller="linear")
        trainer.train(**options)
        return integrations._flat(trainer.model)

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(whole, resumed)


def test_an_optimizer_of_ones_own_is_not_split_in_silence(tmp_path) -> None:
    model = bert()
    args = integrations.arguments(tmp_path, AdaptiveLRTrainingArguments, lr_factors={"head": 4.0})
    trainer = AdaptiveLRTrainer(
        model=model,
        args=args,
        train_dataset=Tokens(),
        controller="linear",
        optimizers=(integrations.optimizer_for(model), None),
    )
    with pytest.raises(ValueError, match="call hf_adaptive_lr.split_groups"):
        trainer.train()


def test_parts_have_names_that_json_can_say() -> None:
    assert PARTS == ("embeddings", "body", "head", "lora_A", "lora_B")
