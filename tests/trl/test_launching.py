"""Accelerate's configurations, and what contradicts them, before anything is loaded."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate.commands import launch as accelerate_launch
from accelerate.commands.config.config_args import load_config_from_file
from click import UsageError
from click.testing import CliRunner

from rm_plugins.cli import main
from rm_plugins.errors import RmPluginsError, SpecError, UnsupportedError
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import accelerate_checks, launching
from rm_plugins_trl.accelerate_settings import FOLDER, NAMES
from rm_plugins_trl.launching import Launch, asked_of
from tests.trl.conftest import newest_trl, write_jsonl
from tests.warm_process import run_warm

ROW = {"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}
QUIET = ("--report_to", "none", "--disable_tqdm", "true", "--gradient_checkpointing", "false", "--bf16", "false")


def training(**changes: Any) -> Any:
    """The arguments of a training, as far as launching reads them."""
    usual = {
        "use_cpu": False,
        "bf16": True,
        "fp16": False,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "deepspeed": None,
        "fsdp": None,
    }
    return SimpleNamespace(**{**usual, **changes})


def asked(*launcher: str | Path) -> Launch:
    return asked_of("train", [*map(str, launcher)], options=lambda: ["--learning_rate"], advice=lambda option: "")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Gives what accelerate's launcher would start on a machine with `devices`: its arguments, and the configuration in its file."""

    def start(*launcher: str | Path, devices: int = 8, **changes: Any) -> Any:
        found: list[Any] = []

        def record(settings: Any) -> None:
            settings, *_ = accelerate_launch._validate_launch_command(settings)
            found.append(settings)

        monkeypatch.setattr(accelerate_launch, "launch_command", record)
        monkeypatch.setattr(launching, "device_count", lambda: devices)
        monkeypatch.setattr(accelerate_checks, "device_count", lambda: devices)
        monkeypatch.setattr(accelerate_checks, "find_spec", lambda name: True)
        launching.launch("a.module", asked(*launcher), ["--output_dir", "rm"], training(**changes))
        return found[0]

    return start


def config_file(folder: Path, **settings: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", **settings}), encoding="utf-8")
    return path


class TestConfigurations:
    @pytest.mark.parametrize("name", NAMES)
    def test_accelerate_reads_it(self, name: str) -> None:
        config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
        assert config.mixed_precision is None  # the training's own holds
        assert config.num_processes == -1

    def test_there_are_no_others(self) -> None:
        assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)

    def test_what_is_started(self, started: Callable[..., Any]) -> None:
        ddp, fsdp, zero2, zero3 = (started("--accelerate", name) for name in NAMES)
        assert [one.num_processes for one in (ddp, fsdp, zero2, zero3)] == [8] * 4
        assert (ddp.multi_gpu, ddp.use_fsdp, ddp.use_deepspeed) == (True, False, False)
        assert (fsdp.use_fsdp, fsdp.fsdp_version, fsdp.fsdp_state_dict_type) == (True, 2, "FULL_STATE_DICT")
        assert (fsdp.fsdp_auto_wrap_policy, fsdp.fsdp_activation_checkpointing) == ("TRANSFORMER_BASED_WRAP", False)
        assert (zero2.use_deepspeed, zero2.zero_stage) == (True, 2)
        assert (zero3.zero_stage, zero3.zero3_save_16bit_model, zero3.zero3_init_flag) == (3, True, True)
        assert {one.mixed_precision for one in (ddp, fsdp, zero2, zero3)} == {"no"}
        assert (fsdp.module, fsdp.training_script, fsdp.training_script_args) == (True, "a.module", ["--output_dir", "rm"])

    def test_the_command_line_wins(self, started: Callable[..., Any]) -> None:
        found = started("--accelerate=fsdp2", "--num_processes", "2", "--fsdp_offload_params", "true", "--gpu_ids", "4,5")
        assert (found.num_processes, found.fsdp_offload_params, found.gpu_ids) == (2, "true", "4,5")

    def test_a_users_file_wins_over_ours(self, started: Callable[..., Any], tmp_path: Path) -> None:
        file = config_file(tmp_path, distributed_type="FSDP", num_processes=4, fsdp_config={"fsdp_offload_params": True})
        for option in ("--config_file", "--accelerate_config"):
            found = started("--accelerate", "fsdp2", option, file)
            assert (found.num_processes, found.fsdp_offload_params, found.fsdp_version) == (4, True, 2)
            assert found.fsdp_auto_wrap_policy == "TRANSFORMER_BASED_WRAP"

    def test_trls_names_and_files_work_alone(self, started: Callable[..., Any], tmp_path: Path) -> None:
        assert started("--accelerate_config", "fsdp2").fsdp_version == 2
        assert started("--config_file", config_file(tmp_path, distributed_type="MULTI_GPU", num_processes=3)).num_processes == 3


WRONG: list[tuple[Sequence[str], dict[str, Any], dict[str, Any] | None, str]] = [
    (["--accelerate", "fsdp3"], {}, None, "no configuration 'fsdp3'. Did you mean fsdp2"),
    (["--accelerate"], {}, None, "--accelerate needs a value"),
    (["--accelerate", "ddp", "--accelerate", "zero2"], {}, None, "given twice: ddp and zero2"),
    (["--accelerate", "fsdp2"], {}, {"distributed_type": "DEEPSPEED"}, "--accelerate fsdp2 contradicts"),
    (["--accelerate", "fsdp2"], {}, {"distributed_type": "NO"}, "which says distributed_type: NO"),
    (["--accelerate", "fsdp2"], {}, {"fsdp_config": {"fsdp_version": 1}}, "which says fsdp_version: 1"),
    (["--accelerate", "zero3"], {}, {"deepspeed_config": {"zero_stage": 2}}, "which says zero_stage: 2"),
    (["--accelerate", "fsdp2", "--use_deepspeed"], {}, None, "--use_deepspeed contradicts --accelerate fsdp2"),
    (["--accelerate", "fsdp2"], {"deepspeed": "ds.json"}, None, "--deepspeed ds.json contradicts FSDP2"),
    (["--accelerate_config", "fsdp2"], {"bf16": False}, None, "is bf16, but the training computes in float32"),
    ([], {"bf16": False}, {"mixed_precision": "bf16", "distributed_type": "MULTI_GPU"}, "Leave it out, or add --bf16 true"),
    (
        ["--accelerate", "ddp", "--mixed_precision", "no"],
        {},
        None,
        "--mixed_precision is no, but the training computes in bf16",
    ),
    (["--accelerate", "ddp", "--mixed_precision", "fp16"], {}, None, "--mixed_precision is fp16, but"),
    (["--accelerate", "fsdp2"], {"use_cpu": True}, None, "FSDP2 does not run on CPUs"),
    (["--accelerate", "zero3", "--cpu"], {}, None, "ZeRO-3 does not run on CPUs"),
    ([], {}, {"distributed_type": "FSDP", "use_cpu": True}, "FSDP1 does not run on CPUs"),
    (["--accelerate", "ddp", "--num_machines", "2"], {"use_cpu": True}, None, "need MPI"),
    (["--accelerate_config", "multi_gpu", "--num_processes", "9"], {}, None, "asks for 9 processes"),
    (
        ["--accelerate", "ddp", "--num_processes", "3", "--gpu_ids", "0,1"],
        {},
        None,
        "but gpu_ids names 2. Give --num_processes 2",
    ),
    (["--accelerate", "ddp", "--num_processes", "18", "--num_machines", "2"], {}, None, "Give --num_processes 16"),
    (["--accelerate", "fsdp2", "--fsdp_activation_checkpointing", "true"], {}, None, "Add --gradient_checkpointing false"),
    (
        ["--accelerate", "zero2"],
        {},
        {"deepspeed_config": {"gradient_accumulation_steps": 4}},
        "is 4, but --gradient_accumulation_steps is 1",
    ),
    (["--accelerate", "zero2"], {}, {"deepspeed_config": {"gradient_clipping": 0.5}}, "Give --max_grad_norm 0.5"),
    ([], {}, {"num_processes": 2, "distributed_type": "FSDP", "fsdp_config": []}, "fsdp_config must be a mapping"),
    ([], {}, {"num_processes": "two"}, "num_processes must be a whole number, not 'two'"),
]


@pytest.mark.parametrize(("launcher", "changes", "file", "message"), WRONG)
def test_contradictions(
    launcher: Sequence[str], changes: dict[str, Any], file: Any, message: str, started: Callable[..., Any], tmp_path: Path
) -> None:
    given = ["--config_file", str(config_file(tmp_path, **file))] if file is not None else []
    with pytest.raises((RmPluginsError, UsageError), match=message):
        started(*launcher, *given, **changes)


def test_what_agrees_is_started(started: Callable[..., Any], tmp_path: Path) -> None:
    assert started("--accelerate_config", "fsdp2", bf16=True).mixed_precision == "bf16"
    assert started("--accelerate", "fsdp2", "--fsdp_activation_checkpointing", "true", gradient_checkpointing=False).use_fsdp
    written = config_file(tmp_path, distributed_type="MULTI_GPU", mixed_precision="no", num_processes=2)
    assert (
        started("--config_file", written, bf16=True).num_processes == 2
    )  # what `accelerate config` writes if nothing was chosen


def test_a_deepspeed_file_is_compared(started: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"gradient_accumulation_steps": 2, "gradient_clipping": "auto"}), encoding="utf-8")
    started("--accelerate", "zero2", "--deepspeed_config_file", file, gradient_accumulation_steps=2)
    with pytest.raises(SpecError, match="but --gradient_accumulation_steps is 3"):
        started("--accelerate", "zero2", "--deepspeed_config_file", file, gradient_accumulation_steps=3)


@pytest.mark.parametrize(
    ("variables", "changes", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {"use_cpu": True}, "FSDP does not run on CPUs"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "1"}, {}, "DeepSpeed does not run on CPUs"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {"bf16": False}, "the training computes in float32"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, {"gradient_accumulation_steps": 2}, "is 1, but"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "--gradient_checkpointing false"),
    ],
)
def test_variables(variables: dict[str, str], changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    accelerate_checks.check_environment(training(**changes))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=message):
        accelerate_checks.check_environment(training(**changes))


def test_a_machine_without_accelerators(started: Callable[..., Any]) -> None:
    with pytest.raises(SpecError, match="Add --use_cpu true"):
        started("--num_processes", "2", devices=0)
    with pytest.raises(SpecError, match="no accelerator, which FSDP2 would use"):
        started("--accelerate", "fsdp2", devices=0)


@newest_trl
def test_ppo_is_not_sharded() -> None:
    from rm_plugins_trl.ppo.command import PROGRAM

    PROGRAM.check_launch(asked("--accelerate", "ddp"))
    with pytest.raises(UnsupportedError, match="PPO does not run under FSDP"):
        PROGRAM.check_launch(asked("--accelerate", "zero2"))


class TestCommand:
    def test_before_anything_is_loaded(self, tmp_path: Path) -> None:
        data = write_jsonl(tmp_path / "pairs.jsonl", [ROW])
        arguments = [
            "train",
            "--model_name_or_path",
            "no-model",
            "--dataset_name",
            str(data),
            "--output_dir",
            str(tmp_path / "rm"),
        ]
        told = CliRunner().invoke(main, [*arguments, "--accelerate", "fsdp2", "--use_cpu", "true"])
        assert told.exit_code == 1
        assert "FSDP2 does not run on CPUs" in told.output

    @newest_trl
    def test_settings_in_a_file_start_processes_once(self, tiny_decoder: Any, tmp_path: Path) -> None:
        """Without ``--cpu``; and the processes, which read the same file, start no others."""
        data = write_jsonl(tmp_path / "pairs.jsonl", [ROW] * 16)
        settings = {"num_processes": 2, "accelerate": "ddp", "use_cpu": True, "output_dir": str(tmp_path / "rm")}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        run_warm(
            *("rm_plugins", "train", "--config", tmp_path / "train.yaml", "--model_name_or_path", tiny_decoder()),
            *("--dataset_name", data, "--max_steps", "1", "--per_device_train_batch_size", "4", *QUIET),
        )
        assert Manifest.read(tmp_path / "rm" / "reward_manifest.json").training["rows_per_step"] == 8

    def test_a_process_of_a_launcher_starts_no_other(self, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        from rm_plugins_trl.reward_training.train import PROGRAM

        monkeypatch.setattr(sys, "argv", ["train", "--output_dir", "rm", "--num_processes", "2", "--use_cpu", "true"])
        with pytest.raises(SystemExit):
            PROGRAM.run_as_one_of_several()
        assert "--num_processes is for a launcher, and this process was started by one" in capsys.readouterr().err

    def test_its_options_are_in_the_help(self) -> None:
        for option in ("--help", "--help-all"):
            told = CliRunner().invoke(main, ["train", option]).output
            several = told[told.index("Several processes:") :]
            assert "--accelerate ddp|fsdp2|zero2|zero3" in several[: several.index("--accelerate_config")]
