"""What is shipped, what importing it costs, and what an outsider can add to it."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.deploying.files import instruction
from tests.made_once import made_once
from tests.servers import RewardServer
from tests.warm_process import run_warm

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METADATA = f"rm_plugins-{PROJECT['version']}.dist-info"
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "pandas", "ray")


def run(*command: str | Path, cwd: Path, path: Path | None = None, **environment: str) -> str:
    """What a command prints; the test fails with its errors if it does."""
    variables = {**os.environ, **environment, **({"PYTHONPATH": str(path)} if path else {})}
    found = subprocess.run([*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True)
    assert found.returncode == 0, f"{command}:\n{found.stdout}\n{found.stderr}"
    return found.stdout


def run_code(code: str, cwd: Path, path: Path, **environment: str) -> Any:
    """What a program prints, read as JSON; it runs with warnings as errors."""
    return json.loads(run(sys.executable, "-W", "error", "-c", code, cwd=cwd, path=path, **environment))


def install(what: Path, target: Path) -> None:
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore")
    run(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--target", target, what, cwd=target.parent)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a source distribution and of the wheel that was built from it."""
    build = (sys.executable, "-m", "build", "--no-isolation", ROOT, "--outdir")
    return made_once(tmp_path_factory, "dist", lambda folder: run(*build, folder, cwd=folder))


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The wheel."""
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, and nothing else."""
    return made_once(tmp_path_factory, "installed", lambda folder: install(wheel, folder / "site")) / "site"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example plug-in is built and installed, and nothing else."""

    def make(folder: Path) -> None:
        shutil.copytree(ROOT / "tests" / "plugin", folder / "source")
        install(folder / "source", folder / "site")

    return made_once(tmp_path_factory, "outsider", make) / "site"


class TestWheel:
    def test_its_top_level_names_are_exactly_the_packages(self, wheel: Path) -> None:
        names = zipfile.ZipFile(wheel).namelist()
        assert {name.partition("/")[0] for name in names} == {
            "rm_plugins",
            "rm_plugins_engines",
            "rm_plugins_ray",
            "rm_plugins_trl",
            METADATA,
        }

    def test_every_module_is_in_it(self, wheel: Path) -> None:
        names = set(zipfile.ZipFile(wheel).namelist())
        for folder in (ROOT, ROOT / "integrations"):
            for package in ("rm_plugins", "rm_plugins_engines", "rm_plugins_ray", "rm_plugins_trl"):
                written = {path.relative_to(folder).as_posix() for path in (folder / package).rglob("*.py")}
                assert written <= names

    def test_the_servers_page_is_in_it(self, wheel: Path) -> None:
        folder = ROOT / "rm_plugins" / "server" / "page"
        written = {path.relative_to(ROOT).as_posix() for path in folder.iterdir() if path.is_file()}
        assert written <= set(zipfile.ZipFile(wheel).namelist())

    def test_accelerates_configurations_are_in_it(self, wheel: Path) -> None:
        folder = ROOT / "integrations" / "rm_plugins_trl" / "accelerate_configs"
        written = {f"rm_plugins_trl/accelerate_configs/{path.name}" for path in folder.glob("*.yaml")}
        assert len(written) == 4
        assert written <= set(zipfile.ZipFile(wheel).namelist())

    def test_its_types_are_announced(self, wheel: Path) -> None:
        assert {
            "rm_plugins/py.typed",
            "rm_plugins_engines/py.typed",
            "rm_plugins_ray/py.typed",
            "rm_plugins_trl/py.typed",
        } <= set(zipfile.ZipFile(wheel).namelist())

    def test_its_metadata(self, wheel: Path) -> None:
        archive = zipfile.ZipFile(wheel)
        metadata = Parser().parsestr(archive.read(f"{METADATA}/METADATA").decode())
        assert (metadata["Name"], metadata["Version"]) == ("rm-plugins", PROJECT["version"])
        assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
        licence = archive.read(f"{METADATA}/licenses/LICENSE")
        assert licence == (ROOT / "LICENSE").read_bytes()

    def test_its_entry_points(self, wheel: Path) -> None:
        entry_points = ConfigParser()
        entry_points.read_string(zipfile.ZipFile(wheel).read(f"{METADATA}/entry_points.txt").decode())
        assert {section: dict(entry_points[section]) for section in entry_points.sections()} == {
            "console_scripts": {"rm-plugins": "rm_plugins.cli:main"},
            "rm_plugins": {
                "engines": "rm_plugins_engines.plugin",
                "ray": "rm_plugins_ray.plugin",
                "trl": "rm_plugins_trl.plugin",
            },
        }

    def test_the_source_distribution_has_what_building_and_testing_need(self, built: Path) -> None:
        (path,) = built.glob("*.tar.gz")
        with tarfile.open(path) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {
            "pyproject.toml",
            "constraints.txt",
            "constraints-oldest.txt",
            "LICENSE",
            "README.md",
            "CHANGELOG.md",
            "Makefile",
        } <= names
        assert {"tests/conftest.py", "tests/plugin/pyproject.toml", "integrations/rm_plugins_trl/plugin.py"} <= names
        assert {name.partition("/")[0] for name in names} <= {
            *("rm_plugins", "integrations", "tests", "docs", "pyproject.toml", "constraints.txt", "Makefile"),
            *("constraints-oldest.txt", "LICENSE", "README.md", "SECURITY.md", "CHANGELOG.md", ".gitignore", "PKG-INFO"),
        }
        assert not [name for name in names if "__pycache__" in name]


class TestImporting:
    """Whatever needs no model is quick: nothing heavy is imported."""

    @pytest.mark.parametrize(
        "statement",
        [
            "import rm_plugins, rm_plugins_engines, rm_plugins_ray, rm_plugins_trl",
            "import rm_plugins.registry, rm_plugins.errors, rm_plugins.provider, rm_plugins.wire, rm_plugins.data.rows",
            "from rm_plugins import Sample, Scores, Provider, Registry, load, hookimpl",
            "import rm_plugins as rm; rm.load(len)",
            "import rm_plugins as rm; registry = rm.Registry(discover=True); [registry.all(kind) for kind in ('loss', 'provider')]",
        ],
    )
    def test_a_statement(self, statement: str, site: Path, tmp_path: Path) -> None:
        code = f"import json, sys\n{statement}\nimport rm_plugins\nprint(json.dumps([rm_plugins.__file__, *sys.modules]))"
        where, *modules = run_code(code, tmp_path, site)
        assert Path(where).parent == site / "rm_plugins"
        assert [name for name in HEAVY if name in modules] == []

    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"], ["list", "--json"]])
    def test_a_command(self, arguments: list[str], site: Path, tmp_path: Path) -> None:
        pytest.importorskip("rm_plugins.cli", reason="the command line is not there")
        code = (
            "import contextlib, io, json, sys\nfrom rm_plugins.cli import main\n"
            f"sys.argv = ['rm-plugins', *{arguments}]\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()\n"
            "print(json.dumps(list(sys.modules)))"
        )
        modules = run_code(code, tmp_path, site)
        assert [name for name in HEAVY if name in modules] == []

    def test_the_program(self, site: Path, tmp_path: Path) -> None:
        assert PROJECT["version"] in run(site / "bin" / "rm-plugins", "--version", cwd=tmp_path, path=site)
        assert PROJECT["version"] in run(sys.executable, "-m", "rm_plugins", "--version", cwd=tmp_path, path=site)


def test_the_commands_of_the_image_install_the_program_in_a_plain_environment(wheel: Path, tmp_path: Path) -> None:
    """Without an index, so without the packages that it needs; those of this environment take their place."""
    make, install_all, compile_all, _ = (
        re.sub(r"--mount=\S+", "", rest) for rest in instruction("RUN") if "useradd" not in rest
    )
    environment = tmp_path / "rm-plugins"
    (added,) = [rest for rest in instruction("ENV") if "PIP" in rest]
    variables: dict[str, Any] = {
        **dict(pair.split("=", 1) for pair in [*instruction("ARG"), *added.split()] if "=" in pair),
        "PATH": f"{environment / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PACKAGES": "",
    }
    places = {"/opt/rm-plugins": environment, "/dist": wheel.parent, "/constraints.txt": ROOT / "constraints.txt"}
    for command in (make, install_all, compile_all):
        for there, here in places.items():
            command = command.replace(there, str(here))
        run("sh", "-c", command, cwd=tmp_path, path=None, PYTHONPATH="", **variables)
    (packages,) = environment.glob("lib/python*/site-packages")
    assert list(packages.glob("rm_plugins/__pycache__/*.pyc"))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    (program,) = json.loads(instruction("ENTRYPOINT")[0])
    told = run(environment / "bin" / program, json.loads(instruction("CMD")[0])[0], "--help", cwd=tmp_path, PYTHONPATH="")
    assert "Serve the reward SPEC over HTTP" in told


def test_the_version_is_the_projects() -> None:
    assert importlib.import_module("rm_plugins").__version__ == PROJECT["version"]


def test_the_change_log_knows_the_version() -> None:
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


class TestOutsider:
    """A distribution by somebody else, installed beside rm-plugins."""

    def test_its_provider_and_transform_are_used_by_name(self, beside: Path, tmp_path: Path) -> None:
        log = tmp_path / "log.jsonl"
        code = (
            "import json\nimport rm_plugins as rm\n"
            "spec = {'provider': 'brevity', 'limit': 2, 'price': 0.5, 'transform': {'name': 'squash', 'scale': 10.0},\n"
            "        'member': {'provider': 'function', 'function': 'lengths:length'}}\n"
            "scores = rm.load(spec, label='brief').score([rm.Sample('', 'a b'), rm.Sample('', 'a b c d')])\n"
            "print(json.dumps({'values': list(scores.values), **{name: list(found) for name, found in scores.columns.items()}}))"
        )
        (tmp_path / "lengths.py").write_text(
            "def length(samples):\n    return [len(sample.completion) for sample in samples]\n"
        )
        scores = run_code(code, tmp_path, beside, RM_PLUGINS_EXAMPLE_LOG=str(log))
        assert (scores["member"], scores["price"], scores["raw"]) == ([3, 7], [0, 1], [3, 6])
        assert scores["values"] == pytest.approx([2.9131261, 5.3704957])
        assert [json.loads(line) for line in log.read_text().splitlines()] == [
            {"provider": "brief", "samples": 2, "abstained": 0}
        ]

    def test_a_wrong_argument_of_it_is_explained(self, beside: Path, tmp_path: Path) -> None:
        code = (
            "import json\nimport rm_plugins as rm\nmessages = []\n"
            "for change in ({'limt': 2}, {'limit': 'two'}, {'unit': 'pages'}, {'price': -1.0}, {'member': 'nobody'}):\n"
            "    try:\n        rm.load({'provider': 'brevity', 'member': len, **change})\n"
            "    except rm.RmPluginsError as error:\n        messages.append(str(error))\n"
            "print(json.dumps(messages))"
        )
        unknown, wrong, choice, price, member = run_code(code, tmp_path, beside)
        assert unknown.startswith("limt: unknown key 'limt' for 'brevity'. Did you mean 'limit'?")
        assert wrong == "limit: input should be a valid integer, not 'two'."
        assert choice == "unit: input should be 'words' or 'characters', not 'pages'."
        assert price == "brevity needs a price of at least 0, not -1.0."
        assert member.startswith("member: 'nobody' is not a folder or file")

    def test_its_aggregate_combines_members(self, beside: Path, tmp_path: Path) -> None:
        code = (
            "import json\nimport rm_plugins as rm\n"
            "members = [{'provider': 'function', 'function': function} for function in (\n"
            "    lambda samples: [0.0], lambda samples: [1.0], lambda samples: [5.0])]\n"
            "rewards = rm.load({'provider': 'ensemble', 'aggregate': 'midrange', 'members': members, 'common_scale': True})\n"
            "print(json.dumps(rewards.score([rm.Sample('Q', 'A')]).values.tolist()))"
        )
        assert run_code(code, tmp_path, beside) == [2.5]

    def test_its_loss_and_regularizer_are_components(self, beside: Path, tmp_path: Path) -> None:
        code = (
            "import json, torch\nfrom rm_plugins.losses import RewardBatch\nfrom rm_plugins.spec import component\n"
            "batch = RewardBatch(torch.tensor([[2.0], [1.0]]), torch.tensor([[0, 1]]), torch.zeros(2), torch.ones(2))\n"
            "terms = [component('loss', {'name': 'gap-hinge', 'gap': 1.5}), component('regularizer', 'small_rewards')]\n"
            "print(json.dumps([term(batch).item() for term in terms]))"
        )
        assert run_code(code, tmp_path, beside) == [0.5, 2.5]

    def test_its_loss_trains_by_name(self, beside: Path, tiny_decoder: Any, tmp_path: Path) -> None:
        """From Python and from the program, with its regularizer."""
        rows = [{"prompt": "Name a colour.", "chosen": " It is blue.", "rejected": " two"}] * 8
        data, model = tmp_path / "pairs.jsonl", tiny_decoder()
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        code = (
            "import json\nfrom datasets import Dataset\nfrom rm_plugins_trl import RewardConfig, RewardTrainer\n"
            "loss, terms = {'name': 'gap-hinge', 'gap': 1.5}, {'small-rewards': 0.01}\n"
            "settings = {'max_steps': 12, 'learning_rate': 1e-2, 'logging_steps': 1, 'gradient_checkpointing': False}\n"
            "settings |= {'report_to': 'none', 'use_cpu': True, 'disable_tqdm': True}\n"
            f"args = RewardConfig({str(tmp_path / 'python')!r}, loss=loss, regularizers=terms, **settings)\n"
            f"trainer = RewardTrainer({str(model)!r}, args, train_dataset=Dataset.from_json({str(data)!r}))\n"
            "trainer.train()\n"
            "print(json.dumps([entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]))"
        )
        (tmp_path / "train.py").write_text(code, encoding="utf-8")
        losses = json.loads(run_warm(tmp_path / "train.py", cwd=beside).splitlines()[-1])
        assert losses[-1] < losses[0]
        line = "train --loss gap-hinge --max_steps 12 --learning_rate 1e-2 --report_to none --use_cpu true --disable_tqdm true"
        more = ("--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "program")
        terms = ("--regularizers", '{"small-rewards": 0.01}', "--gradient_checkpointing", "false")
        run_warm("rm_plugins", *line.split(), *more, *terms, cwd=beside)  # from where it is imported, too
        for folder, loss in (("python", {"name": "gap-hinge", "gap": 1.5}), ("program", "gap-hinge")):
            training = json.loads((tmp_path / folder / "reward_manifest.json").read_text(encoding="utf-8"))["training"]
            assert (training["loss"], training["regularizers"]) == (loss, {"small-rewards": 0.01})

    def test_its_dialect_is_served_and_its_protocol_speaks_to_it(self, beside: Path, tmp_path: Path) -> None:
        spec = tmp_path / "reward.yaml"
        spec.write_text("provider: constant\nvalue: 1.5\n", encoding="utf-8")
        with RewardServer(spec, PYTHONPATH=str(beside)) as server:
            answer = httpx2.post(f"{server.url}/plain", json={"texts": ["a", "b"]}, trust_env=False)
            refused = httpx2.post(f"{server.url}/plain", json={"texts": 3}, trust_env=False)
            code = (
                "import json\nimport rm_plugins as rm\nprotocol = {'name': 'plain', 'path': '/plain'}\n"
                f"rewards = rm.load({{'provider': 'remote', 'url': {server.url!r}, 'protocol': protocol}})\n"
                "print(json.dumps(rewards.score([rm.Sample('Q', text) for text in 'abc']).values.tolist()))"
            )
            scores = run_code(code, tmp_path, beside)
        assert (answer.status_code, answer.json()) == (200, {"scores": [1.5, 1.5]})
        assert (refused.status_code, refused.json()["error"]["cause"]) == (422, "invalid")
        assert scores == [1.5, 1.5, 1.5]
        assert "dialect=plain" in server.log

    def test_the_program_lists_it_and_has_its_command(self, beside: Path, tmp_path: Path) -> None:
        pytest.importorskip("rm_plugins.cli", reason="the command line is not there")
        program = (sys.executable, "-m", "rm_plugins")
        listed = json.loads(run(*program, "list", "--json", cwd=tmp_path, path=beside))
        found = {(row["kind"], row["name"]) for row in listed["registered"] if row["plugin"] == "example"}
        assert {row["version"] for row in listed["registered"] if row["plugin"] == "example"} == {"1.2.3"}
        assert found == {
            ("protocol", "plain"),
            ("dialect", "plain"),
            ("provider", "brevity"),
            ("aggregate", "midrange"),
            ("transform", "squash"),
            ("loss", "confident"),
            ("loss", "gap-hinge"),
            ("regularizer", "small-rewards"),
            ("command", "words"),
        }
        assert listed["broken"] == []
        assert run(*program, "words", "one two three", cwd=tmp_path, path=beside) == "3\n"
