"""The 25 modules and where they live: names, files, links."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

# The one place that says where the course is published.
OWNER, REPOSITORY, BRANCH = "quantlab-course", "quantlab", "main"
COURSE = Path(__file__).resolve().parents[1]
COLAB = f"https://colab.research.google.com/github/{OWNER}/{REPOSITORY}/blob/{BRANCH}/course"
# Never the bare name: on the public index it belongs to somebody else's package.
INSTALL = f"git+https://github.com/{OWNER}/{REPOSITORY}@{BRANCH}"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class BuildError(ValueError):
    """A source or an output that the course does not accept; the message says what to change."""


@dataclass(frozen=True)
class Module:
    """One module of the course, as modules.json lists it."""

    number: int
    slug: str
    title: str
    minutes: int
    extras: list[str]

    @property
    def label(self) -> str:
        """Two digits: 04."""
        return f"{self.number:02d}"

    @property
    def name(self) -> str:
        """The stem of the module's files: 04_gptq."""
        return f"{self.label}_{self.slug}"

    @property
    def colab(self) -> str:
        """The address that opens the notebook in Colab."""
        return f"{COLAB}/{self.name}.ipynb"

    def source(self, root: Path) -> Path:
        """Where its source stands."""
        return root / "src" / f"{self.name}.py"

    def notebook(self, root: Path) -> Path:
        """Where its executed notebook stands."""
        return root / f"{self.name}.ipynb"


MODULES = [Module(**row) for row in json.loads((COURSE / "modules.json").read_text("utf-8"))]


def find(label: str) -> Module:
    """Return the module of a number such as ``4`` or ``04``."""
    for module in MODULES:
        if label.isdecimal() and module.number == int(label):
            return module
    raise BuildError(f"there is no module {label!r}; choose 1 to {len(MODULES)}")


def written(root: Path) -> list[Module]:
    """List the modules whose source exists; a source without a module is an error."""
    modules = [module for module in MODULES if module.source(root).exists()]
    known = {module.source(root) for module in modules}
    for path in sorted((root / "src").glob("*.py")):
        if path not in known:
            raise BuildError(f"{path.name} is not in modules.json; rename it to NN_slug.py")
    return modules


def neighbor(module: Module, step: int, root: Path) -> tuple[Module | None, bool]:
    """Return the module `step` places on, and whether it is written already."""
    place = module.number - 1 + step
    if not 0 <= place < len(MODULES):
        return None, False
    return MODULES[place], MODULES[place].source(root).exists()


def module_table(root: Path) -> str:
    """Lay out the course map: one row per module, linked when it is written."""
    rows = ["| module | title | minutes |", "|---|---|---|"]
    for module in MODULES:
        exists = module.source(root).exists()
        title = f"[{module.title}]({module.name}.ipynb)" if exists else module.title
        rows.append(f"| {module.label} | {title} | {module.minutes} |")
    return "\n".join(rows)
