"""The options of ``rm-plugins train`` that most trainings use, written down so that ``--help`` needs no import of TRL."""

from __future__ import annotations

from rm_plugins_trl.trl_command import EVALUATION_AND_CHECKPOINTS, TrainOption

GROUPS: dict[str, tuple[TrainOption, ...]] = {
    "Model and data": (
        TrainOption("--model_name_or_path", "MODEL", "Folder or hub id of the model to train."),
        TrainOption("--dataset_name", "FILE|DATASET", "Training data: a file or folder of rows, or a dataset."),
        TrainOption("--eval_dataset_name", "FILE|DATASET", "Evaluation data."),
        TrainOption("--map", "PRESET|OLD=NEW", "Rename or convert columns, as `rm-plugins score` does."),
        TrainOption("--output_dir", "FOLDER", "Where the model and checkpoints are saved."),
        TrainOption("--config", "FILE.yaml", "Read options from a file; those of the command line win."),
    ),
    "Reward": (
        TrainOption("--loss", "NAME|JSON", "`rm-plugins list losses` shows them.", "bradley-terry"),
        TrainOption("--regularizers", "JSON", 'Terms added to the loss, such as {"centering": 0.01}.'),
        TrainOption("--members", "N", "Score heads of an ensemble on one backbone.", "1"),
        TrainOption("--max_length", "TOKENS", "The longest text.", "1024"),
        TrainOption("--overlong", "drop|truncate", "Drop rows with longer texts, or truncate the texts.", "drop"),
    ),
    "Training": (
        TrainOption("--learning_rate", "NUMBER", "By default, depends on the model's size."),
        TrainOption("--num_train_epochs", "NUMBER", "By default, depends on the model's size."),
        TrainOption("--per_device_train_batch_size", "N", "By default, depends on the model's size."),
        TrainOption("--gradient_accumulation_steps", "N", "Batches per step.", "1"),
        TrainOption("--max_steps", "N", "Stop after N steps; -1 for whole epochs.", "-1"),
        TrainOption("--use_peft", "", "Train a LoRA adapter; see --lora_r, --lora_alpha."),
        TrainOption("--seed", "N", "Seed of everything random.", "42"),
    ),
    "Memory": (
        TrainOption("--plan", "", "Print the memory that it needs, and exit."),
        TrainOption("--device_memory", "GIB", "A device's memory, for --plan."),
        TrainOption("--gradient_checkpointing", "true|false", "Compute activations again.", "True"),
        TrainOption("--max_batch_tokens", "N", "The most tokens computed at a time."),
    ),
    "Evaluation and checkpoints": EVALUATION_AND_CHECKPOINTS,
}
