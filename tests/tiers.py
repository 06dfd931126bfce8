"""The tier of every test file: `make test` runs all of them, `make test-fast` the core."""

from __future__ import annotations

from functools import cache

TIERS = {
    # Contracts, formulas and files: seconds a file, within one process.
    "core": """
        actor_critic adapters bilevel cadence card cli_options controllers difference dsa envelope files_of_v0_1
        finetune_data gain guard hostile idle_updates imports integrations kl_target layer_groups look loss_window
        mlr_snet model_places model_sensors negative_losses other_writers own_code pending_updates plrs ppo_schedule
        precision range_test refine report sampled_difference start update_size reported_loss runtime sensors
        snapshot tasks trace trained_loss universal updates
    """,
    # Whole trainings, several processes, the Hub, the command line, other libraries, the demo and the examples.
    "integration": """
        anytime checkpoints cli compatibility demo_data demo_image_model docs dsa_claims env envelope_runs
        evaluation_loss evolution examples files_in_the_way finetune guard_callback guard_restless hub hub_cli
        hub_server kills look_ahead meta_trainer notebook_and_space packaging papers_everywhere ppo
        deepspeed ranks resume second_look sharded sharded_trainer train trainer
    """,
    # The benchmark and the studies: their runs, their statistics, and the pages that their rows make.
    "bench": """
        bench_data bench_page bench_sources bench_stats bench_tasks benchmark gpu guard_study overhead paper_study
        runner studies systems
    """,
}


@cache
def tier_of(file: str) -> str:
    """The tier of a test file, by its name; raises ValueError for a file that has none or several."""
    name = file.removesuffix(".py").removeprefix("test_")
    found = [tier for tier, names in TIERS.items() if name in names.split()]
    if len(found) != 1:
        raise ValueError(f"{file} has the tiers {found}; give it exactly one in tests/tiers.py")
    return found[0]
