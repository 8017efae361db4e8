"""The options of ``rm-plugins ppo`` that most trainings use, written down so that ``--help`` needs no import of TRL."""

from __future__ import annotations

from rm_plugins_trl.trl_command import EVALUATION_AND_CHECKPOINTS, TrainOption

GROUPS: dict[str, tuple[TrainOption, ...]] = {
    "Model and data": (
        TrainOption("--model_name_or_path", "MODEL", "Folder or hub id of the policy."),
        TrainOption("--dataset_name", "FILE|DATASET", "Prompts: a file, folder or dataset."),
        TrainOption("--eval_dataset_name", "FILE|DATASET", "Prompts of the evaluation."),
        TrainOption("--map", "PRESET|OLD=NEW", "Rename or convert columns."),
        TrainOption("--output_dir", "FOLDER", "Where everything is saved; by default trainer_output."),
        TrainOption("--config", "FILE.yaml", "Read options from a file; those of the command line win."),
    ),
    "Reward": (
        TrainOption("--reward", "SPEC", "The reward; more are added up with --reward_weights."),
        TrainOption("--reward_scaling", "none|running", "Divide by the deviation so far.", "none"),
        TrainOption("--missing_eos_penalty", "NUMBER", "Subtracted from a score without an end."),
    ),
    "PPO": (
        TrainOption("--preset", "trl|openrlhf", "The defaults to start from.", "trl"),
        TrainOption("--total_episodes", "N", "Completions to train on in all."),
        TrainOption("--response_length", "TOKENS", "The longest completion.", "53"),
        TrainOption("--temperature", "NUMBER", "Of sampling.", "0.7"),
        TrainOption("--num_ppo_epochs", "N", "Passes over each rollout.", "4"),
        TrainOption("--num_mini_batches", "N", "Optimizer steps of a pass.", "1"),
        TrainOption("--kl_coef", "NUMBER", "Weight of the KL divergence.", "0.05"),
        TrainOption("--cliprange", "NUMBER", "How far a step may go.", "0.2"),
        TrainOption("--critic", "policy|reward|head", "Where the value model starts.", "policy"),
    ),
    "Training": (
        TrainOption("--learning_rate", "NUMBER", "Of the policy; see --critic_learning_rate.", "3e-06"),
        TrainOption("--per_device_train_batch_size", "N", "Completions of a forward pass.", "8"),
        TrainOption("--gradient_accumulation_steps", "N", "Passes per optimizer step.", "1"),
        TrainOption("--use_peft", "", "Train a LoRA adapter; see --lora_r, --lora_alpha."),
        TrainOption("--use_vllm", "", "Sample with vLLM; see --vllm_mode."),
        TrainOption("--seed", "N", "Seed of everything random.", "42"),
    ),
    "Evaluation and checkpoints": EVALUATION_AND_CHECKPOINTS,
}
