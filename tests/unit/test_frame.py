"""Errors, logging and configuration: what every tool shares."""

from __future__ import annotations

import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_huatuo.config import above_zero, argument_parser, at_least, dump_yaml, one_of, to_plain, within
from megatron_huatuo.errors import ConfigError, DataError, exit_on_error
from megatron_huatuo.log import progress, silence_known_warnings

ROOT = Path(__file__).parents[2]


@dataclass
class Inner:
    names: list[str] = field(default_factory=lambda: ["甲"])


@dataclass
class Section:
    size: int = 1
    """Rows."""
    path: Path = Path("a b")
    inner: Inner = field(default_factory=Inner)


@dataclass
class Trained:
    train_iters: int = 1


def test_a_users_error_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_error
    def main() -> None:
        raise DataError("what is wrong")

    assert main() == 1
    assert capsys.readouterr().err == "error: what is wrong\n"


def test_a_defect_of_ours_keeps_its_traceback() -> None:
    @exit_on_error
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_a_missing_package_is_one_line_with_who_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As megatron-core 0.19 needs triton, which builds of torch for CPUs leave out."""
    needs = tmp_path / "needs.py"
    needs.write_text("import not_installed.part\n")
    assert exit_on_error(lambda: runpy.run_path(str(needs)) and 0)() == 1
    assert capsys.readouterr().err == (
        f"error: no package not_installed, which {needs} needs. Run pip install not_installed.\n"
    )
    needs.write_text("import megatron_huatuo.not_there\n")
    with pytest.raises(ModuleNotFoundError):
        exit_on_error(lambda: runpy.run_path(str(needs)) and 0)()


def test_a_path_that_cannot_be_written_is_one_line_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert exit_on_error(lambda: (tmp_path / "file" / "below").mkdir())() == 1
    assert capsys.readouterr().err == (
        f"error: Not a directory: {tmp_path}/file/below. Check the path and its permissions.\n"
    )


def test_interrupt_gives_130_and_success_gives_0() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert exit_on_error(interrupt)() == 130
    assert exit_on_error(lambda: None)() == 0
    assert exit_on_error(lambda: 3)() == 3


def test_only_what_cannot_be_mended_here_is_silenced() -> None:
    """megatron-core 0.19 advises against GPTModel at every build of one; what else its module says comes through."""
    silence_known_warnings()
    said = logging.getLogger("megatron.core.models.gpt.gpt_model")
    texts = ["GPTModel IS DEPRECATED. GPTModel is only accepting critical bug fixes", "another warning"]
    records = [logging.LogRecord(said.name, logging.WARNING, "gpt_model.py", 120, text, (), None) for text in texts]
    assert [bool(said.filter(record)) for record in records] == [False, True]


def test_errors_of_settings_and_data_are_value_errors() -> None:
    assert issubclass(ConfigError, ValueError) and issubclass(DataError, ValueError)


def test_settings_become_plain_yaml() -> None:
    assert to_plain(Section()) == {"size": 1, "path": "a b", "inner": {"names": ["甲"]}}
    assert dump_yaml(Section()) == "size: 1\npath: a b\ninner:\n  names:\n  - 甲\n"


def test_later_flags_override_the_file_and_unknown_keys_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argument_parser("test", config_file=True)
    parser.add_argument("--section", type=Section, default=Section())
    file = tmp_path / "c.yaml"
    file.write_text("section: {size: 5}\n")
    assert parser.parse_args(["--config", str(file)]).section.size == 5
    assert parser.parse_args(["--config", str(file), "--section.size", "7"]).section.size == 7
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--section.sise", "7"])
    assert "sise" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max-bad-lines", "--max_bad_lines", "--max-bad_lines"])
@pytest.mark.parametrize("equals", [True, False])
def test_flags_are_taken_with_dashes_and_with_underscores(flag: str, equals: bool) -> None:
    def parse(*arguments: str) -> Any:
        parser, command = argument_parser("test"), argument_parser("command")
        command.add_argument("--max-bad-lines", type=int)
        command.add_argument("--section", type=Section, default=Section())
        command.add_argument("--words", type=str, nargs="*")
        parser.add_subcommands(dest="command").add_subcommand("run", command)
        return parser.parse_args(["run", *arguments]).run

    given = [f"{flag}=3"] if equals else [flag, "3"]
    assert parse(*given, "--words", "a_b-c", "--section.inner.names=[d_e-f]").max_bad_lines == 3
    assert parse(*given, "--words", "a_b-c").words == ["a_b-c"]


def test_what_is_missing_is_named_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    def parser(*commands: str) -> Any:
        made = argument_parser("test")
        made.add_argument("place")
        made.add_argument("--hf-model", required=True)
        made.add_argument("--output_dir", required=True)
        if not commands:
            return made
        outer = argument_parser("outer")
        outer.add_subcommands(dest="command").add_subcommand(commands[0], parser(*commands[1:]))
        return outer

    for arguments in ([], ["export"]):
        with pytest.raises(SystemExit, match="2"):
            parser(*arguments).parse_args(arguments)
        assert "error: missing: place, --hf-model, --output_dir. See " in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        parser("export").parse_args(["export", "here", "--output_dir", "there"])
    assert "error: missing: --hf-model. See " in capsys.readouterr().err


def test_a_nested_flag_is_taken_with_dashes_too() -> None:
    parser = argument_parser("test")
    parser.add_argument("--training", type=Trained, default=Trained())
    assert parser.parse_args(["--training.train-iters", "7"]).training.train_iters == 7
    assert parser.parse_args(["--training.train_iters", "7"]).training.train_iters == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("section: {sise: 5}", r"unknown key 'section\.sise' in .*c\.yaml: need one of size, path, inner\."),
        ("sektion: {size: 5}", r"unknown key 'sektion' in .*c\.yaml: need one of section\."),
        ("section: {inner: {name: 5}}", r"unknown key 'section\.inner\.name' in .*c\.yaml: need one of names\."),
        ("section: {size: 5\nsize: 6", r"configuration is not YAML: .*c\.yaml \(.*line 2, column"),
        ("- size", r"wrong configuration: got \['size'\], need a mapping of keys to values \(.*c\.yaml\)"),
        (None, r"configuration cannot be read: .*c\.yaml \(No such file"),
    ],
)
def test_a_wrong_configuration_file_is_named_with_the_keys_that_exist(
    tmp_path: Path, content: str | None, message: str
) -> None:
    parser = argument_parser("test", config_file=True)
    parser.add_argument("--section", type=Section, default=Section())
    if content is not None:
        (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        parser.parse_args(["--config", str(tmp_path / "c.yaml")])


def test_a_wrong_value_is_one_line_with_the_file_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argument_parser("test", config_file=True)
    parser.add_argument("--section", type=Section, default=Section())
    (tmp_path / "c.yaml").write_text("section: {size: big}")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--config", str(tmp_path / "c.yaml")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "section.size" in line and "big" in line and "c.yaml" in line


@pytest.mark.parametrize("refuse", [lambda value: at_least("x", value, 1), lambda value: within("x", value, 1, 9),
                                    lambda value: above_zero("x", value)])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("-inf")])
def test_numbers_outside_a_range_are_refused_by_name_and_not_numbers_too(refuse: Callable[[float], None], value: float):
    with pytest.raises(ConfigError, match=f"wrong x: got {value}, need "):
        refuse(value)
    refuse(1)


def test_a_choice_is_refused_with_what_would_do() -> None:
    one_of("x", None, (None, "a"))
    with pytest.raises(ConfigError, match=r"wrong x: got 'b', need one of null, a\."):
        one_of("x", "b", (None, "a"))


@pytest.mark.parametrize(
    "module",
    [
        "storage.records",
        "corpus",
        "unify",
        "index.build_index",
        "blend",
        "evaluate.answer_parser",
        "parallel.parallel_config",
        "models.families",
        "plan",
    ],
)
def test_light_modules_load_neither_torch_nor_megatron(module: str) -> None:
    """A tokenising worker starts in a fraction of a second."""
    code = (
        f"import sys, megatron_huatuo.{module}\n"
        "sys.exit(any(name.split('.')[0] in ('torch', 'megatron', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_killed_child_never_stops_the_progress_bars_of_its_parent():
    def die_with_the_lock() -> None:
        progress(total=1, description="child").get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    child = multiprocessing.get_context("fork").Process(target=die_with_the_lock)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    lock = progress(total=1, description="parent").get_lock()
    assert lock.acquire(timeout=5), "the child took the lock along"
    lock.release()
