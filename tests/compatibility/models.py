"""Models and data of the compatibility checks: a few thousand parameters each, made from configurations alone."""

from __future__ import annotations

from typing import Any

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

WORDS = ("red", "green", "blue", "round", "flat", "old", "new", "small", "large", "dog", "cat", "bird")
CLASSES, LENGTH, ROWS = 3, 8, 48
_SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
VOCABULARY = len(_SPECIAL) + len(WORDS)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with all the special tokens that a trainer asks for."""
    words = {word: number for number, word in enumerate((*_SPECIAL, *WORDS))}
    inner = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    made: Any = PreTrainedTokenizerFast
    tokens: PreTrainedTokenizerFast = made(tokenizer_object=inner, model_max_length=LENGTH, **names)
    return tokens


def sentences(rows: int = ROWS, seed: int = 0) -> datasets.Dataset:
    """Texts of six words and their class, which the first word decides."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WORDS), (rows, 6), generator=generator).tolist()
    texts = [" ".join(WORDS[word] for word in row) for row in drawn]
    return datasets.Dataset.from_dict({"text": texts, "label": [row[0] % CLASSES for row in drawn]})


def encoded(rows: int = ROWS, seed: int = 0) -> datasets.Dataset:
    """The same as `input_ids`, `attention_mask` and `labels`."""
    made = sentences(rows, seed)
    tokens = tokenizer()(list(made["text"]), padding="max_length", max_length=LENGTH, truncation=True)
    columns = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    return datasets.Dataset.from_dict({**columns, "labels": made["label"]})


def copies(rows: int = ROWS, seed: int = 0) -> datasets.Dataset:
    """Sequences to sequences: the target is the input."""
    made = encoded(rows, seed)
    ids = made["input_ids"]
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": made["attention_mask"], "labels": ids})


def prompts(rows: int = ROWS) -> datasets.Dataset:
    """Texts of two words that are to be completed."""
    return datasets.Dataset.from_dict({"prompt": [" ".join(text.split()[:2]) for text in sentences(rows)["text"]]})


def preferences(rows: int = ROWS) -> datasets.Dataset:
    """The same with a completion that was chosen and one that was rejected."""
    texts, starts = sentences(rows)["text"], prompts(rows)["prompt"]
    columns = {"prompt": list(starts), "chosen": ["dog cat"] * rows, "rejected": [text.split()[-1] for text in texts]}
    return datasets.Dataset.from_dict(columns)


def _layers(width: int = 16) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
    }


def bert(seed: int = 0, dropout: float = 0.1) -> BertForSequenceClassification:
    """Classifier of `encoded`."""
    set_seed(seed)
    more: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**_layers(), **more, max_position_embeddings=LENGTH)
    config.num_labels = CLASSES
    return BertForSequenceClassification(config)


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Causal language model over the words."""
    set_seed(seed)
    more: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**_layers(), **more, num_key_value_heads=2))


def llama_scores(seed: int = 0) -> LlamaForSequenceClassification:
    """The same body with one score per text."""
    set_seed(seed)
    more: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_position_embeddings": 64}
    config = LlamaConfig(**_layers(), **more, num_key_value_heads=2)
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def t5(seed: int = 0) -> T5ForConditionalGeneration:
    """Encoder and decoder for `copies`."""
    set_seed(seed)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    config = T5Config(**shape, num_layers=1, pad_token_id=0)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


def flat(model: torch.nn.Module) -> torch.Tensor:
    """All weights that train, in one vector."""
    return torch.cat([p.detach().flatten().float() for p in model.parameters() if p.requires_grad])
