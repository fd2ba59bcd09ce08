from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import venv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixture
import tiny_bundle
from onnx import TensorProto

import edgekd
from edgekd import deploy
from edgekd.errors import BundleError, MissingDependencyError, UsageError

TEXTS = ["Oil prices rose", "wheat", "profit bank profit", "", "unheard words", "oil " * 5000]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.bundle(tmp_path_factory.mktemp("deploy"))


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def change(bundle: Path, **values: Any) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_logits_are_the_definitions_for_short_empty_and_very_long_texts(bundle: Path) -> None:
    found = deploy.load(bundle).logits(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [tiny_bundle.expected(text) for text in TEXTS], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_padded_batches_answer_as_single_texts_do(bundle: Path, batch_size: int) -> None:
    classify = deploy.load(bundle)
    np.testing.assert_allclose(classify.logits(TEXTS, batch_size=batch_size), classify.logits(TEXTS), atol=1e-6)


def test_a_prediction_is_the_likeliest_label_with_the_softmax_of_the_logits(bundle: Path) -> None:
    for text, found in zip(TEXTS, deploy.load(bundle)(TEXTS), strict=True):
        exps = np.exp(tiny_bundle.expected(text))
        shares = exps / exps.sum()
        assert found.label == tiny_bundle.LABELS[int(shares.argmax())]
        assert found.score == pytest.approx(shares.max(), rel=1e-5)
        assert list(found.probabilities) == tiny_bundle.LABELS
        assert list(found.probabilities.values()) == pytest.approx(shares.tolist(), rel=1e-4)


def test_one_text_is_one_text_and_not_its_letters(bundle: Path) -> None:
    classify = deploy.load(bundle)
    assert classify("oil") == classify(["oil"])


def test_no_texts_give_no_predictions(bundle: Path) -> None:
    classify = deploy.load(bundle)
    assert classify([]) == []
    assert classify.logits([]).shape == (0, len(tiny_bundle.LABELS))


@pytest.mark.parametrize(
    ("texts", "options"), [([None], {}), ([b"oil"], {}), (["\ud800"], {}), (["oil"], {"batch_size": 0})]
)
def test_what_is_no_text_is_refused(bundle: Path, texts: list[Any], options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        deploy.load(bundle).logits(texts, **options)


def test_only_the_inputs_that_the_graph_has_are_fed(tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    with_types = tiny_bundle.bundle(tmp_path, inputs=names)
    np.testing.assert_allclose(deploy.load(with_types).logits(["oil"])[0], tiny_bundle.expected("oil"), rtol=1e-5)


def test_a_graph_of_32_bit_inputs_is_fed_such(tmp_path: Path) -> None:
    narrow = tiny_bundle.bundle(tmp_path, integer=TensorProto.INT32)
    np.testing.assert_allclose(deploy.load(narrow).logits(["oil"])[0], tiny_bundle.expected("oil"), rtol=1e-5)


def test_an_input_that_no_text_gives_is_an_error(tmp_path: Path) -> None:
    odd = tiny_bundle.bundle(tmp_path, inputs=("input_ids", "attention_mask", "pixel_values"))
    with pytest.raises(BundleError, match="pixel_values"):
        deploy.load(odd)


def test_a_tokenizer_without_special_tokens_can_read_an_empty_text(copy: Path) -> None:
    tiny_bundle.tokenizer(special=False).save(str(copy / "tokenizer.json"))
    classify = deploy.load(copy, verify=False)
    assert np.isfinite(classify.logits(["", "oil"])).all()
    assert np.isfinite(classify.logits(["", "oil"], batch_size=2)).all()


def test_training_deployment_and_transformers_read_a_text_alike(copy: Path, tmp_path: Path) -> None:
    """Also if the teacher's tokenizer cut and padded on the left and adds no token of its own."""
    from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

    from edgekd.distill.data import tokenise
    from edgekd.models import loading

    given = PreTrainedTokenizerFast(
        tokenizer_object=tiny_bundle.tokenizer(special=False), pad_token="[PAD]", unk_token="[UNK]",
        padding_side="left", truncation_side="left",
    )  # fmt: skip
    given.save_pretrained(tmp_path)
    BertConfig(vocab_size=len(tiny_bundle.WORDS)).save_pretrained(tmp_path)
    tokenizer = loading.load_tokenizer(tmp_path)
    texts = ["wheat " + "oil " * 20, "oil profit", ""]
    tokens = tokenise(tokenizer.backend_tokenizer, texts, np.zeros(3, np.int64), tiny_bundle.MAX_LENGTH, 0)
    ids, mask, _ = tokens.gather(np.arange(3))
    assert ids.tolist() == [[7, *[4] * 7], [4, 8, *[0] * 6], [0] * 8]
    assert mask.sum(1).tolist() == [8, 2, 1]
    tokenizer.save_pretrained(copy)
    vectors, head = tiny_bundle.weights()
    expected = [vectors[row[keep]].mean(axis=0) @ head for row, keep in zip(ids, mask, strict=True)]
    for size in (1, 3):
        found = deploy.load(copy, verify=False).logits(texts, batch_size=size)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    theirs = AutoTokenizer.from_pretrained(copy)(texts, truncation=True, padding=True, max_length=8)
    assert theirs["input_ids"] == ids.tolist()
    assert theirs["attention_mask"][:2] == mask[:2].astype(int).tolist()


def test_what_the_runtime_refuses_is_an_error_of_the_bundle(copy: Path) -> None:
    tokenizer = tiny_bundle.tokenizer()
    tokenizer.add_tokens(["gold"])  # for which the model has no vector
    tokenizer.save(str(copy / "tokenizer.json"))
    classify = deploy.load(copy, verify=False)
    assert classify("oil")
    with pytest.raises(BundleError, match="fails on texts of up to 3 tokens"):
        classify("gold")


@pytest.mark.parametrize("document", ["README.md", "the bundle's card"])
def test_the_examples_in_the_documents_run(bundle: Path, document: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / document if document == "README.md" else bundle / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    examples = [block for block in blocks if "deploy" in block]
    assert examples
    for example in examples:
        exec(re.sub(r'deploy\.load\(".*?"\)', f"deploy.load({str(bundle)!r})", example), {})
    printed = capsys.readouterr().out
    assert any(label in printed for label in tiny_bundle.LABELS)


@pytest.mark.parametrize("name", ["onnx/model_quantized.onnx", "tokenizer.json", "config.json"])
def test_an_altered_file_is_found_before_it_runs(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"altered: {name}"):
        deploy.load(copy)


def test_a_file_beside_the_bundles_own_does_not_stop_it(copy: Path) -> None:
    (copy / ".DS_Store").write_text("")
    assert deploy.load(copy)("oil")


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no edgekd bundle"):
        deploy.load(tmp_path)


def test_a_model_that_does_not_load_is_an_error_of_the_bundle(copy: Path) -> None:
    (copy / "onnx" / "model_quantized.onnx").write_bytes(b"no model")
    with pytest.raises(BundleError, match="does not load"):
        deploy.load(copy, verify=False)


def test_an_older_onnxruntime_than_the_bundle_needs_is_warned_about(copy: Path) -> None:
    change(copy, minimum_onnxruntime="99.0")
    with pytest.warns(UserWarning, match=r"older than 99\.0"):
        deploy.load(copy)


def test_a_cpu_that_lacks_what_the_bundle_relies_on_is_warned_about(copy: Path) -> None:
    isa = deploy.machine.isa()
    change(copy, device={"name": "x", "isa": isa, "features": ["avx9_super|avx10_super"]})
    with pytest.warns(UserWarning, match="avx9_super"):
        deploy.load(copy)
    other = "aarch64" if isa == "x86_64" else "x86_64"
    change(copy, device={"name": "x", "isa": other, "features": []})
    with pytest.warns(UserWarning, match=other):
        deploy.load(copy)


@pytest.mark.parametrize(
    ("here", "told"),
    [
        ("arm64", r"its answers were verified: arm64 \(cortex-a76\): 256 of 256 labels as on AMD"),
        ("avx2", r"ITS ANSWERS WERE FOUND TO DIFFER: avx2 \(Haswell\): 201 of 256 labels"),
        ("vnni", r"nothing is known of its answers on vnni \(.* verified: arm64, avx2\)"),
        (None, "nothing is known of its answers on such a CPU"),
    ],
)
def test_on_another_instruction_set_the_warning_says_what_was_verified_there(
    here: str | None, told: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = {"name": "x", "isa": "another", "features": []}
    change(copy, device=device, verified=[report_fixture.ISA, report_fixture.OTHER])
    monkeypatch.setattr(deploy.machine, "instruction_set", lambda: here)
    with pytest.warns(UserWarning, match=told):
        deploy.load(copy)


def test_a_bundle_of_which_nothing_was_verified_is_warned_about_all_the_same(copy: Path) -> None:
    path = copy / "manifest.json"
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "verified"}
    path.write_text(json.dumps(old | {"device": {"name": "x", "isa": "another", "features": []}}))
    with pytest.warns(UserWarning, match="lacks another.* verified: none"):
        deploy.load(copy)


def test_a_system_that_does_not_tell_its_cpu_flags_is_not_warned_about(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(copy, device={"name": "x", "isa": deploy.machine.isa(), "features": ["avx9_super"]})
    monkeypatch.setattr(deploy.machine, "cpu_flags", frozenset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deploy.load(copy)


@pytest.mark.parametrize(
    ("older", "newer"), [("1.9.0", "1.10"), ("1.31.1", "1.32"), ("1.31", "1.31.1"), ("1.31.dev2", "1.31.1")]
)
def test_versions_compare_by_their_numbers(older: str, newer: str) -> None:
    assert deploy._parts(older) < deploy._parts(newer)


@pytest.mark.slow
def test_a_bundle_runs_in_an_environment_of_its_own_without_torch(bundle: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python, source = tmp_path / "env/bin/python", Path(edgekd.__file__).parents[1]
    pip = [python, "-m", "pip", "install", "--quiet", "-c", source / "constraints.txt"]
    made = subprocess.run([*pip, "onnxruntime", "tokenizers", "numpy"], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"the package registry gave no onnxruntime, tokenizers and numpy: {made.stderr[-300:]}")
    script = f"""
        import importlib.util
        assert importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnx") is None
        from edgekd import deploy
        print(deploy.load({str(bundle)!r})("Oil prices rose")[0].label)
    """
    done = subprocess.run(
        [python, "-c", textwrap.dedent(script)], env={"PYTHONPATH": str(source)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == tiny_bundle.LABELS[int(tiny_bundle.expected("oil prices rose").argmax())], done.stderr
    command = subprocess.run([python, "-m", "edgekd"], env={"PYTHONPATH": str(source)}, capture_output=True, text=True)
    assert command.returncode == MissingDependencyError.exit_code
    assert command.stderr.startswith("error: typer is not installed here: this environment runs bundles from Python")


def test_deploying_imports_onnxruntime_tokenizers_and_numpy_alone(bundle: Path) -> None:
    """In a fresh interpreter in which every other installed package fails to import."""
    script = f"""
        import sys
        allowed = {{"numpy", "onnxruntime", "tokenizers", "edgekd"}} | sys.stdlib_module_names

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] not in allowed:
                    raise ModuleNotFoundError("blocked: " + name, name=name)

        sys.meta_path.insert(0, Blocker())
        sys.path.insert(0, {str(Path(edgekd.__file__).parents[1])!r})
        from edgekd import deploy
        for name in ("torch", "transformers", "onnx", "rich"):
            try:
                __import__(name)
            except ModuleNotFoundError:
                continue
            raise SystemExit(name + " is not blocked")
        print(deploy.load({str(bundle)!r})("Oil prices rose")[0].label)
        print(sorted(name for name in sys.modules if name.startswith("edgekd.")))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    label, modules = done.stdout.splitlines()
    assert label == tiny_bundle.LABELS[int(tiny_bundle.expected("oil prices rose").argmax())]
    light = (
        *("bundle", "checks", "deploy", "devices", "errors", "globs", "machine", "session", "spec"),
        *(
            f"spec.{name}"
            for name in ("blackbox", "contradictions", "delivery", "losses", "sources", "training", "transfer")
        ),
    )
    assert modules == str([f"edgekd.{name}" for name in light])


def test_without_onnxruntime_the_error_names_the_command_that_installs_it(bundle: Path) -> None:
    script = f"""
        import sys
        sys.modules["onnxruntime"] = None
        sys.path.insert(0, {str(Path(edgekd.__file__).parents[1])!r})
        from edgekd import deploy, errors
        try:
            deploy.load({str(bundle)!r})
        except errors.MissingDependencyError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert "pip install onnxruntime tokenizers numpy" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("labels", None),
        ("labels", "abc"),
        ("labels", ["a", "a"]),
        ("labels", []),
        ("max_length", 0),
        ("max_length", "16"),
        ("max_length", True),
        ("minimum_onnxruntime", None),
        ("session", []),
        ("session", {"providers": []}),
        ("session", {"threads": "x"}),
        ("session", {"threads": -1}),
        ("device", "x"),
        ("device", {"name": "x"}),
        ("device", {"name": "x", "isa": "x86_64", "features": "avx2"}),
        ("verified", [{"isa": "avx2"}]),
        ("verified", [report_fixture.ISA | {"score": "high"}]),
        ("verified", {}),
    ],
)
def test_a_manifest_that_no_edgekd_wrote_is_refused_by_its_field(name: str, value: Any, copy: Path) -> None:
    change(copy, **{name: value})
    with pytest.raises(BundleError, match=rf"manifest .* is damaged: {name} must be .*; make the bundle again"):
        deploy.load(copy)
