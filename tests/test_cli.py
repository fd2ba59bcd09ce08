from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekd import catalog, cli, errors, pipeline, runtimes, store
from edgekd.cli import COMMANDS, main, tools
from edgekd.cli.line import planned_time

ROOT = Path(cli.__file__).resolve().parents[2]
TARGET = catalog.targets()[0]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def report(**changes: Any) -> dict[str, Any]:
    return {"run": TARGET, "headline": ["BUDGET MET, 1 of 1."], "budget_met": True, "budget": [line(True)], **changes}


def line(met: bool | None) -> dict[str, Any]:
    return {"name": "size_mib", "met": met}


def judged(monkeypatch: pytest.MonkeyPatch, name: str = TARGET, **changes: Any) -> Path:
    """A run's folder with a report that is not checked against its schema."""
    from edgekd.report import schema

    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(folder / "report.json", report(**changes))
    store.write_text(folder / "report.md", f"# {name}\n")
    store.write_text(folder / "report.html", "<html>\n")
    monkeypatch.setattr(schema, "load", store.read_json)
    return folder


def python(code: str, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False, **options)


# ----------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_teaches_by_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"$ edgekd {command}" in shown
    assert "[/" not in shown
    assert "\\" not in shown


def test_the_commands_are_those_that_are_promised(capsys: pytest.CaptureFixture[str]) -> None:
    makers, users = ["list", "plan", "run", "report", "compare", "tune"], ["ship", "verify", "bench"]
    assert list(COMMANDS) == [*makers, *users, "predict", "diagnose", "copy", "doctor"]
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import edgekd

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgekd {edgekd.__version__}\n"


# ----------------------------------------------------------------------------------------------------------- exit codes


def test_an_unknown_target_exits_with_3_and_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = TARGET[:-1] + "z"
    for command in ("plan", "run", "copy"):
        assert main([command, wrong, *(["x.py"] if command == "copy" else [])]) == errors.TargetError.exit_code
        out, err = capsys.readouterr()
        assert out == ""
        assert f"did you mean '{TARGET}'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["nonsense"],
            ["run"],
            ["run", TARGET, "--device", "tpu"],
            ["run", TARGET, "--to", "quantise"],
            ["plan", "--x"],
        ),
        *(["plan", TARGET, "--fresh", "all"], ["report", "--format", "pdf"], ["compare", "one"], ["report"]),
        *(["report", "none"], ["ship", "none"], ["predict"], ["diagnose", "none"]),
    ],
)
def test_a_command_that_makes_no_sense_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == errors.UsageError.exit_code
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [e for e in vars(errors).values() if isinstance(e, type) and e.__module__ == "edgekd.errors"]
)
def test_every_error_of_the_family_is_one_line_on_stderr_and_its_exit_code(
    error: type[errors.EdgekdError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise error("it [broke]; mend it")

    monkeypatch.setattr(pipeline, "run", fails)
    assert main(["run", TARGET]) == error.exit_code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: it [broke]; mend it\n")


def test_exit_codes_are_all_different() -> None:
    family = errors.EdgekdError.__subclasses__()
    codes = [error.exit_code for error in family]
    assert len(set(codes) | {0, 1, errors.INTERRUPTED}) == len(codes) + 3


def test_the_readme_lists_every_exit_code_and_no_other() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(cell) for cell in re.findall(r"\|\s*(\d+)\s*(?=\|)", section)]
    codes = [error.exit_code for error in errors.EdgekdError.__subclasses__()]
    assert sorted(listed) == sorted([*codes, errors.INTERRUPTED])


def test_ctrl_c_exits_with_130_and_the_command_that_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", interrupted)
    given = ["--to", "bench", "--smoke", "--device", "cpu", "--store", "my runs", "--out", "there", "--json"]
    assert main(["run", TARGET, "--fresh", "distill", *given]) == 130  # and what was to be forgotten is: once is enough
    resumes = f"edgekd run {TARGET} --to bench --smoke --device cpu --store 'my runs' --out there --json"
    assert capsys.readouterr().err.endswith(f": {resumes}\n")
    assert main(["run", TARGET]) == 130
    assert capsys.readouterr().err.endswith(f": edgekd run {TARGET}\n")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = ["run", TARGET, "--device", "cuda", "--store", str(tmp_path)]
    assert main(asked) == errors.UsageError.exit_code
    assert "torch sees no GPU" in capsys.readouterr().err
    assert not list(tmp_path.rglob("assets-*"))


def test_a_store_where_no_folder_can_be_made_is_refused_at_once(elsewhere: Path) -> None:
    code = "import sys; from edgekd.cli import main; sys.exit(main(sys.argv[1:]))"
    done = python(code, "run", TARGET, "--store", "/proc/nowhere", timeout=60)
    assert done.returncode == errors.StoreError.exit_code
    assert "cannot write to /proc/nowhere" in done.stderr
    assert "--store" in done.stderr


def test_a_full_disk_anywhere_exits_with_the_stores_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pipeline, "run", full)
    assert main(["run", TARGET]) == errors.StoreError.exit_code
    assert "disk is full" in capsys.readouterr().err


def test_a_bug_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "run", bug)
    with pytest.raises(ZeroDivisionError):
        main(["run", TARGET])


# ------------------------------------------------------------------------------------------------------ list, plan, run


def test_list_shows_every_target_and_how_its_last_run_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list", "--json"])
    before = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(before) == catalog.targets()
    assert before[TARGET]["budget"] == "not run"
    judged(monkeypatch, budget_met=False)
    main(["list"])
    shown = next(row for row in capsys.readouterr().out.splitlines() if row.startswith(TARGET + " "))
    assert "FAILED" in shown
    assert catalog.summary(TARGET)[:30] in shown
    (Path("runs") / "mine-smoke").mkdir()
    (Path("runs") / "mine-smoke/report.json").write_text('{"budget_met": true}')
    main(["list", "--json"])
    after = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert after["mine-smoke"] == {"name": "mine-smoke", "summary": "a run in runs", "budget": "met"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"budget_met": "yes"}', '{"budget_met": []}'])
def test_list_says_which_report_cannot_be_read(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("runs") / TARGET).mkdir(parents=True)
    (Path("runs") / TARGET / "report.json").write_text(content)
    assert main(["list", "--json"]) == 0
    rows = {row["name"]: row["budget"] for row in json.loads(capsys.readouterr().out)}
    assert rows == dict.fromkeys(catalog.targets(), "not run") | {TARGET: "unreadable"}


def test_plan_prints_a_line_for_each_stage_and_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", TARGET]) == 0
    out, _ = capsys.readouterr()
    first, *others = pipeline.STAGES
    assert [row.split()[0] for row in out.splitlines()[1:9]] == [first, "transfer", *others]
    assert main(["plan", TARGET, "--smoke", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == f"{TARGET}-smoke"
    assert found["seconds"] is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((60.0, 30.0), "about 1 min 30 s"),
        ((60.0, None), "about 1 min 00 s, and that of two"),
        ((0.0, None), "unknown until such stages have run once"),
        ((None, None), "unknown until such stages have run once"),
    ],
)
def test_a_plan_says_as_much_of_the_time_as_is_known(seconds: tuple[float | None, ...], said: str) -> None:
    assert (
        planned_time([{"stage": name, "seconds": s} for name, s in zip(("one", "two"), seconds, strict=True)]) == said
    )


def test_plan_exits_with_9_after_showing_a_budget_that_cannot_be_met(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd import sizes

    monkeypatch.setattr(sizes, "problems", lambda *given: ["too big"])
    assert main(["plan", TARGET]) == errors.BudgetError.exit_code
    out, err = capsys.readouterr()
    assert "distill" in out
    assert "too big" in err


def test_a_target_is_the_same_by_name_by_path_and_run_as_a_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalog.path_of(TARGET)
    plans = []
    for name in (TARGET, str(path), os.path.relpath(path)):
        assert main(["plan", name, "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1] == plans[2]
    code = (
        "import runpy, sys; from edgekd import pipeline, spec;"
        "pipeline.run = lambda target, **options: sys.exit(print(target.name, options['beside'].name) or 0);"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    done = python(code, str(path))
    assert (done.returncode, done.stdout) == (0, f"{TARGET} {path.name}\n"), done.stderr


def test_run_prints_the_headline_and_the_paths_and_json_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = judged(monkeypatch)
    result = {
        "run": TARGET,
        "folder": str(folder),
        "stages": {},
        "report": str(folder / "report.json"),
        "bundle": "dist/x",
    }
    given: dict[str, Any] = {}
    monkeypatch.setattr(pipeline, "run", lambda target, **options: given.update(options, target=target) or result)
    assert main(["run", TARGET, "--device", "cpu", "--smoke", "--fresh", "distill", "--out", "there"]) == 0
    assert capsys.readouterr().out == f"BUDGET MET, 1 of 1.\nreport: runs/{TARGET}/report.html\nbundle: dist/x\n"
    assert given["target"].smoke
    assert {k: given[k] for k in ("to", "fresh", "device", "folder", "out")} == {
        "to": None, "fresh": "distill", "device": "cpu", "folder": Path("runs"), "out": Path("there"),
    }  # fmt: skip
    assert main(["run", TARGET, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result | {"headline": ["BUDGET MET, 1 of 1."], "budget_met": True}


# -------------------------------------------------------------------------------------------------------------- reports


@pytest.mark.parametrize(("met", "code"), [(True, 0), (False, 9), (None, 9)])
def test_report_check_passes_only_what_is_shown_to_be_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], met: bool | None, code: int
) -> None:
    judged(monkeypatch, budget=[line(True), line(met)], budget_met=met)
    assert main(["report", TARGET]) == 0
    assert main(["report", TARGET, "--check"]) == code
    assert capsys.readouterr().out == f"# {TARGET}\n" * 2


@pytest.mark.parametrize("format", ["md", "json", "html"])
def test_a_report_is_printed_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    folder = judged(monkeypatch)
    for name in (TARGET, str(folder), f"{TARGET}.py"):
        assert main(["report", name, "--format", format]) == 0
        assert capsys.readouterr().out == (folder / f"report.{format}").read_text()


@pytest.mark.parametrize("format", ["md", "html"])
def test_a_rendering_that_is_gone_is_made_again_from_the_report(
    capsys: pytest.CaptureFixture[str], format: str
) -> None:
    import report_fixture

    from edgekd.report import html, markdown

    found = report_fixture.report()
    store.write_json(Path("report.json"), found)
    assert main(["report", ".", "--format", format]) == 0
    assert capsys.readouterr().out == {"md": markdown, "html": html}[format].render(found)


def test_two_runs_or_more_are_compared_as_text_as_data_and_as_a_page(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import report_fixture

    from edgekd.report import compare

    rows = [row for row in report_fixture.rows() if row["runtime"] == "openvino"]
    reports = [report_fixture.report(rows) | {"run": name} for name in ("one", "two", "three")]
    for found in reports:
        (Path("runs") / found["run"]).mkdir(parents=True)
        store.write_json(Path("runs") / found["run"] / "report.json", found)
    for given in (reports[:2], reports):
        names = [found["run"] for found in given]
        assert main(["compare", *names]) == 0
        assert capsys.readouterr().out == compare.render(compare.compare(given))
        assert main(["compare", *names, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == compare.compare(given)
    assert main(["compare", "one", "two", "--format", "html"]) == 0
    assert "<h1>one → two</h1>" in capsys.readouterr().out
    assert main(["compare", "one", "two", "four"]) == errors.UsageError.exit_code
    assert capsys.readouterr().out == ""


def test_report_without_a_name_is_that_of_the_latest_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, name in enumerate(("new", "old")):
        folder = judged(monkeypatch, name)
        os.utime(folder / "report.json", (1e9 - age, 1e9 - age))
    main(["report"])
    assert capsys.readouterr().out == "# new\n"


# -------------------------------------------------------------------------------------------------------------- bundles


def test_predict_reads_arguments_or_the_lines_of_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd import deploy

    def load(bundle: Path) -> Any:
        return lambda text: [deploy.Prediction(text.upper(), 0.75, {text.upper(): 0.75})]

    monkeypatch.setattr(deploy, "load", load)
    assert main(["predict", "bundle", "oil", "wheat"]) == 0
    assert capsys.readouterr().out == "OIL\t0.7500\toil\nWHEAT\t0.7500\twheat\n"
    assert main(["predict", "bundle", "1\t2\r\n3"]) == 0
    assert capsys.readouterr().out.endswith("\t0.7500\t1\\t2\\r\\n3\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("oil\nwheat\n"))
    assert main(["predict", "bundle", "--json"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert rows[1] == {"text": "wheat", "label": "WHEAT", "score": 0.75, "probabilities": {"WHEAT": 0.75}}


def test_verify_of_what_is_no_bundle_exits_with_11(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(elsewhere)]) == errors.BundleError.exit_code
    assert main(["predict", str(elsewhere / "none"), "x"]) == errors.BundleError.exit_code
    assert "edgekd ship" in capsys.readouterr().err


def test_verify_scores_again_unless_only_the_files_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd import ship

    monkeypatch.setattr(ship, "verify_files", lambda bundle: {})
    monkeypatch.setattr(ship, "rescore", lambda bundle, progress: {"score": 0.5, "claimed": 0.5, "examples": 2})
    main(["verify", "b", "--json"])
    assert json.loads(capsys.readouterr().out)["score"] == 0.5
    main(["verify", "b", "--files-only", "--json"])
    assert json.loads(capsys.readouterr().out) == {"bundle": "b", "files": "intact"}


def test_ship_writes_the_latest_run_to_dist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd import ship

    judged(monkeypatch, session={})
    monkeypatch.setattr(ship, "ship", lambda run, out: (run, out))
    main(["ship"])
    main(["ship", TARGET, "--out", "x"])
    first, second = capsys.readouterr().out.splitlines()
    assert f"dist/{TARGET}" in first
    assert second.endswith("PosixPath('x'))")


# ----------------------------------------------------------------------------------------------------------------- copy


def test_a_copy_is_the_same_target_under_its_files_name(elsewhere: Path) -> None:
    assert main(["copy", TARGET, "my_target.py"]) == 0
    mine, theirs = catalog.load("my_target.py"), catalog.load(TARGET)
    assert mine.name == "my_target"
    assert {k: v for k, v in vars(mine).items() if k != "name"} == {
        k: v for k, v in vars(theirs).items() if k != "name"
    }
    changed = [
        (a, b)
        for a, b in zip(
            catalog.path_of(TARGET).read_text().splitlines(), Path("my_target.py").read_text().splitlines(), strict=True
        )
        if a != b
    ]
    assert len(changed) == 1


def test_a_copy_is_refused_where_it_would_lose_or_not_be_found(elsewhere: Path) -> None:
    (elsewhere / "there.py").write_text("mine")
    for name in ("there.py", "my-target.py", "my_target", "1st.py", "no/such/folder.py"):
        assert main(["copy", TARGET, name]) == errors.UsageError.exit_code
    assert (elsewhere / "there.py").read_text() == "mine"
    assert sorted(p.name for p in elsewhere.iterdir()) == ["there.py"]


def test_only_the_name_in_the_literal_changes_whatever_stands_before_it() -> None:
    source = 'X = "é"; TARGET = spec.Target(task=T(name="é"), name=\'old\', other="old")\n'
    assert tools.renamed(source, "new", Path("x.py")) == source.replace("'old'", '"new"')


@pytest.mark.parametrize("source", ["", "TARGET = make()", "TARGET = Target(name=NAME)", "def f(:"])
def test_a_file_without_a_literal_name_cannot_be_copied(source: str) -> None:
    with pytest.raises(errors.TargetError):
        tools.renamed(source, "new", Path("x.py"))


# --------------------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_is_missing_and_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekd import doctor

    real = doctor.metadata.version

    def version(name: str) -> str:
        if name in ("brevitas", "openvino"):
            raise doctor.metadata.PackageNotFoundError(name)
        return "99.0" if name == "transformers" else real(name)

    monkeypatch.setattr(doctor, "metadata", SimpleNamespace(**{**vars(doctor.metadata), "version": version}))
    assert main(["doctor", "--json"]) == errors.MissingDependencyError.exit_code
    out, err = capsys.readouterr()
    listed = json.loads(out)["packages"]
    packages = {p["name"]: p for p in listed}
    assert len(packages) == len(listed)  # also what two extras need
    broken = {name for name, package in packages.items() if package["advice"]}
    assert {name for name in broken if packages[name]["required"]} == {"brevitas", "transformers"}
    assert "openvino" in broken and packages["openvino"]["required"] is False
    assert "-m pip install" in err
    assert "brevitas" in err
    assert "transformers" in err
    assert "openvino" not in err


def test_doctor_here_finds_everything_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out, _ = capsys.readouterr()
    assert "MISSING" not in out
    assert "usable threads" in out
    for name in runtimes.RUNTIMES:
        command = runtimes.availability(name)
        line = next(line for line in out.splitlines() if line.startswith(f"runtime  {name} "))
        version = runtimes.installed().get(runtimes.entry(name).package)
        assert f"skipped: {command}" in line if command else f" {version}" in line
        assert ("is not made" in line) == (runtimes.converters(name) is None)


# ---------------------------------------------------------------------------------------------------------------- speed

QUICK = [
    ["list"], ["plan", TARGET], ["report", "none"], ["compare", "none", "none"], ["ship", "none"], ["verify", "none"],
    ["--help"], ["run", "--help"], ["run", "none"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_what_must_answer_at_once_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = (
        "import sys; from edgekd.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'brevitas', 'onnx', 'datasets', 'pandas', 'pyarrow'};"
        "sys.exit(str(heavy & set(sys.modules)))"
    )
    done = python(code, *arguments)
    assert done.stderr.splitlines()[-1] == "set()"


def test_a_pipe_that_is_closed_early_is_no_error() -> None:
    command = f"{sys.executable} -m edgekd list --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_schedulers_signal_end_a_run_cleanly(elsewhere: Path, name: signal.Signals) -> None:
    code = """
import sys, time
from edgekd import pipeline
from edgekd.cli import main
def forever(*args, **options):
    print("started", flush=True)
    time.sleep(600)
pipeline.run = forever
sys.exit(main(["run", sys.argv[1]]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, TARGET]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit it ignored
    with subprocess.Popen(command, **pipes, text=True, env=env, preexec_fn=heard) as run:  # type: ignore[call-overload]
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        time.sleep(0.1)
        run.send_signal(name)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "resumes the rest" in err
    assert "Traceback" not in err


def test_python_m_edgekd_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", "plan", "none"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 3
