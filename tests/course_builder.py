"""Gives the tests the notebook builder of course/, which is no part of the package."""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
COURSE = CHECKOUT / "course"

# At the end, so that course/build.py never hides the package named build.
sys.path.append(str(COURSE))
catalog = import_module("builder.catalog")
anatomy = import_module("builder.anatomy")
assemble = import_module("builder.assemble")
execute = import_module("builder.execute")
rules = import_module("builder.rules")
_spec = spec_from_file_location("course_build", COURSE / "build.py")
assert _spec is not None
assert _spec.loader is not None
build = module_from_spec(_spec)
_spec.loader.exec_module(build)
