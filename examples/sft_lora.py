"""Fine-tune a language model with TRL's SFTTrainer, LoRA and a controller; no learning rate to choose.

    python examples/sft_lora.py --output_dir out
    python examples/sft_lora.py --model_name_or_path org/model --train_file texts.jsonl --max_steps 200

What to copy: `class AdaptiveSFTTrainer(AdaptiveLRMixin, SFTTrainer)`, and `controller=` beside the usual arguments.
Without --model_name_or_path a very small Llama with random weights reads 20 Newsgroups, which shows that it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_adaptive_lr import AdaptiveLRMixin
from hf_adaptive_lr.demo.data import demo_text, demo_text_model


class AdaptiveSFTTrainer(AdaptiveLRMixin, SFTTrainer):
    """SFTTrainer whose learning rate a controller decides."""


@dataclass
class Arguments:
    """What to train, and how long."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Folder or Hub id."})
    train_file: str | None = field(default=None, metadata={"help": "JSON lines with a column `text`."})
    controller: str = field(default="universal", metadata={"help": "Name, folder, file.py:Class or Hub id."})
    max_steps: int = field(default=60, metadata={"help": "Updates."})
    rank: int = field(default=8, metadata={"help": "Rank of the adapters."})
    output_dir: str = field(default="runs/example-sft", metadata={"help": "Output folder."})


def load_model(name: str | None) -> tuple[torch.nn.Module, AutoTokenizer]:
    """The model and its tokenizer, with a padding token."""
    tokenizer = AutoTokenizer.from_pretrained(name or demo_text_model())
    if name is not None:
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return AutoModelForCausalLM.from_pretrained(name), tokenizer
    tokenizer.eos_token = tokenizer.sep_token  # the tokenizer is that of an encoder
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape, **ends)), tokenizer


def load_texts(file: str | None) -> Dataset:
    """A data set with one column, `text`."""
    if file is not None:
        return load_dataset("json", data_files=file, split="train").select_columns("text")
    return demo_text().train.select_columns("text")


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    torch.manual_seed(0)
    model, tokenizer = load_model(args.model_name_or_path)
    trainer = AdaptiveSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=args.output_dir,
            max_steps=args.max_steps,
            max_length=64,
            per_device_train_batch_size=8,
            logging_steps=10,
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=load_texts(args.train_file),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=args.rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        controller=args.controller,
    )
    trainer.train()
    trainer.save_model()

    rates = trainer.lr_scheduler.lr_history()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} ... {losses[-1]:.3f}")
    print(f"learning rate {min(rates):.3g} ... {max(rates):.3g} ({args.controller})")


if __name__ == "__main__":
    main()
