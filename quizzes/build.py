"""Compile the question banks: quizzes/NN_slug.yaml -> quantlab/quiz/banks/NN_slug.json.

Run ``python quizzes/build.py`` after every edit of a bank; a test compares the two. Learners read
the JSON, so that they need no YAML parser.
"""

import json
import sys
from pathlib import Path

import jsonschema
import yaml

HERE = Path(__file__).parent
BANKS = HERE.parent / "quantlab" / "quiz" / "banks"


def read_bank(source: Path) -> dict:
    """Return a bank after checking it against schema.json and its own file name.

    Raises
    ------
    ValueError
        With the place of the first error.
    """
    bank = yaml.safe_load(source.read_text(encoding="utf-8"))
    schema = json.loads((HERE / "schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft202012Validator(schema).iter_errors(bank)
    problem = jsonschema.exceptions.best_match(errors)
    if problem is not None:
        raise ValueError(f"{source.name}: {problem.json_path}: {problem.message}")
    if bank["quiz"] != source.stem:
        raise ValueError(f"{source.name}: quiz is {bank['quiz']!r}; write the file's name")
    return bank


def render(bank: dict) -> str:
    """Return the JSON text of a bank."""
    return json.dumps(bank, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Compile every bank and drop the JSON of banks that are gone; 2 means a faulty bank."""
    BANKS.mkdir(exist_ok=True)
    sources = sorted(HERE.glob("[0-9][0-9]_*.yaml"))
    for old in BANKS.glob("*.json"):
        if not (HERE / f"{old.stem}.yaml").exists():
            old.unlink()
    faults = 0
    for source in sources:
        try:
            text = render(read_bank(source))
        except (ValueError, yaml.YAMLError) as problem:
            print(problem, file=sys.stderr)
            faults += 1
            continue
        (BANKS / f"{source.stem}.json").write_text(text, encoding="utf-8")
    print(f"{len(sources) - faults} of {len(sources)} banks compiled")
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
