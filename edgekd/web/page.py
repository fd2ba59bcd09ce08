"""The page of a bundle for browsers: the runtime that was measured, a tokenizer, and nothing from anywhere else."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekd.errors import MissingDependencyError
from edgekd.runtimes import INSTALL_WEB
from edgekd.web import download, packages

PAGE = "index.html"
LICENCES = """ort*: ONNX Runtime Web {onnxruntime-web}, Copyright (c) Microsoft Corporation, MIT licence.
tokenizers.min.mjs: @huggingface/tokenizers {@huggingface/tokenizers}, Apache licence 2.0, see LICENSE-tokenizers.
"""


def write(bundle: Path) -> None:
    """Put the page into the folder, for which any server of static files will do.

    Raises ``MissingDependencyError`` without the packages that it is made of.
    """
    if not packages.folder().is_dir():
        raise MissingDependencyError(f"the bundle's page is made of onnxruntime-web; install it: {INSTALL_WEB}")
    for file in sorted((packages.HERE / "page").iterdir()):
        shutil.copyfile(file, bundle / file.name)
    web = bundle / "web"
    web.mkdir()
    tokenizers = packages.folder() / "node_modules/@huggingface/tokenizers"
    for file in (*download.runtime_files(), tokenizers / "dist/tokenizers.min.mjs"):
        shutil.copyfile(file, web / file.name)
    shutil.copyfile(tokenizers / "LICENSE", web / "LICENSE-tokenizers")
    (web / "LICENCES.txt").write_text(LICENCES.format_map(packages.versions()), encoding="utf-8")
