"""The names and kinds of `transformers.TrainingArguments`, written down so that a recipe can be
checked without importing torch or transformers (a test compares them with the installed ones).

Knows no recipe file and no line numbers.
"""

import importlib.util
import math
from typing import Any

from pydantic import JsonValue

from llmrec.recipe.section import MOST

# kinds -> names. Kinds: int, float, bool, str, list, mapping, null.
_NAMES_BY_KINDS = {
    "int": """
        per_device_train_batch_size max_steps gradient_accumulation_steps
        per_device_eval_batch_size seed dataloader_num_workers ddp_timeout local_rank""",
    "int null": """
        torch_empty_cache_steps eval_accumulation_steps save_total_limit data_seed
        dataloader_prefetch_factor ddp_bucket_cap_mb""",
    "float": """
        num_train_epochs learning_rate warmup_steps weight_decay adam_beta1 adam_beta2
        adam_epsilon max_grad_norm label_smoothing_factor logging_steps eval_delay save_steps""",
    "float null": "neftune_noise_alpha eval_steps",
    "bool": """
        average_tokens_across_devices bf16 fp16 bf16_full_eval fp16_full_eval torch_compile
        use_liger_kernel use_cache auto_find_batch_size logging_first_step log_on_each_node
        logging_nan_inf_filter prediction_loss_only eval_on_start eval_do_concat_batches
        eval_use_gather_object batch_eval_metrics save_only_model save_on_each_node
        enable_jit_checkpoint push_to_hub hub_always_push load_best_model_at_end ignore_data_skip
        restore_callback_states_from_checkpoint full_determinism use_cpu dataloader_drop_last
        dataloader_pin_memory dataloader_persistent_workers dataloader_in_order
        remove_unused_columns skip_memory_metrics do_train do_eval do_predict""",
    "bool null": """
        tf32 activation_checkpointing gradient_checkpointing disable_tqdm hub_private_repo
        greater_is_better ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph""",
    "bool str": "include_num_input_tokens_seen",
    "bool str null": "trackio_static_space_id",
    "str": """
        lr_scheduler_type optim logging_strategy log_level log_level_replica project eval_strategy
        save_strategy hub_strategy train_sampling_strategy length_column_name""",
    "str null": """
        output_dir optim_args torch_compile_backend torch_compile_mode run_name trackio_space_id
        trackio_bucket_id hub_token hub_model_id hub_revision metric_for_best_model
        dataloader_multiprocessing_context ddp_backend fsdp resume_from_checkpoint""",
    "str list": "debug",
    "str list null": "optim_target_modules report_to",
    "str mapping null": """
        lr_scheduler_kwargs activation_checkpointing_kwargs gradient_checkpointing_kwargs
        accelerator_config fsdp_config deepspeed""",
    "list": "include_for_metrics",
    "list null": "label_names",
    "mapping null": "liger_kernel_config parallelism_config",
}
KINDS = {
    name: frozenset(kinds.split())
    for kinds, names in _NAMES_BY_KINDS.items()
    for name in names.split()
}

_STRATEGIES = ("no", "steps", "epoch")
_OPTIMISERS = """
    adamw_torch adamw_torch_fused adamw_torch_xla adamw_torch_npu_fused adafactor
    adamw_anyprecision adamw_torch_4bit adamw_torch_8bit ademamix sgd adagrad adamw_bnb_8bit
    adamw_8bit ademamix_8bit lion_8bit lion_32bit paged_adamw_32bit paged_adamw_8bit
    paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop
    rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit
    galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise
    galore_adafactor_layerwise lomo adalomo grokadamw schedule_free_radam schedule_free_adamw
    schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw"""
_REPORTS = """
    none all azure_ml comet_ml mlflow neptune tensorboard trackio wandb codecarbon clearml
    dagshub flyte dvclive swanlab kubeflow"""
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
CHOICES = {
    "log_level": _LOG_LEVELS,
    "log_level_replica": _LOG_LEVELS,
    "lr_scheduler_type": (
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
        "greedy",
    ),
    "logging_strategy": _STRATEGIES,
    "eval_strategy": _STRATEGIES,
    "save_strategy": (*_STRATEGIES, "best"),
    "optim": tuple(_OPTIMISERS.split()),
    "report_to": tuple(_REPORTS.split()),
}
_AT_LEAST_ONE = {
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
}
_NOT_NEGATIVE = {
    "num_train_epochs",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "logging_steps",
    "save_steps",
    "eval_steps",
    "dataloader_num_workers",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
}

# Numbers that are no counts, and those of them that stay below 1.
FRACTIONS = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
_BELOW_ONE = {"adam_beta1", "adam_beta2"}

_BEST = "llmrec keeps the weights that did best in validation by itself"
_LOSS = "llmrec computes the loss itself (see `objective`) as a mean over the targets of a step"
_ROWS = "the rows are token trees, which llmrec lays out and batches by length itself"
_UPLOAD = "llmrec uploads nothing; copy the adapter folder where you want it"
_PREDICT = "validation is llmrec's own: the likelihood of each held-out target"
REFUSED = {
    "output_dir": "checkpoints go to the run folder; set `output_dir` and `name` of the recipe",
    "seed": "set `seed` of the recipe, which seeds everything",
    "data_seed": "set `seed` of the recipe, which seeds everything",
    "remove_unused_columns": _ROWS,
    "label_names": _ROWS,
    "length_column_name": _ROWS,
    "train_sampling_strategy": _ROWS,
    "include_num_input_tokens_seen": _ROWS,
    "logging_nan_inf_filter": "a loss that is not finite must stop the run, never be hidden",
    "label_smoothing_factor": _LOSS,
    "average_tokens_across_devices": _LOSS,
    "use_liger_kernel": _LOSS,
    "liger_kernel_config": _LOSS,
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "prediction_loss_only": _PREDICT,
    "include_for_metrics": _PREDICT,
    "batch_eval_metrics": _PREDICT,
    "eval_do_concat_batches": _PREDICT,
    "eval_use_gather_object": _PREDICT,
    "eval_accumulation_steps": _PREDICT,
    "do_train": "the verb says what is done",
    "do_eval": "the verb says what is done",
    "do_predict": "the verb says what is done",
    "resume_from_checkpoint": "`llmrec train` goes on from the newest whole checkpoint by itself",
    "enable_jit_checkpoint": "llmrec itself saves at the end of the step when it is told to stop",
    "auto_find_batch_size": "it changes the effective batch; llmrec halves the micro-batch and "
    "doubles the accumulation where memory runs out",
    "save_only_model": "a checkpoint without the optimiser could not be resumed",
    "local_rank": "the launcher sets it: `accelerate launch -m llmrec train ...`",
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        _UPLOAD,
    ),
}

DEFAULTS: dict[str, JsonValue] = {
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 10,
    "logging_steps": 10,
    "report_to": "none",
}
ALLOWED = tuple(sorted(set(KINDS) - set(REFUSED)))

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "mapping": "a section of keys",
    "null": "null",
}


def allowed_values(name: str) -> str:
    """In words, what `name` takes."""
    if name in CHOICES:
        lists = ", or a list of them" if "list" in KINDS[name] else ""
        return "one of " + ", ".join(CHOICES[name]) + lists
    order = [word for kind, word in _WORDS.items() if kind in KINDS[name]]
    bound = ", at least 1" if name in _AT_LEAST_ONE else ""
    bound = ", at least 0" if name in _NOT_NEGATIVE else bound
    if name in _BELOW_ONE:
        return " or ".join(order) + bound + " and below 1"
    most = f", at most {MOST}" if KINDS[name] & {"int", "float"} else ""
    return " or ".join(order) + bound + most


# By the beginning of an optimiser's name, or what reports go to: the package that has it.
_PACKAGES = {
    "optim": {
        "galore_": "galore_torch",
        "apollo_": "apollo_torch",
        "lomo": "lomo_optim",
        "adalomo": "lomo_optim",
        "grokadamw": "grokadamw",
        "schedule_free_": "schedulefree",
        "stable_adamw": "torch_optimi",
        "adamw_anyprecision": "torchdistx",
        "adamw_torch_4bit": "torchao",
        "adamw_torch_8bit": "torchao",
        **dict.fromkeys(
            ("adamw_bnb", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"),
            "bitsandbytes",
        ),
    },
    "report_to": {
        "dagshub": "mlflow",
        **{n: n for n in ("mlflow", "neptune", "tensorboard", "trackio", "wandb", "dvclive")},
    },
}


def missing_package(name: str, value: Any) -> str | None:
    """The package that a value of `optim` or `report_to` needs and this machine has not."""
    words = value if isinstance(value, list) else [value]
    for word in words:
        for begins, package in _PACKAGES.get(name, {}).items():
            if str(word).startswith(begins) and importlib.util.find_spec(package) is None:
                return package
    return None


def fits(name: str, value: Any) -> bool:
    """Whether `value`, as YAML gave it, is of a kind that `name` takes and within its bounds."""
    kinds = KINDS[name]
    if value is None:
        return "null" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, int | float):
        if not kinds & ({"int", "float"} if isinstance(value, int) else {"float"}):
            return False
        if name in _BELOW_ONE and value >= 1:
            return False
        least = 1 if name in _AT_LEAST_ONE else 0 if name in _NOT_NEGATIVE else -math.inf
        return max(least, -MOST) <= value <= MOST
    if isinstance(value, str):
        return "str" in kinds and value in CHOICES.get(name, (value,))
    if isinstance(value, list) and name in CHOICES:
        return all(one in CHOICES[name] for one in value)
    return ("list" if isinstance(value, list) else "mapping") in kinds
