"""onnxruntime-web in Node and in Chromium: the same labels, its own clock, and nothing left or sent anywhere."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_bundle
from bag_of_words import VOCABULARY, bag_of_words
from tokenizers import models, normalizers, pre_tokenizers

from edgekd import assets, deploy, runtimes, ship
from edgekd.bench import measure, stopwatch
from edgekd.bench.measure import Artifact
from edgekd.cli import main
from edgekd.errors import AssetError, BenchError, MissingDependencyError
from edgekd.progress import Progress
from edgekd.report import limits
from edgekd.runtimes.ort_web import Web, Worker
from edgekd.stages import bench as bench_stage
from edgekd.tasks.text_classification import score
from edgekd.web import download, packages, page

WEBS = {name: "chromium" if "chromium" in name else "node" for name in runtimes.RUNTIMES if name.startswith("ort_web")}
REGISTRY = "https://registry.npmjs.org/"
either = pytest.mark.parametrize("name", WEBS)


def need(name: str) -> None:
    if (command := runtimes.availability(name)) is not None:
        pytest.skip(f"not installed: {command}")


def artifact(folder: Path) -> Artifact:
    (folder / "model").mkdir(parents=True)
    bag_of_words(folder / "model" / "model.onnx", sizes=(64, 64))
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], rng.integers(3, 30, 40).cumsum()])
    np.savez(
        folder / "inputs.npz", ids=rng.integers(0, VOCABULARY, offsets[-1]), offsets=offsets, labels=np.arange(40) % 3
    )
    return Artifact("student_qad", (folder / "model",), folder / "inputs.npz")


def bench(given: Artifact, out: Path, *names: str, **change: Any) -> list[dict[str, Any]]:
    options: dict[str, Any] = dict(threads=(1,), workloads={}, rounds=1, calls=20, score=score, **change)
    return measure.measure(
        [given], runtimes=names, out=out, progress=Progress(quiet=True), baseline=given.name, **options
    )


# ------------------------------------------------------------------------------------------------------- measuring


@either
@pytest.mark.slow
def test_a_row_has_the_labels_of_onnxruntime_and_the_figures_of_the_process_that_computed(name, tmp_path, monkeypatch):
    need(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    native, web = bench(artifact(tmp_path), tmp_path / "out", "ort_cpu", name)
    assert web["rounds"] == 1, web["why_invalid"]
    assert web["agreement"] == 1.0 and web["score"] == native["score"] and web["kl"] < 1e-6
    kind = {"node": "Node", "chromium": "Chromium"}[WEBS[name]]
    assert re.fullmatch(rf"{re.escape(packages.versions()['onnxruntime-web'])}, {kind} [\d.]+", web["version"])
    assert web["import_rss_mib"] > 60 > native["import_rss_mib"] / 3  # WebAssembly alone, 14 MB of it, compiled
    assert web["peak_rss_mib"] >= 0 and 0 < web["p50_ms"] <= web["p99_ms"] and web["overhead_share"] < 1
    kept = json.loads(next((tmp_path / "out" / "raw").glob("*ort_web*.json")).read_text())["answer"]
    if name == "ort_web":
        assert kept["busy_threads"] <= 1
    else:  # a page has its browser's helpers beside it; where they work, too, the row says so
        assert kept["warmup_calls"] >= 40
    assert not list(tmp_path.glob("edgekd-chromium-*"))


@either
def test_the_model_reaches_nobody_and_all_that_was_started_ends_with_it(name, tmp_path, monkeypatch):
    need(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("EDGEKD_CACHE", str(assets.cache_folder()))  # where the packages are
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bag_of_words(tmp_path / "model.onnx")
    worker = Worker(WEBS[name])
    worker.ask("open", str(tmp_path / "model.onnx"))
    feeds = {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]}
    assert worker.ask("run", feeds)["shape"] == [1, 3]
    root = psutil.Process(worker._process.pid)
    started = [root, *root.children(recursive=True)]
    assert worker.pid in {process.pid for process in started}
    found = [one.raddr.ip for process in started for one in process.net_connections("inet") if one.raddr]
    assert set(found) <= {"127.0.0.1"}
    worker._close()
    assert not psutil.wait_procs(started, timeout=10)[1]
    assert not list(home.iterdir()) and not list(tmp_path.glob("edgekd-chromium-*"))


def test_the_page_computes_on_the_cpu_it_is_given_and_its_browser_elsewhere(tmp_path):
    need("ort_web_chromium")
    mine = os.sched_getaffinity(0)
    if len(os.sched_getaffinity(os.getppid())) < 2:
        pytest.skip("one CPU")
    bag_of_words(tmp_path / "model.onnx", sizes=(256, 256, 256))
    os.sched_setaffinity(0, {max(mine)})  # as a measuring child does
    try:
        session = Web("chromium").load(tmp_path / "model.onnx", 1)
    finally:
        os.sched_setaffinity(0, mine)
    worker = session.run._worker
    started = psutil.Process(worker._process.pid).children(recursive=True)
    before = [sum(process.cpu_times()[:2]) for process in started]
    stopwatch.timed(session.run, [{name: np.ones((1, 128), np.int64) for name in session.inputs}] * 600, np.zeros(600))
    spent = [sum(process.cpu_times()[:2]) - then for process, then in zip(started, before, strict=True)]
    assert started[int(np.argmax(spent))].pid == worker.pid
    assert os.sched_getaffinity(worker.pid) == {max(mine)}
    assert all(len(process.cpu_affinity()) > 1 for process in started if process.pid != worker.pid)
    worker._close()


def test_a_page_that_would_reach_out_finds_nobody(tmp_path):
    need("ort_web_chromium")
    given = json.dumps([str(packages.folder()), shutil.which("chromium")])
    code = f"""
        import {{ launch }} from {json.dumps((packages.HERE / "chromium.mjs").as_uri())};
        const {{ context, close }} = await launch(...{given});
        const seen = await context.pages()[0].goto("http://localhost.example/").catch((error) => String(error));
        await close();
        console.log(seen);
    """
    (tmp_path / "out.mjs").write_text(code)
    done = subprocess.run(["node", str(tmp_path / "out.mjs")], capture_output=True, text=True, check=True)
    assert "ERR_NAME_NOT_RESOLVED" in done.stdout


def test_a_call_is_timed_by_the_clock_of_its_own_process(tmp_path):
    need("ort_web")
    bag_of_words(tmp_path / "model.onnx", sizes=(256, 256, 256))
    session = runtimes.get("ort_web").load(tmp_path / "model.onnx", 1)
    calls = [{name: np.ones((1, 128), np.int64) for name in session.inputs} for _ in range(30)]
    into, nothing = np.zeros(30, np.int64), np.zeros(30, np.int64)
    stopwatch.timed(session.run, calls, into)  # the kernels are compiled
    began = time.perf_counter_ns()
    assert stopwatch.timed(session.run, calls, into) == 30
    assert 0 < into.sum() < time.perf_counter_ns() - began
    assert stopwatch.timed(session.nothing, calls, nothing) == 30
    assert np.median(nothing) < 0.05 * np.median(into)  # not the way there and back, which is longer than that
    limit = int(3 * np.median(into))
    assert 1 <= stopwatch.timed(session.run, calls, np.zeros(30, np.int64), limit) < 30


# -------------------------------------------------------------------------------------------------------- failures


def program(folder: Path, name: str, text: str) -> Path:
    """A program of that name which does something else."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("does", "reason", "timeout_s"),
    [
        ("kill -SEGV $$", "onnxruntime-web in node: crashed with SIGSEGV", 300),
        ("echo 'FATAL ERROR: heap out of memory' >&2; echo ' 1: frame' >&2; kill -ABRT $$", "heap out of memory", 300),
        ("exec sleep 61.25", "took longer than 4 s", 4),
    ],
)
def test_a_node_that_fails_is_a_row_with_the_reason_and_leaves_nothing(does, reason, timeout_s, tmp_path, monkeypatch):
    need("ort_web")
    monkeypatch.setenv("PATH", f"{program(tmp_path / 'bin', 'node', does)}:{os.environ['PATH']}")
    (row,) = bench(artifact(tmp_path), tmp_path / "out", "ort_web", timeout_s=timeout_s)
    assert reason in row["why_invalid"] and not row["valid"] and row["p50_ms"] is None
    assert not list((tmp_path / "out" / "raw").iterdir())
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61.25"]]


def test_a_broken_file_is_a_reason_and_the_worker_goes_on(tmp_path):
    need("ort_web")
    runtime = runtimes.get("ort_web")
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(BenchError, match=r"onnxruntime-web in node: .*protobuf"):
        runtime.load(tmp_path / "broken.onnx", 1)
    with pytest.raises(BenchError, match="no such file"):
        runtime.load(tmp_path / "none.onnx", 1)
    with pytest.raises(BenchError, match="one thread"):
        runtime.load(tmp_path / "broken.onnx", 2)
    bag_of_words(tmp_path / "model.onnx")
    assert set(runtime.load(tmp_path / "model.onnx", 1).inputs) == {"input_ids", "attention_mask"}


def test_a_worker_that_is_killed_says_so(tmp_path):
    need("ort_web")
    worker = Worker("node")
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(BenchError, match="crashed with SIGKILL"):
        worker.ask("open", "model.onnx")


def test_what_is_missing_is_a_skipped_row_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    tools = tmp_path / "bin"
    for name in ("node", "npm", "chromium"):
        program(tools, name, "exit 1")
    monkeypatch.setenv("PATH", str(tools))
    assert {row["why_invalid"] for row in bench(artifact(tmp_path), tmp_path / "out", *WEBS)} == {
        "skipped: edgekd doctor --install ort_web"
    }
    (tools / "chromium").unlink()
    (tools / "node").unlink()
    (row,) = bench(artifact(tmp_path / "again"), tmp_path / "out", "ort_web_chromium")
    apt = "apt-get install -y --no-install-recommends"
    assert row["why_invalid"] == f"skipped: {apt} nodejs chromium && edgekd doctor --install ort_web"
    with pytest.raises(MissingDependencyError, match=f"there is no node here; install it with: {apt} nodejs"):
        packages.install()
    assert main(["doctor", "--install", "ort_web"]) == MissingDependencyError.exit_code
    assert not (tmp_path / "cache").exists()


# -------------------------------------------------------------------------------------------------------- packages


def test_the_lock_file_pins_every_package_by_version_and_hash_and_from_the_registry_alone():
    wanted = json.loads((packages.HERE / "package.json").read_text())["dependencies"]
    lock = json.loads((packages.HERE / "package-lock.json").read_text())["packages"]
    assert lock.pop("")["dependencies"] == wanted
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: lock[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    for package in lock.values():
        assert package.get("resolved", REGISTRY).startswith(REGISTRY)  # left out: whichever one npm is set to
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package["integrity"])


def test_a_package_that_is_not_the_locked_one_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    if shutil.which("npm") is None:
        pytest.skip("not installed: apt-get install -y --no-install-recommends npm")
    here = tmp_path / "here"
    (here / "package").mkdir(parents=True)
    told = {"name": "some", "version": "1.0.0", "scripts": {"install": f"touch {tmp_path / 'ran'}"}}
    (here / "package" / "package.json").write_text(json.dumps(told))
    shutil.make_archive(str(here / "some"), "gztar", here, "package")
    source = {"some": f"file:{here / 'some.tar.gz'}"}
    lock = {"lockfileVersion": 3, "requires": True, "packages": {"": {"dependencies": source}}}
    entry = {"version": "1.0.0", "resolved": source["some"], "hasInstallScript": True}
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "HERE", here)

    def locked(**more: str) -> None:
        (here / "package.json").write_text(json.dumps({"private": True, "dependencies": source}))
        lock["packages"]["node_modules/some"] = {**entry, **more}  # type: ignore[index]
        (here / "package-lock.json").write_text(json.dumps(lock))

    locked(integrity="sha512-" + "A" * 86 + "==")
    with pytest.raises(AssetError, match=r"EINTEGRITY|integrity"):
        packages.install()
    assert not list((tmp_path / "cache" / "web").iterdir())
    locked()
    assert packages.install() == packages.folder() == packages.install()
    assert (packages.folder() / "node_modules" / "some" / "package.json").is_file()
    assert not (tmp_path / "ran").exists(), "a script of a package was run"


def test_the_download_is_what_a_compressing_server_sends(tmp_path):
    need("ort_web")
    words, noise = tmp_path / "words", tmp_path / "noise"
    words.write_bytes(b"oil prices rose " * 5000)
    noise.write_bytes(np.random.default_rng(0).bytes(50_000))
    found = download.sizes([words, noise])
    zipped = [len(gzip.compress(file.read_bytes(), 9)) for file in (words, noise)]
    assert found["bytes"] == 130_000 and found["gzip_bytes"] == pytest.approx(sum(zipped), rel=0.01)
    assert 50_000 <= found["brotli_bytes"] < found["gzip_bytes"]
    with pytest.raises(BenchError, match="cannot be compressed"):
        download.sizes([tmp_path / "none"])


def test_a_row_has_the_downloads_of_what_may_be_shipped_and_the_report_tells_them(tmp_path, monkeypatch):
    if shutil.which("node") is None:
        pytest.skip("not installed: apt-get install -y --no-install-recommends nodejs")
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    for file in download.runtime_files():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 2**20)
    given = artifact(tmp_path)
    size = given.size_bytes("ort_web")
    places = [("student_qad", "ort_web"), ("student_qad", "ort_cpu"), ("teacher_fp32", "ort_web")]
    table = [{"artifact": name, "runtime": runtime, "size_bytes": size} for name, runtime in places]
    bench_stage._add_downloads(table, [given])
    assert ["download" in row for row in table] == [True, False, False]
    found = table[0]["download"]
    assert found["model"]["bytes"] == size and found["runtime"]["bytes"] == 3 * 2**20
    (line,) = limits.downloads(table, "int8")
    assert line.startswith("A page that loads the student, shipped int8 downloads ") and "3.00 as it is." in line


# ------------------------------------------------------------------------------------------------------------ page


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was measured in onnxruntime-web."""
    need("ort_web")
    root = tmp_path_factory.mktemp("page")
    export = tiny_bundle.export_stage(root / "export")
    words = tiny_bundle.tokenizer()
    words.model = models.WordPiece({word: i for i, word in enumerate(tiny_bundle.WORDS)}, unk_token="[UNK]")
    words.normalizer, words.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words.save(str(export / "student_qad" / "tokenizer.json"))
    report = tiny_bundle.report()
    report["rows"] += [{**row, "runtime": "ort_web"} for row in report["rows"] if row["runtime"] == "ort_cpu"]
    return ship.pack(report, export, root / "dist" / "tiny")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What ``python -m http.server`` serves with."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def opened() -> Iterator[Callable[[Path, list[str]], dict[str, Any]]]:
    """Serve a folder as its page says, open it in Chromium, and ask it."""
    need("ort_web_chromium")
    servers: list[http.server.ThreadingHTTPServer] = []

    def ask(folder: Path, texts: list[str]) -> dict[str, Any]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        script, url = Path(__file__).with_name("open_page.mjs"), f"http://127.0.0.1:{server.server_port}/"
        given = [str(script), str(packages.HERE), str(packages.folder()), str(shutil.which("chromium")), url]
        done = subprocess.run(["node", *given], input=json.dumps(texts), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert all(asked.startswith(url) for asked in found["requests"])
        return found

    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_the_page_answers_as_deploy_does_and_asks_nobody_else(bundle, opened):
    texts = [
        "Oil prices rose.",
        "wheat",
        "Profit of a bank, oil! " * 9,
        "prices",
        "?",
        "bank bank wheat oil profit rose",
    ]
    found = opened(bundle, texts)
    assert (found["state"], found["errors"]) == ("Ready.", [])
    expected = [one for text in texts for one in deploy.load(bundle)(text)]
    assert [answer["label"] for answer in found["answers"]] == [one.label for one in expected]
    np.testing.assert_allclose([a["score"] for a in found["answers"]], [one.score for one in expected], atol=1e-5)
    assert found["shown"] == expected[0].label


def test_a_page_without_its_model_says_so(bundle, opened, tmp_path):
    shutil.copytree(bundle, tmp_path / "damaged")
    (tmp_path / "damaged" / "onnx" / "model_quantized.onnx").unlink()
    found = opened(tmp_path / "damaged", ["oil"])
    assert "could not be loaded: ./onnx/model_quantized.onnx cannot be had: 404" in found["state"]


def test_a_bundle_has_a_page_where_the_browsers_runtime_was_measured(bundle, tmp_path, monkeypatch):
    manifest = ship.verify_files(bundle)
    assert manifest["page"] == page.PAGE and "http.server" in (bundle / "README.md").read_text()
    assert "http.server" in (bundle / page.PAGE).read_text()
    written = (bundle / page.PAGE).read_text() + (bundle / "classify.mjs").read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1)", written)
    assert ship.verify_files(tiny_bundle.bundle(tmp_path))["page"] is None
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "empty"))
    with pytest.raises(MissingDependencyError, match="doctor --install ort_web"):
        page.write(tmp_path)
