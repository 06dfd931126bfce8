"""In which part and layer of a model its parameters are, in tiny models of many architectures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_adaptive_lr import split_groups
from hf_adaptive_lr.optimizers.places import Place, places

SHAPE = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {**SHAPE, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TWO = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
SOUND = {**TEXT, "conv_dim": (4, 4), "conv_kernel": (3, 3), "conv_stride": (2, 2), "num_feat_extract_layers": 2}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
VISION = {**SHAPE, "image_size": 8, "patch_size": 4}


def deberta() -> nn.Module:
    odd = {"relative_attention": True, "position_buckets": 4, "conv_kernel_size": 3, "norm_rel_ebd": "layer_norm"}
    return hf.DebertaV2ForSequenceClassification(hf.DebertaV2Config(**TEXT, **odd, pos_att_type=["p2c", "c2p"]))


def layoutlmv3() -> nn.Module:
    sizes = {"coordinate_size": 1, "shape_size": 2, "input_size": 8, "patch_size": 4, "max_2d_position_embeddings": 8}
    return hf.LayoutLMv3ForTokenClassification(hf.LayoutLMv3Config(**TEXT, **sizes))


def two_towers() -> hf.CLIPConfig:
    text = {**TEXT, "max_position_embeddings": 8}
    return hf.CLIPConfig(text_config=text, vision_config={**VISION, "num_hidden_layers": 3}, projection_dim=8)


def bart() -> nn.Module:
    config = hf.BartConfig(**SPECIAL, **TWO, encoder_attention_heads=2, decoder_attention_heads=2)
    return hf.BartForSequenceClassification(config)


def t5() -> nn.Module:
    shape = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=20, **shape))


def whisper() -> nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1}
    sizes = {"num_mel_bins": 4, "max_source_positions": 8, "max_target_positions": 8}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**SPECIAL, **TWO, **heads, **sizes))


def distilbert() -> nn.Module:
    config = hf.DistilBertConfig(dim=8, n_layers=2, n_heads=2, hidden_dim=8, vocab_size=20)
    return hf.DistilBertForSequenceClassification(config)


def gpt2() -> nn.Module:
    config = hf.GPT2Config(n_positions=8, n_embd=8, n_layer=2, n_head=2, **SPECIAL)
    return hf.GPT2ForSequenceClassification(config)


def xlnet() -> nn.Module:
    config = hf.XLNetConfig(vocab_size=20, d_model=8, n_layer=2, n_head=2, d_inner=8)
    return hf.XLNetForSequenceClassification(config)


def swin() -> nn.Module:
    config = hf.SwinConfig(image_size=8, patch_size=1, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    return hf.SwinForImageClassification(config)


def convnext() -> nn.Module:
    config = hf.ConvNextConfig(hidden_sizes=[4, 4, 8], depths=[1, 1, 1], num_stages=3)
    return hf.ConvNextForImageClassification(config)


# What is at the bottom, in the first and the last layer, and at the top, by pieces of the names.
CASES: dict[str, tuple[Callable[[], nn.Module], int, str, str, str, str]] = {
    "bert": (
        lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), 2,
        "bert.embeddings", "encoder.layer.0", "encoder.layer.1", "bert.pooler classifier",
    ),
    "roberta": (
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**TEXT)), 2,
        "roberta.embeddings", "encoder.layer.0", "encoder.layer.1", "classifier",
    ),
    "deberta": (
        deberta, 2,
        "deberta.embeddings rel_embeddings encoder.LayerNorm", "encoder.layer.0 encoder.conv", "encoder.layer.1",
        "pooler classifier",
    ),
    "layoutlmv3": (
        layoutlmv3, 2,
        "layoutlmv3.embeddings patch_embed cls_token pos_embed layoutlmv3.LayerNorm layoutlmv3.norm rel_pos_bias "
        "rel_pos_x_bias rel_pos_y_bias",
        "encoder.layer.0", "encoder.layer.1", "classifier",
    ),
    "distilbert": (
        distilbert, 2, "distilbert.embeddings", "transformer.layer.0", "transformer.layer.1",
        "pre_classifier classifier",
    ),
    "albert": (
        lambda: hf.AlbertForSequenceClassification(hf.AlbertConfig(embedding_size=4, **TEXT)), 1,
        "albert.embeddings embedding_hidden_mapping_in", "albert_layer_groups.0", "albert_layer_groups.0",
        "albert.pooler classifier",
    ),
    "electra": (
        lambda: hf.ElectraForSequenceClassification(hf.ElectraConfig(embedding_size=4, **TEXT)), 2,
        "electra.embeddings embeddings_project", "encoder.layer.0", "encoder.layer.1", "classifier",
    ),
    "gpt2": (gpt2, 2, "wte wpe", "h.0", "h.1", "ln_f score"),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT)), 2,
        "embed_tokens", "layers.0", "layers.1", "model.norm lm_head",
    ),
    "t5 encoder": (t5, 2, "", "encoder.block.0", "encoder.block.1", "encoder.final_layer_norm"),
    "t5 decoder": (t5, 3, "shared", "decoder.block.0", "decoder.block.2", "decoder.final_layer_norm"),
    "bart encoder": (
        bart, 2, "encoder.embed_positions encoder.layernorm_embedding", "encoder.layers.0", "encoder.layers.1", "",
    ),
    "bart decoder": (
        bart, 3, "model.shared decoder.embed_positions decoder.layernorm_embedding", "decoder.layers.0",
        "decoder.layers.2", "classification_head",
    ),
    "xlnet": (
        xlnet, 2, "mask_emb word_embedding", "transformer.layer.0", "transformer.layer.1",
        "sequence_summary logits_proj",
    ),
    "vit": (
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**VISION)), 2,
        "vit.embeddings", "layers.0", "layers.1", "vit.layernorm classifier",
    ),
    "swin": (swin, 2, "swin.embeddings", "encoder.layers.0", "encoder.layers.1", "swin.layernorm classifier"),
    "convnext": (
        convnext, 3, "convnext.embeddings", "stages.0", "stages.2", "convnext.layernorm classifier",
    ),
    "resnet": (
        lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])),
        2, "resnet.embedder", "stages.0", "stages.1", "classifier",
    ),
    "wav2vec2": (
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SOUND)), 2,
        "masked_spec_embed feature_extractor feature_projection pos_conv_embed encoder.layer_norm", "encoder.layers.0",
        "encoder.layers.1", "lm_head",
    ),
    "wav2vec2 with its norm last": (
        lambda: hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**SOUND, do_stable_layer_norm=True)), 2,
        "masked_spec_embed feature_extractor feature_projection pos_conv_embed", "encoder.layers.0",
        "encoder.layers.1", "encoder.layer_norm lm_head",
    ),
    "whisper encoder": (
        whisper, 2, "encoder.conv1 encoder.conv2 encoder.embed_positions", "encoder.layers.0", "encoder.layers.1",
        "encoder.layer_norm",
    ),
    "whisper decoder": (
        whisper, 3, "decoder.embed_tokens decoder.embed_positions", "decoder.layers.0", "decoder.layers.2",
        "decoder.layer_norm",
    ),
    "clip text": (
        lambda: hf.CLIPModel(two_towers()), 2, "text_model.embeddings", "text_model.encoder.layers.0",
        "text_model.encoder.layers.1", "text_model.final_layer_norm text_projection logit_scale",
    ),
    "clip vision": (
        lambda: hf.CLIPModel(two_towers()), 3, "vision_model.embeddings pre_layrnorm", "vision_model.encoder.layers.0",
        "vision_model.encoder.layers.2", "post_layernorm visual_projection",
    ),
    "clip classifier": (
        lambda: hf.CLIPForImageClassification(two_towers()), 3, "vision_model.embeddings pre_layrnorm",
        "encoder.layers.0", "encoder.layers.2", "post_layernorm classifier",
    ),
}  # fmt: skip


def under(name: str, pieces: str) -> bool:
    return any(f".{piece}." in f".{name}." for piece in pieces.split())


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_has_the_layer_in_which_it_is_used(case) -> None:
    make, layers, bottom, first, last, top = CASES[case]
    found = places(make())
    expected = {bottom: layers + 1, first: layers, last: 1, top: 0}
    seen = set()
    for pieces, below in expected.items():
        names = [name for name in found if under(name, pieces)]
        assert names or not pieces, pieces
        assert {found[name].below for name in names} <= {below}, {name: found[name] for name in names}
        seen.update(names)
    assert {found[name].part for name in found if under(name, bottom)} <= {"embeddings"}
    if " " not in case:
        middle = {name for name, place in found.items() if name not in seen}
        assert all(1 < found[name].below < layers for name in middle), middle
    assert None not in {place.below for place in found.values()}


class _Encoder(nn.Module):
    """Layers, and after them what each of them may read, a norm, and a projection whose name has "embed" in it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.shared_bias = nn.Linear(4, 4)
        self.last_norm = nn.LayerNorm(4)


def test_what_each_layer_may_read_is_unknown_and_an_unembedding_is_at_the_top() -> None:
    model = nn.ModuleDict({"encoder": _Encoder(), "unembed": nn.Linear(4, 4)})
    found = {name: place.below for name, place in places(model).items() if name.endswith("weight")}
    assert found["encoder.embed.weight"] == 3 and found["encoder.shared_bias.weight"] is None
    assert found["encoder.last_norm.weight"] == found["unembed.weight"] == 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match=r"does not tell in which layer encoder.shared_bias.weight, .*shared_bias.bias"
    ):
        split_groups(optimizer, model, layer_decay=0.5)


HEADS = {"classifier", "pre_classifier", "score", "lm_head", "classification_head", "logits_proj", "sequence_summary"}


@pytest.mark.parametrize(
    "case", ["bert", "distilbert", "gpt2", "llama", "bart decoder", "xlnet", "resnet", "wav2vec2"]
)
def test_the_head_is_what_the_task_added(case) -> None:
    found = places(CASES[case][0]())
    heads = {name for name, place in found.items() if place.part == "head"}
    assert heads and heads == {name for name in found if name.partition(".")[0] in HEADS}


def test_heads_without_a_body_of_their_own() -> None:
    found = places(hf.CLIPForImageClassification(two_towers()))
    assert found["classifier.weight"] == Place("head", 0)
    assert {place.part for name, place in places(hf.CLIPModel(two_towers())).items() if "projection" in name} == {
        "body"
    }
    bare = places(hf.BertModel(hf.BertConfig(**TEXT)))
    assert bare["pooler.dense.weight"] == Place("body", 0) and bare["embeddings.LayerNorm.weight"].below == 3


def test_adapters_have_the_layer_that_they_adapt() -> None:
    model = get_peft_model(
        CASES["bert"][0](), LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    )
    found = {name: place for name, place in places(model).items() if "lora" in name}
    assert {(place.part, place.below) for place in found.values()} == {
        (part, below) for part in ("lora_A", "lora_B") for below in (1, 2)
    }


def test_lists_of_ones_own_are_layers() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 4)
            self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.out = nn.Linear(4, 2)

    found = places(Own())
    assert [found[f"{name}.weight"].below for name in ("stem", "steps.0", "steps.1", "steps.2", "out")] == [
        4,
        3,
        2,
        1,
        0,
    ]
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    assert [place.below for place in places(plain).values()] == [2, 2, 1, 1]


def test_a_parameter_that_stands_nowhere_is_an_error_and_not_a_guess() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))
            self.one = nn.ModuleList([nn.Linear(4, 4)])
            self.between = nn.Linear(4, 4)
            self.other = nn.ModuleList([nn.Linear(4, 4)])

    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(
        ValueError, match=r"not tell in which layer gain, between.weight, between.bias is; give"
    ) as error:
        split_groups(optimizer, model, layer_decay=0.9)
    assert "body (1 below the head): one.0, other.0" in str(error.value) and len(optimizer.param_groups) == 1
    split_groups(optimizer, model, {"body": 2.0})
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_decay_by_the_places() -> None:
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    split_groups(optimizer, model, layer_decay=0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert by_name["transformer.wpe.weight"] == by_name["transformer.wte.weight"] == 0.125
    assert by_name["transformer.h.1.ln_1.weight"] == 0.5 and by_name["transformer.ln_f.weight"] == 1.0
