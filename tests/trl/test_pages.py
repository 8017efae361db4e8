"""The README and the documentation tell the truth: their code runs, and their tables match what is there.

Models and datasets of the hub are replaced by small ones of the same form; the code is otherwise run as it is printed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from datasets import Dataset
from trl import RewardConfig as TrlRewardConfig

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.hookspecs import HookSpecs
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins_trl import RewardConfig, RewardTrainer
from rm_plugins_trl.ppo import TRL_HAS_PPO
from rm_plugins_trl.reward_training.presets import preset
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import Choice, choice
from tests.fake_servers.native import native
from tests.servers import RewardServer, serving
from tests.trl.conftest import newest_trl, write_jsonl
from tests.warm_process import run_warm

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant:UserWarning"),
]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb") and "_build" not in path.parts),
]
OF_RAY = DOCS / "ray.md"
"""Its code runs in tests/ray, where Ray is installed."""
AS_ON_A_CPU = [
    page for page in PAGES if page.parent.name in (ROOT.name, "getting-started", "tutorials") or page.name == "watching.md"
]
"""Pages whose trainings start on a machine without a GPU as they are printed."""
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("rm-plugins", "trl")
QUESTION = [{"role": "user", "content": "Name a colour."}]


def preference(question: str) -> dict[str, Any]:
    asked = [{"role": "user", "content": question}]
    answers = {"chosen": "It is blue.", "rejected": "two"}
    return {name: [*asked, {"role": "assistant", "content": answer}] for name, answer in answers.items()}


PREFERENCE = preference("Name a colour.")
PREFERENCES = [PREFERENCE] * 8 + [preference(f"Name colour {number}.") for number in range(8)]
PROMPT = {"prompt": QUESTION}
"""Conversations, as in the datasets that they stand for."""
# Settings that a page leaves out to stay readable, and settings that keep a run small.
SMALL: dict[str, Any] = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1}


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook that hold code."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def python_of(page: Path) -> list[str]:
    """The Python of a page or notebook."""
    return ["".join(cell["source"]) for cell in cells(page)] if page.suffix == ".ipynb" else blocks(page, "python")


def commands_of(page: Path) -> list[str]:
    """Every ``rm-plugins`` and ``trl`` line of a page that ends by itself; pip and make belong to the set-up.

    The demonstration takes minutes and has tests of its own.
    """
    lines = [line for code in blocks(page, "console") for line in code.splitlines() if line.startswith("$ ")]
    return [
        line.removeprefix("$ ") for line in lines if line.split()[1] in PROGRAMS and line.split()[2] not in ("serve", "demo")
    ]


OTHER_FORMAT = "This warning is logged only once"
"""The end of the warning that a model gets text and was trained on conversations, or the reverse."""

SERVED = "127.0.0.1:8000"
"""The server that pages speak to."""

SERVED_JUDGE = "http://gpu-1:8000"
"""The judge that pages speak to."""

SPECS = {
    "compared.yaml": "providers/comparison.md",
    "grade.yaml": "providers/judges.md",
    "rubric.yaml": "providers/rubric.md",
    "tools.yaml": "agents.md",
}
"""The files that commands name, each with the page whose first spec it has."""

CURL = re.compile(r"^\$ (curl (?:.*\n)(?:  .*\n)*)", re.MULTILINE)


TEXTS_ONLY = re.compile(r"^curl -sS http://[^/]+/(score|rerank) ")
"""Requests that cannot send messages: a model that was trained on conversations warns of them."""


def requests_of(page: Path) -> list[str]:
    """Every ``curl`` command of a page."""
    return [found for code in blocks(page, "console") for found in CURL.findall(code)]


def each_page(found_on: Callable[[Path], list[str]]) -> pytest.MarkDecorator:
    """Run a test for each page that has something for it; with an older TRL, too, if it says ``trl`` there."""
    found = {page: found_on(page) for page in PAGES if page != OF_RAY}
    pages = [
        pytest.param(page, marks=[] if any("trl" in code for code in codes) else newest_trl)
        for page, codes in found.items()
        if codes
    ]
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(scope="module")
def reward(tiny_decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, trained on the preferences of every page's working directory."""
    folder = tmp_path_factory.mktemp("reward")
    args = RewardConfig(output_dir=str(folder), gradient_checkpointing=False, **SMALL)
    RewardTrainer(str(tiny_decoder()), args, train_dataset=Dataset.from_list([PREFERENCE] * 16)).train()
    return folder


@pytest.fixture
def world(
    reward: Path, tiny_decoder: Any, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A working directory with everything that pages name; returns what a page's names stand for here."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for folder, rows in {"preferences": PREFERENCES, "prompts": [PROMPT] * 64}.items():
            Path(folder).mkdir(exist_ok=True)
            write_jsonl(Path(folder) / f"{split}.jsonl", rows)
    write_jsonl(Path("completions.jsonl"), [{"prompt": "2+2?", "completions": ["4", "5"], "answer": "4"}] * 16)
    judged: dict[str, Any] = {"instruction": "Name a colour.", "input": "", "response1": "two", "response2": "It is blue."}
    judged |= {"annotator1": 2, "annotator2": 0, "annotator3": 2}
    Path("testset-v1.json").write_text(json.dumps([judged] * 8, indent=2), encoding="utf-8")
    named, judge, *_ = blocks(DOCS / "tutorials" / "train-a-judge.md", "yaml")
    _, parts, both = blocks(DOCS / "trl.md", "yaml")
    specs = {name: blocks(DOCS / page, "yaml")[0] for name, page in SPECS.items()} | {"both.yaml": both}
    specs["judge.yaml"] = judge.replace("./trained-judge", "./trained-judge, max_tokens: 16")
    for name, spec in {**specs, "rm_plugins.yaml": f"helpful: ./Qwen2.5-Reward\n{named}{parts}"}.items():
        Path(name).write_text(spec, encoding="utf-8")
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "search", "arguments": {}}}]}
    calls = [called, {"role": "tool", "name": "search", "content": "Oslo"}, {"role": "assistant", "content": "Oslo."}]
    write_jsonl(Path("agents.jsonl"), [{"prompt": QUESTION, "completions": [calls[2:], calls]}] * 4)
    verdicts = {
        "pair_id": "1",
        "source": "livebench-math",
        "question": "2+2?",
        "response_A": "4",
        "response_B": "5",
        "label": "A>B",
    }
    write_jsonl(Path("o1-mini.jsonl"), [{**verdicts, "judgments": [{"decision": "A>B"}, {"decision": "B>A"}]}] * 4)
    two = tiny_decoder(num_labels=2, config={"id2label": {0: "helpful", 1: "verbose"}})
    Path(two).rename("two-labels")
    assert CliRunner().invoke(main, ["judge-data", "preferences", "-o", "judge-data"]).exit_code == 0
    shutil.copytree(tiny_policy, "trained-judge")
    shutil.copytree(reward, "Qwen2.5-Reward")
    for name in "abcde":
        shutil.copytree(reward, f"rm-{name}", ignore=shutil.ignore_patterns("checkpoint-*"))
    Path("helpful.yaml").write_text(blocks(ROOT / "README.md", "yaml")[0], encoding="utf-8")
    return {
        "Qwen/Qwen2.5-0.5B-Instruct": str(tiny_policy),
        "trl-lib/ultrafeedback_binarized": "preferences",
        "trl-lib/ultrafeedback-prompt": "prompts",
    }


def replaced(code: str, names: dict[str, str]) -> str:
    for name, stand_in in names.items():
        code = code.replace(name, stand_in)
    return code


def kept_small(monkeypatch: pytest.MonkeyPatch, *, own_precision: bool) -> None:
    """Give every trainer's configuration the settings that keep a run small, beneath those that a page sets.

    Args:
        monkeypatch: Takes them away again.
        own_precision: Whether the page's own settings decide where it runs and in which precision.
    """
    from transformers import TrainingArguments

    original = TrainingArguments.__post_init__

    def small(self: Any) -> None:
        for name, value in SMALL.items():
            if not (own_precision and name == "use_cpu"):
                setattr(self, name, value)
        self.gradient_checkpointing = False
        if not own_precision:
            self.bf16 = False
        for name, value in {"max_completion_length": 8, "num_generations": 2, "response_length": 8}.items():
            if hasattr(self, name):
                setattr(self, name, value)
        if hasattr(self, "response_length"):
            self.num_sample_generations = 0
            if TRL_HAS_PPO:  # whose PPO does not know max_steps
                self.total_episodes = 8
        original(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", small)


@each_page(python_of)
def test_python_runs(
    page: Path, world: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept_small(monkeypatch, own_precision=page in AS_ON_A_CPU)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where pickle looks for the page's classes
    with ExitStack() as servers:
        if any(SERVED in code for code in python_of(page)):
            pytest.importorskip("tritonclient.http", reason="tritonclient, which the page shows, is not installed")
            server = servers.enter_context(RewardServer("./Qwen2.5-Reward"))
            world = world | {SERVED: server.url.removeprefix("http://")}
        for code in python_of(page):
            exec(compile(replaced(code, world), str(page), "exec"), vars(module))
    if page in AS_ON_A_CPU:
        assert OTHER_FORMAT not in caplog.text


def judged(question: str) -> Choice:
    """What the judge answers: the result 4 is right."""
    if "all steps" in question:  # three criteria
        return choice(json.dumps({"1": "yes" if "\n4\n" in question else "no", "2": "all steps", "3": "no"}))
    return choice("Yes" if "Answer: 4" in question else "No")


@pytest.fixture
def served(page: Path, world: dict[str, str]) -> Iterator[None]:
    """The servers that a page's specs name, whose addresses are written into the specs."""
    apps = {SERVED_JUDGE: chat(judged), f"http://{SERVED}": native(lambda sample: float(len(str(sample.completion))))}
    named = "".join(blocks(page, "yaml"))
    with ExitStack() as servers:
        urls = {url: servers.enter_context(serving(app, lifespan="off")) for url, app in apps.items() if url in named}
        for path in Path().glob("*.yaml"):
            path.write_text(replaced(path.read_text(encoding="utf-8"), urls), encoding="utf-8")
        yield


@newest_trl
@pytest.mark.filterwarnings("ignore")  # a program shows them and goes on
@pytest.mark.usefixtures("served")
@each_page(commands_of)
def test_commands_run(page: Path, world: dict[str, str]) -> None:
    """Those that train have a process of their own, in which their launchers and their settings of torch may stay."""
    quick = ["--max_steps", "1", "--report_to", "none", "--use_cpu", "true", "--gradient_checkpointing", "false"]
    of_grpo = ["--bf16", "false", "--num_generations", "2", "--max_completion_length", "4"]
    of_grpo += ["--per_device_train_batch_size", "4"]  # two prompts: both orders of a judge's question
    for line in commands_of(page):
        program, command, *arguments = shlex.split(replaced(line, world))
        if command == "train":
            shutil.rmtree(arguments[arguments.index("--output_dir") + 1], ignore_errors=True)  # the model that the page trains
            run_warm("rm_plugins", command, *arguments, *quick)
        elif command == "ppo":
            run_warm("rm_plugins", command, *arguments, *quick, "--response_length", "4", "--per_device_train_batch_size", "2")
        elif program == "trl":
            run_warm("trl.cli.main", command, *arguments, *quick, *(of_grpo if command == "grpo" else []))
        else:
            if command == "judge-data":
                shutil.rmtree(arguments[arguments.index("-o") + 1])  # the questions that the page writes
            found = CliRunner().invoke(main, [command, *arguments], catch_exceptions=False)
            assert found.exit_code == 0, f"{line}\n{found.output}"


@newest_trl
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@each_page(requests_of)
def test_curl_examples_run(page: Path, world: dict[str, str]) -> None:
    commands = requests_of(page)
    texts_only = [command for command in commands if TEXTS_ONLY.search(command)]
    answers, log = answers_to([command for command in commands if command not in texts_only])
    assert OTHER_FORMAT not in log
    answers_to(texts_only)
    shown = json.loads(blocks(page, "json")[0])
    found = json.loads(answers[0])
    assert shape(found) == shape(shown)


def answers_to(commands: list[str]) -> tuple[list[str], str]:
    """What a server answers to each command, and the server's log."""
    answers: list[str] = []
    if not commands:
        return answers, ""
    with RewardServer("./Qwen2.5-Reward", "--api-key-env", "REWARD_KEY", REWARD_KEY="a-long-secret") as server:
        keyed = '--fail-with-body -H "Authorization: Bearer $REWARD_KEY"'
        for command in commands:
            command = command.replace(f"http://{SERVED}", server.url).replace("curl", f"curl {keyed}", 1)
            run = subprocess.run(
                ["bash", "-c", command],
                capture_output=True,
                text=True,
                env={**os.environ, "REWARD_KEY": "a-long-secret"},
                check=False,
            )
            assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
            answers.append(run.stdout)
    return answers, server.log


def shape(value: Any) -> Any:
    """A JSON value with the types of its leaves in their places."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def test_the_readmes_own_spec_warns_of_nothing(world: dict[str, str]) -> None:
    with warnings.catch_warnings(action="error"):
        rewards = rm.load("helpful.yaml")
    scores = rewards.score([rm.Sample("Name a colour.", "It is blue."), rm.Sample("Name a colour.", "blue")])
    assert scores.errors == {}
    assert scores.values[0] > scores.values[1], "a malformed answer never pays"


@pytest.mark.parametrize("notebook", [page for page in PAGES if page.suffix == ".ipynb"], ids=lambda page: page.name)
def test_a_notebook_keeps_small_outputs_of_a_run_from_top_to_bottom(notebook: Path) -> None:
    assert notebook.stat().st_size < 60_000
    counts = [cell["execution_count"] for cell in cells(notebook)]
    assert counts == [*range(1, len(counts) + 1)]
    kinds = {output["output_type"] for cell in cells(notebook) for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for cell in cells(notebook) for output in cell["outputs"])


def test_local_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `rm-plugins ([a-z-]+)([^`]*)` \|", page, re.MULTILINE))
    listed = json.loads(CliRunner().invoke(main, ["list", "commands", "--json"]).output)["registered"]
    built_in = {
        "calibrate",
        "data",
        "diff",
        "evaluate",
        "judge-data",
        "list",
        "merge",
        "rank",
        "report",
        "score",
        "serve",
        "show",
    }
    assert set(documented) == built_in | {"verify"} | {found["name"] for found in listed}
    for name, arguments in documented.items():
        usage = CliRunner().invoke(main, [name, "--help"]).output if name != "train" else ""
        for argument in arguments.split():
            assert argument in usage


def test_every_hook_is_documented() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = {name for name in vars(HookSpecs) if name.startswith("rm_")}
    assert set(re.findall(r"^\| `(rm_\w+)` \|", page, re.MULTILINE)) == hooks
    for name in hooks:
        assert getattr(HookSpecs, name).__doc__


def test_every_key_of_the_classifier_is_documented() -> None:
    import inspect

    page = (ROOT / "docs" / "providers" / "sequence-classifier.md").read_text(encoding="utf-8")
    keys = page.partition("## Keys")[2].partition("A model with several labels")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", keys, re.MULTILINE)) == set(inspect.signature(SequenceClassifier).parameters)


def test_the_settings_that_differ_from_trls_are_those_of_the_page() -> None:
    page = (DOCS / "trl-differences.md").read_text(encoding="utf-8")
    table = page.partition("## Settings that change")[2].partition("## ")[0]
    shown = re.findall(r"^\| `(\w+)` \| ([\d.e-]+) \| ([\d.e-]+)(?:, with LoRA ([\d.e-]+))?[^|]*\|", table, re.MULTILINE)
    trls = TrlRewardConfig(output_dir="unused", bf16=False, report_to="none")
    ours, lora = (preset(500_000_000, adapter=adapter).settings() for adapter in (False, True))
    assert {name for name, *_ in shown} == set(ours)
    for name, before, after, with_lora in shown:
        assert getattr(trls, name) == float(before)
        assert ours[name] == float(after)
        assert lora[name] == float(with_lora or after)


def test_the_program_is_installed() -> None:
    scripts = importlib.metadata.distribution("rm-plugins").entry_points.select(group="console_scripts")
    assert [(found.name, found.value) for found in scripts] == [("rm-plugins", "rm_plugins.cli:main")]
