"""`AdaptiveLRTrainer` and Accelerate under their own FSDP plugins, on two processes; against DDP.

Accelerate shards on accelerators only, and runs as DDP on a CPU without a word. Its state is told that there are some,
which is all that these tests change: the plugin, the wrapping, the clipping and the checkpoints are the real ones.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from hf_adaptive_lr import AdaptiveLRTrainer, AdaptiveLRTrainingArguments, AutoController, ControlledLR
from tests import integrations
from tests.sharded import Run, data, launch, plain_bert, seen
from tests.tiny import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
STEPS, SAVED = 20, 9  # at update 9 there is a decision


def _pretend() -> None:
    PartialState._shared_state |= {"distributed_type": DistributedType.MULTI_GPU, "device": torch.device("cpu")}


def _keep(folder: Path, scheduler: ControlledLR) -> None:
    result = {"lr": scheduler.lr_history(), "seen": seen(scheduler)}
    torch.save(result, folder / f"{dist.get_rank()}.pt")


def _read(folder: Path) -> dict:
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    return first


def _train(folder: Path, version: int, checkpoint: str | None) -> None:
    settings = {
        "version": version,
        "transformer_layer_cls_to_wrap": ["BertLayer"],
        "cpu_ram_efficient_loading": False,
        "sync_module_states": False,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    args = integrations.arguments(
        folder,
        AdaptiveLRTrainingArguments,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
        save_strategy="no" if checkpoint else "steps",
        save_steps=SAVED,
        logging_strategy="no",
        **({"fsdp": True, "fsdp_config": settings} if version else {}),
    )
    assert args.device.type == "cpu"  # looking makes Accelerate's state
    if version:
        _pretend()
    trainer = AdaptiveLRTrainer(model=plain_bert(), args=args, train_dataset=Tokens(400), controller="universal")
    trainer.train(resume_from_checkpoint=checkpoint)
    weight = trainer.optimizer.param_groups[0]["params"][0]
    assert isinstance(weight, DTensor) == (version == 2)
    assert hasattr(trainer.model, "_fsdp_wrapped_module") == (version == 1)
    _keep(folder, trainer.lr_scheduler)


# Of torch's checkpoints, and of the first FSDP's.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("version", [1, 2])
def test_trainer_under_fsdp_does_what_it_does_under_ddp_and_resumes(version, tmp_path) -> None:
    whole, sharded = tmp_path / "ddp", tmp_path / "fsdp"
    for folder, number in ((whole, 0), (sharded, version)):
        folder.mkdir()
        launch(_train, folder, number, None)
    expected, found = _read(whole), _read(sharded)
    assert len(set(expected["lr"])) > 10
    assert found["lr"] == pytest.approx(expected["lr"], rel=2e-4)
    if version == 2:
        launch(_train, sharded, version, str(sharded / f"checkpoint-{SAVED}"))
        assert _read(sharded)["lr"] == found["lr"][SAVED:]


def _loop(folder: Path, sharded: bool) -> None:
    assert PartialState(cpu=True).num_processes == 2
    options = {}
    if sharded:
        _pretend()
        options["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["BertLayer"],
            cpu_ram_efficient_loading=False,
        )
    accelerator = Accelerator(gradient_accumulation_steps=2, **options)
    model = plain_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    controller = AutoController.from_pretrained("universal")
    scheduler = inner = ControlledLR(optimizer, controller, model=model, total_steps=STEPS)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    model.train()
    for parts in data(Run(steps=STEPS, accumulation=2, data_ranks=2, make=plain_bert), dist.get_rank()):
        for batch in parts:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    assert isinstance(inner.optimizer.param_groups[0]["params"][0], DTensor) == sharded
    _keep(folder, inner)


def test_accelerate_under_its_fsdp_plugin(tmp_path) -> None:
    """Until a micro-batch reduces them, `fully_shard` keeps gradients to itself: no update was skipped then."""
    found = []
    for sharded in (False, True):
        launch(_loop, tmp_path, sharded)
        found.append(_read(tmp_path))
    assert len(found[0]["lr"]) == STEPS
    assert found[1]["lr"] == pytest.approx(found[0]["lr"], rel=2e-4)
    for name, values in found[0]["seen"].items():
        tolerance = 2e-2 if name == "gain_ratio" else 2e-4
        assert found[1]["seen"][name][2:] == pytest.approx(values[2:], rel=tolerance), name
