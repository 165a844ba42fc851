"""Evaluate the small expressions of a question bank, without Python's own evaluator.

An expression such as ``Scheme(bits=b, group_size=g).bits_per_weight`` is parsed once and turned
into nested functions. Arithmetic, comparisons, calls, indexing and comprehensions are known;
statements, lambdas, assignments and names that begin with an underscore are refused. Bank files
are ours; what a learner types never comes here (see answers.py).
"""

from __future__ import annotations

import ast
import builtins
import importlib
import math
import operator
import string
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Values = Mapping[str, Any]
Evaluator = Callable[[Values], Any]

OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, group: item in group,
    ast.NotIn: lambda item, group: item not in group,
}
BUILTINS = [
    "abs",
    "all",
    "any",
    "bool",
    "divmod",
    "enumerate",
    "float",
    "hex",
    "int",
    "len",
    "list",
    "max",
    "min",
    "pow",
    "range",
    "reversed",
    "round",
    "set",
    "sorted",
    "str",
    "sum",
    "tuple",
    "zip",
]
MODULES = {"ql": "quantlab", "torch": "torch", "np": "numpy"}
PACKAGES = ("quantlab", "quantlab.floats")  # where a bare name is looked up


def evaluate(text: str, values: Values) -> Any:
    """Return the value of an expression over ``values``, math, torch, np and quantlab's names.

    Raises
    ------
    ValueError
        If the text is no expression, or uses a construct or a name that is not known.

    Examples
    --------
    >>> evaluate("(b - a) / (2**bits - 1)", {"a": -1, "b": 3, "bits": 2})
    1.3333333333333333
    """
    return compiled(text)(values)


@lru_cache(maxsize=4096)
def compiled(text: str) -> Evaluator:
    """Parse an expression once into a function of its values."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval").body
    except SyntaxError as problem:
        raise ValueError(f"{text!r} is no expression: {problem.msg}") from None
    return build(tree)


def fill(template: str, values: Values) -> str:
    """Put values into ``{expression}`` and ``{expression:format}``; ``{{`` and ``}}`` are braces.

    Examples
    --------
    >>> fill("x = {x}, twice is {2 * x:.2f}", {"x": 0.5})
    'x = 0.5, twice is 1.00'
    """
    parts = []
    for literal, field, form, _ in string.Formatter().parse(template):
        parts.append(literal)
        if field is not None:
            parts.append(format(evaluate(field, values), form or ""))
    return "".join(parts)


def lookup(name: str, values: Values) -> Any:
    """Find a name among the values, the allowed builtins and modules, and quantlab's names."""
    if name in values:
        return values[name]
    if name in BUILTINS:
        return getattr(builtins, name)
    if name == "math":
        return math
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    for package in PACKAGES:
        found = getattr(importlib.import_module(package), name, None)
        if found is not None and not name.startswith("_"):
            return found
    raise ValueError(f"{name!r} is no value of this question and no public name of quantlab")


def build(node: ast.AST) -> Evaluator:
    """Turn a syntax node into a function of the values."""
    kind = type(node)
    if kind not in BUILDERS:
        raise ValueError(f"a bank expression cannot use {kind.__name__}")
    return BUILDERS[kind](node)


def build_attribute(node: ast.Attribute) -> Evaluator:
    """Read an attribute; names with an underscore in front stay private."""
    if node.attr.startswith("_"):
        raise ValueError(f"a bank expression cannot read {node.attr!r}")
    owner, name = build(node.value), node.attr
    return lambda values: getattr(owner(values), name)


def build_call(node: ast.Call) -> Evaluator:
    """Call a function with plain and named arguments."""
    function, plain = build(node.func), [build(argument) for argument in node.args]
    named = {word.arg or "": build(word.value) for word in node.keywords}
    if "" in named:
        raise ValueError("a bank expression cannot use ** in a call")
    return lambda values: function(values)(
        *(part(values) for part in plain),
        **{name: part(values) for name, part in named.items()},
    )


def build_compare(node: ast.Compare) -> Evaluator:
    """Compare, also in chains such as 0 < x <= 3."""
    parts = [build(part) for part in (node.left, *node.comparators)]
    tests = [OPERATORS[type(sign)] for sign in node.ops]

    if len(tests) == 1:  # a tensor compares entry by entry
        return lambda values: tests[0](parts[0](values), parts[1](values))

    def compare(values: Values) -> bool:
        left = parts[0](values)
        for test, part in zip(tests, parts[1:], strict=True):
            right = part(values)
            if not test(left, right):
                return False
            left = right
        return True

    return compare


def build_comprehension(node: ast.ListComp | ast.GeneratorExp) -> Evaluator:
    """Loop over one iterable with a plain or unpacked target and optional conditions."""
    if len(node.generators) != 1:
        raise ValueError("a bank expression loops over one iterable only")
    loop = node.generators[0]
    targets = loop.target.elts if isinstance(loop.target, ast.Tuple) else [loop.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    source, body = build(loop.iter), build(node.elt)
    tests = [build(test) for test in loop.ifs]
    unpack = isinstance(loop.target, ast.Tuple)

    def run(values: Values) -> list[Any]:
        results = []
        for item in source(values):
            local = {**values, **dict(zip(names, item if unpack else [item], strict=True))}
            if all(test(local) for test in tests):
                results.append(body(local))
        return results

    return run


def build_binary(node: ast.BinOp) -> Evaluator:
    """Apply an operator to two parts."""
    left, apply, right = build(node.left), OPERATORS[type(node.op)], build(node.right)
    return lambda values: apply(left(values), right(values))


def build_unary(node: ast.UnaryOp) -> Evaluator:
    """Apply a sign, ~ or not."""
    apply, part = OPERATORS[type(node.op)], build(node.operand)
    return lambda values: apply(part(values))


def build_boolean(node: ast.BoolOp) -> Evaluator:
    """Join conditions with and / or, left to right."""
    parts = [build(part) for part in node.values]
    join = all if isinstance(node.op, ast.And) else any
    return lambda values: join(part(values) for part in parts)


def build_choice(node: ast.IfExp) -> Evaluator:
    """Choose between two parts."""
    test, yes, no = build(node.test), build(node.body), build(node.orelse)
    return lambda values: yes(values) if test(values) else no(values)


def build_subscript(node: ast.Subscript) -> Evaluator:
    """Index or slice."""
    owner, index = build(node.value), build(node.slice)
    return lambda values: owner(values)[index(values)]


def build_slice(node: ast.Slice) -> Evaluator:
    """Make a slice of up to three parts."""
    parts = [build(part) if part else None for part in (node.lower, node.upper, node.step)]
    return lambda values: slice(*(part(values) if part else None for part in parts))


def build_list(node: ast.List | ast.Tuple) -> Evaluator:
    """Make a list or a tuple."""
    parts = [build(part) for part in node.elts]
    make = list if isinstance(node, ast.List) else tuple
    return lambda values: make(part(values) for part in parts)


def build_constant(node: ast.Constant) -> Evaluator:
    """Return a literal."""
    constant = node.value
    return lambda values: constant


def build_name(node: ast.Name) -> Evaluator:
    """Look a name up when the expression is evaluated."""
    name = node.id
    return lambda values: lookup(name, values)


BUILDERS: dict[type, Callable[[Any], Evaluator]] = {
    ast.Attribute: build_attribute,
    ast.BinOp: build_binary,
    ast.BoolOp: build_boolean,
    ast.Call: build_call,
    ast.Compare: build_compare,
    ast.Constant: build_constant,
    ast.GeneratorExp: build_comprehension,
    ast.IfExp: build_choice,
    ast.List: build_list,
    ast.ListComp: build_comprehension,
    ast.Name: build_name,
    ast.Slice: build_slice,
    ast.Subscript: build_subscript,
    ast.Tuple: build_list,
    ast.UnaryOp: build_unary,
}
