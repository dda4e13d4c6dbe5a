"""What a new project begins with: its kind's usual packages, a base image, and the text of every file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ds01_spawner.core.packages import Packages, block_of, name_of
from ds01_spawner.core.project import quoted, validate_name
from ds01_spawner.errors import InvalidOptions

USUAL = ("pandas", "scipy", "scikit-learn", "matplotlib", "seaborn")
"""What nearly every data science project uses, whatever its kind."""

_DESCRIPTION_CHARACTERS = 300
_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._/-]{0,199}(?::[0-9]{1,5}/[a-z0-9._/-]{1,199})?(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of project.

    Attributes:
        name: as it is chosen.
        label: what people call it.
        pip: Python packages that such projects usually need.
        apt: Debian packages that those need.
    """

    name: str
    label: str
    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("ml", "Machine learning", (*USUAL, "xgboost", "lightgbm", "catboost", "optuna", "shap"), ("libgomp1",)),
        Kind(
            "cv",
            "Computer vision",
            (*USUAL, "timm", "albumentations", "opencv-python-headless", "kornia", "ultralytics"),
        ),
        Kind(
            "nlp",
            "Natural language processing",
            (
                *USUAL,
                "transformers",
                "datasets",
                "tokenizers",
                "accelerate",
                "sentencepiece",
                "peft",
                "safetensors",
                "evaluate",
            ),
        ),
        Kind("rl", "Reinforcement learning", (*USUAL, "gymnasium", "stable-baselines3")),
        Kind(
            "audio", "Audio and speech", (*USUAL, "librosa", "soundfile", "audiomentations"), ("libsndfile1", "ffmpeg")
        ),
        Kind("ts", "Time series", (*USUAL, "statsmodels", "prophet", "darts")),
        Kind("llm", "Large language models", (*USUAL, "vllm", "bitsandbytes", "langchain", "einops")),
        Kind("custom", "Something else: only what I choose"),
    )
}
"""The eight kinds of the DS01 command line, with its lists of packages."""


@dataclass(frozen=True, slots=True)
class Base:
    """An image to start from.

    Attributes:
        name: as it is chosen.
        image: its reference on this host.
        description: one line for people.
    """

    name: str
    image: str
    description: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A new project, valid.

    Attributes:
        name: of its folder.
        kind: one of ``KINDS``.
        base: what its image starts from.
        packages: what is installed on top.
        description: one line, may be empty.
        created: ISO date of the day.
    """

    name: str
    kind: Kind
    base: Base
    packages: Packages
    description: str
    created: str


def choose_kind(name: str) -> Kind:
    """Return a kind by its name.

    Raises:
        InvalidOptions: there is none.
    """
    if name not in KINDS:
        raise InvalidOptions(f"There is no kind of project {quoted(name)}. Use one of {', '.join(KINDS)}.")
    return KINDS[name]


def combine(kind: Kind, chosen: Packages, *, with_usual: bool) -> Packages:
    """Return what a project installs: the kind's usual packages, unless the person named the same ones otherwise."""
    if not with_usual:
        return chosen
    own = {name_of(requirement) for requirement in chosen.pip}
    pip = tuple(requirement for requirement in kind.pip if name_of(requirement) not in own) + chosen.pip
    return Packages(pip, tuple(dict.fromkeys((*kind.apt, *chosen.apt))))


def check_description(text: str) -> str:
    """Return a description in one line.

    Raises:
        InvalidOptions: it is too long.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > _DESCRIPTION_CHARACTERS:
        raise InvalidOptions(f"The description has {len(line)} characters; {_DESCRIPTION_CHARACTERS} are the most.")
    return line


def files(plan: Plan) -> dict[str, str]:
    """Return every file of a new project by its path in the folder.

    Raises:
        ProjectRefused: the name cannot be a project's.
        ValueError: the base's image is no image's name, which the site gave.
    """
    validate_name(plan.name)
    if not _IMAGE.fullmatch(plan.base.image):
        raise ValueError(f"{plan.base.image!r} is no image")
    return {
        "Dockerfile": dockerfile(plan),
        ".dockerignore": _DOCKERIGNORE,
        ".gitignore": _GITIGNORE,
        "README.md": readme(plan),
        "pyproject.toml": pyproject(plan),
    }


def dockerfile(plan: Plan) -> str:
    """Return the project's Dockerfile."""
    return (
        "# The recipe of this project's environment. Launching the project builds it when it has changed.\n"
        f"# It starts from: {plan.base.description}\n"
        f"FROM {plan.base.image}\n"
        "\n"
        f"{block_of(plan.packages)}\n"
        "\n"
        "# Anything else belongs below, for example:\n"
        "#   ENV MY_SETTING=value\n"
        "#   RUN git clone https://github.com/someone/tool /opt/tool\n"
        "# The project's folder need not be copied: it is at /workspace when the project runs.\n"
    )


def readme(plan: Plan) -> str:
    """Return the project's README."""
    title = " ".join(plan.name.split())
    return (
        f"# {_markdown(title)}\n\n"
        f"{_markdown(plan.description) or 'What this project is about.'}\n\n"
        "## Where things are\n\n"
        "* This folder is `/workspace` while the project runs. It is permanent: launching and retiring never change\n"
        "  it.\n"
        "* `Dockerfile` is the recipe of the environment. What you install by hand in a running project is gone when\n"
        "  it is retired; packages on the project's page, or lines in the Dockerfile, stay.\n"
        "* `data/`, `models/` and `outputs/` are left out of git and of image builds, because they grow large.\n\n"
        f"Created on {plan.created} as a project of the kind “{plan.kind.label}”.\n"
    )


def pyproject(plan: Plan) -> str:
    """Return the project's ``pyproject.toml``."""
    name = re.sub(r"[^a-z0-9]+", "-", plan.name.lower()).strip("-") or "project"
    dependencies = "".join(f"  {json.dumps(requirement)},\n" for requirement in plan.packages.pip)
    return (
        "[project]\n"
        f"name = {json.dumps(name)}\n"
        'version = "0.1.0"\n'
        f"description = {_toml(plan.description)}\n"
        'requires-python = ">=3.9"\n'
        f"dependencies = [\n{dependencies}]\n"
        "\n"
        "[tool.ds01]\n"
        f'type = "{plan.kind.name}"\n'
        f'created = "{plan.created}"\n'
        f"base = {_toml(plan.base.image)}\n"
    )


def _toml(text: str) -> str:
    """Return a text as a TOML string: JSON's escapes are TOML's, except for characters beyond 16 bits."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


_DOCKERIGNORE = """\
# What an image build is not given. Everything here stays in the folder and is at /workspace when the project runs.
.git
data
models
outputs
notebooks
**/.ipynb_checkpoints
**/__pycache__
**/.cache
.venv
"""

_GITIGNORE = """\
# Large or made by programs
data/
models/
outputs/
.cache/
.venv/
__pycache__/
*.py[cod]
.ipynb_checkpoints/

# Of the server
.keep-alive
RETIRING-SOON.txt

# Never commit secrets
.env
*.pem
"""
