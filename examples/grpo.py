"""Train with TRL's GRPOTrainer, and let a controller bound how far an update moves the policy.

    python examples/grpo.py --learning_rate 0.3
    python examples/grpo.py --learning_rate 0.3 --controller constant     # the same without: it never learns
    python examples/grpo.py --model_name_or_path org/model --train_file prompts.jsonl --learning_rate 1e-5

What to copy: `class AdaptiveGRPOTrainer(AdaptiveLRMixin, GRPOTrainer)` and `controller="kl_target"`. The learning rate
is the largest that may be used; 0.003 is right for this model, and a hundred times as much does no harm.
Without --model_name_or_path a very small Llama with random weights learns to repeat the first word of its prompt. The
reward is the share of its words that are that word, so it can reach 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from trl import GRPOConfig, GRPOTrainer

from hf_adaptive_lr import AdaptiveLRMixin

WORDS = ("red", "green", "blue", "round", "flat", "old", "new", "small")
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
LENGTH = 2


class AdaptiveGRPOTrainer(AdaptiveLRMixin, GRPOTrainer):
    """GRPOTrainer whose learning rate a controller decides."""


@dataclass
class Arguments:
    """What to train, and how long."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with a column `prompt`."})
    controller: str = field(default="kl_target", metadata={"help": "Name, folder, file.py:Class or Hub id."})
    learning_rate: float = field(default=0.003, metadata={"help": "The largest that may be used."})
    max_steps: int = field(default=200, metadata={"help": "Updates."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data and generations."})
    output_dir: str = field(default="runs/example-grpo", metadata={"help": "Output folder."})


def repeats(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """Reward of each completion: the share of its words that are the first word of its prompt."""
    pairs = zip(prompts, completions, strict=True)
    return [completion.split().count(prompt.split()[0]) / LENGTH for prompt, completion in pairs]


def tiny_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A Llama of some ten thousand weights, and a tokenizer with a token for every word."""
    tokens = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(WordLevel(tokens, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), max_position_embeddings=16, **shape, **ids))
    return model, PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=16, **names)


def prompts(file: str | None = None) -> Dataset:
    """A data set with a column `prompt`: of a file, or all pairs of words."""
    if file is not None:
        return load_dataset("json", data_files=file, split="train")
    return Dataset.from_dict({"prompt": [f"{first} {second}" for first in WORDS for second in WORDS]})


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    if args.model_name_or_path is None:
        model, tokenizer = tiny_model()
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    trainer = AdaptiveGRPOTrainer(
        model=model,
        args=GRPOConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=LENGTH if args.model_name_or_path is None else 256,
            logging_steps=1,
            seed=args.seed,
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=prompts(args.train_file),
        processing_class=tokenizer,
        reward_funcs=repeats,  # your own here
        controller=args.controller,
    )
    trainer.train()

    rates = trainer.lr_scheduler.lr_history()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    print(f"reward {fmean(rewards[:10]):.3f} ... {fmean(rewards[-10:]):.3f}")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
