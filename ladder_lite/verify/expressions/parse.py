"""Parse untrusted text into an Expression, which is evaluated with its derivative on arrays of points.

    parse("x*exp(x)").values_and_derivatives(np.array([0.5 + 0j]))

Nothing in the text is ever executed. Python's `ast` parses it, and every node that is not on the allow-list is refused.
The result is a flat list of array operations of limited length, so an evaluation has a bounded cost.
"""

import ast
import math
import re
from functools import partial, reduce
from itertools import pairwise
from typing import Any, Final, cast

from ladder_lite.verify.expressions.builder import MAX_EXPONENT, MAX_NODES, Builder
from ladder_lite.verify.expressions.expression import Complexes, Expression, ExpressionError
from ladder_lite.verify.expressions.functions import CONSTANTS, NAMES, NUMBERS, OF_TWO, SPELLINGS, SYMBOLS, lookup
from ladder_lite.verify.expressions.grammar import CONSTANT
from ladder_lite.verify.expressions.notation import respell
from ladder_lite.verify.expressions.operations import ARITHMETIC, Operation, words

__all__ = ["MAX_CHARS", "MAX_DEPTH", "MAX_DIGITS", "MAX_EXPONENT", "MAX_NODES"]
__all__ += ["Complexes", "Expression", "ExpressionError", "parse"]

MAX_CHARS: Final = 8000  # in a text; SymPy's antiderivatives of exam problems stay below 2,000, few exceed 4,000
MAX_DEPTH: Final = 80  # levels of the syntax tree
MAX_DIGITS: Final = 40  # in one number

# Texts that are first tried as Python: names, numbers that Python reads without a warning, and signs of arithmetic. The
# possessive quantifiers (++) rule out backtracking, which hostile text could make slow.
_PYTHON: Final = re.compile(
    r"(?:[A-Za-z_]\w*+|(?:\d{1,20}+(?:\.\d{0,18}+)?|\.\d{1,19}+)(?:[eE][+-]?\d{1,3}+)?(?!\w)|[-+*/(), ]++)++", re.ASCII
)
_LONG_NUMBER: Final = re.compile(rf"[\d_.]{{{MAX_DIGITS + 1},}}")
# Quotes, escapes and comments never reach Python's parser, because it prints warnings about some of them.
_NOT_A_FORMULA: Final = re.compile("[\"'\\\\#;`@\n\r\0]")


def parse(
    text: str, variable: str = "x", *, constant_of_integration: bool = False, real_cube_roots: bool = False
) -> Expression:
    """Parse `text` as an expression in `variable`; raises ExpressionError.

    With `constant_of_integration`, the text may contain one (`C`, `2*c`, `log(K*x)`, ...), which is dropped. With
    `real_cube_roots`, x**(1/3) is the real cube root instead of the principal one: -2 at -8.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError("TOO_LARGE", f"longer than {MAX_CHARS} characters")
    text = text.strip()
    # Most answers are Python already. If one cannot be read as such, it may still be another notation: 2x, sin x.
    if _PYTHON.fullmatch(text):
        try:
            return _read_source(text, variable, constant_of_integration, real_cube_roots)
        except ExpressionError as error:
            if error.reason == "TOO_LARGE":
                raise
    source = respell(text, variable).strip()
    if not source:
        raise ExpressionError("UNPARSEABLE", "empty")
    if len(source) > 2 * MAX_CHARS or _LONG_NUMBER.search(source):
        raise ExpressionError("TOO_LARGE", f"too long, or a number of more than {MAX_DIGITS} digits")
    if _NOT_A_FORMULA.search(source):
        raise ExpressionError("FORBIDDEN", "characters that no formula contains, such as quotes")
    return _read_source(source, variable, constant_of_integration, real_cube_roots)


def _read_source(source: str, variable: str, constant_of_integration: bool, real_cube_roots: bool) -> Expression:
    try:
        # With this flag, compile() only parses; nothing is executed.
        tree = cast(ast.Expression, compile(source, "", "eval", ast.PyCF_ONLY_AST)).body
    except (SyntaxError, ValueError) as error:
        if "too many nested" in str(error):
            raise ExpressionError("TOO_LARGE", "nested too deeply") from None
        raise ExpressionError("UNPARSEABLE", f"not an expression: {error.args[0]}") from None
    except (RecursionError, MemoryError):  # raised by CPython's parser for deep nesting
        raise ExpressionError("TOO_LARGE", "nested too deeply") from None
    if constant_of_integration and _HAS_CONSTANT.search(source):
        tree = without_constant(tree, variable)
    reader = _Reader(variable, real_cube_roots)
    result = reader.read(tree, 0)
    return reader.finish(source, reader.without_constant_terms(result) if constant_of_integration else result)


_OPERATIONS: Final[dict[type[ast.operator], Operation]] = dict(
    zip((ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow), ARITHMETIC, strict=True)
)
# Functions of an order and an argument: polylog(2, x) is dilog(x); Ei(1, x) is Maple's spelling of E1(x).
_OF_ORDER: Final[dict[tuple[str, complex | None], str]] = {
    ("polylog", 2): "dilog",
    ("expint", 1): "E1",
    ("Ei", 1): "E1",
}
_COMPARISONS: Final[dict[type[ast.AST], str]] = dict(
    zip((ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq), words("Lt Le Gt Ge Eq Ne"), strict=True)
)
_CONNECTIVES: Final[dict[type[ast.AST], str]] = {
    **dict.fromkeys((ast.And, ast.BitAnd), "And"),
    **dict.fromkeys((ast.Or, ast.BitOr), "Or"),
    **dict.fromkeys((ast.Not, ast.Invert), "Not"),
}


class _Reader(Builder):
    """Converts a syntax tree into steps. All methods return the number of a slot."""

    def read(self, node: ast.expr, depth: int) -> int:
        """Return the slot of the value of `node`."""
        if isinstance(node, ast.Name):
            return self.name(node.id)
        if isinstance(node, ast.Constant):
            return self.number(node.value)
        if depth > MAX_DEPTH:
            raise ExpressionError("TOO_LARGE", f"nested deeper than {MAX_DEPTH}")
        if isinstance(node, ast.BinOp):
            return self.chain(node, depth)
        if isinstance(node, ast.Call):
            return self.call(node, depth)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self.operate("*", self.constant(-1.0), self.read(node.operand, depth + 1))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
            return self.read(node.operand, depth + 1)
        raise ExpressionError("FORBIDDEN", f"syntax that no formula contains: {type(node).__name__}")

    def chain(self, node: ast.expr, depth: int) -> int:
        """Read a chain of binary operations."""
        # A long sum nests to the left: a+b+c is (a+b)+c. That is length, not depth, so a loop goes down the left side
        # and only the right operands count as deeper.
        spine: list[tuple[Operation, ast.expr]] = []
        while isinstance(node, ast.BinOp):
            operation = _OPERATIONS.get(type(node.op))
            if operation is None:
                raise ExpressionError("FORBIDDEN", f"operator {type(node.op).__name__}")
            spine.append((operation, node.right))
            node = node.left
        slot = self.read(node, depth)
        for operation, right in reversed(spine):
            slot = self.operate(operation, slot, self.read(right, depth + 1))
        return slot

    def name(self, name: str) -> int:
        if name == self.variable:
            self.uses_variable = True
            return self.x
        if name not in CONSTANTS:
            what = "a function without an argument" if lookup(name) else "a name that is not on the list"
            raise ExpressionError("FORBIDDEN", f"{name}: {what}")
        if name in ("I", "i"):
            return self.constant(1j)
        # Named constants are kept as steps, so that ball arithmetic has all digits of pi.
        return self.fold(name, CONSTANTS[name], 0, 0, "call", name)

    def number(self, value: object) -> int:
        if type(value) is not int and type(value) is not float:  # a bool is an int
            raise ExpressionError("FORBIDDEN", "a constant that is not a number")
        if value in self.slot_of:
            return self.slot_of[value]
        nearest = float(value)  # no more than MAX_DIGITS digits, so infinite only for numbers such as 1e999
        # A large whole number is the sum of its nearest double and the rest, so that ball arithmetic has it exactly.
        if type(value) is int and value != int(nearest):
            return self.operate("+", self.constant(nearest), self.number(value - int(nearest)))
        if not math.isfinite(nearest):
            raise ExpressionError("TOO_LARGE", "a number too large for floating point")
        return self.constant(nearest)

    def call(self, node: ast.Call, depth: int) -> int:
        if not isinstance(node.func, ast.Name) or node.keywords:
            raise ExpressionError("FORBIDDEN", "a call of something other than a function on the list")
        name, arguments = node.func.id, node.args
        if len(arguments) == 1 and name in NAMES and name != self.variable and lookup(name):
            match arguments[0]:  # log(Abs(u)) is one function without a kink
                case ast.Call(ast.Name("Abs" | "abs"), [inside], []) if SPELLINGS.get(name, name) == "log":
                    return self.apply("log_abs", self.read(inside, depth + 2))
            return self.apply(name, self.read(arguments[0], depth + 1))
        if name == "Piecewise":
            return self.piecewise(arguments, depth + 1)
        slots = [self.read(argument, depth + 1) for argument in arguments]
        if name in NUMBERS and len(slots) == 1 and self.template[slots[0]] is not None:
            return slots[0]  # S(2), Integer(2): the number itself
        if len(slots) > 1 and (name in OF_TWO or SPELLINGS.get(name) in OF_TWO):
            return self.call_of_several(name if name == "Log" else SPELLINGS.get(name, name), slots)
        if name not in NAMES or name == self.variable:
            raise ExpressionError("FORBIDDEN", f"{name}: a function that is not on the list")
        raise ExpressionError("UNPARSEABLE", f"{name} takes one argument")

    def call_of_several(self, name: str, arguments: list[int]) -> int:
        u, v = arguments[:2]
        if name in ("Max", "Min"):
            for v in arguments[1:]:  # the larger so far: u where u > v, plus v elsewhere
                first = self.compare("Gt" if name == "Max" else "Lt", u, v)
                u, v = self.choose("only", first, u), self.choose("only", self.negation(first), v)
                u = self.operate("+", u, v)
            return u
        if len(arguments) > 2:
            raise ExpressionError("UNPARSEABLE", f"{name} takes two arguments")
        if name in ("log", "Log"):  # Mathematica's Log has the base first
            argument, base = (u, v) if name == "log" else (v, u)
            return self.operate("/", *(self.apply("log", slot) for slot in (argument, base)))
        if name in ("Pow", "Rational"):
            return self.operate("**" if name == "Pow" else "/", u, v)
        if name == "root":
            return self.operate("**", u, self.operate("/", self.constant(1.0), v))
        if (name, self.template[u]) not in _OF_ORDER:
            raise ExpressionError("FORBIDDEN", f"{name} of this order")
        return self.apply(_OF_ORDER[name, self.template[u]], v)

    def piecewise(self, pairs: list[ast.expr], depth: int) -> int:
        """Read a Piecewise as a sum of pieces, each of which is 0 where it does not count."""
        # `rest` is 1 where no condition so far holds.
        total, rest, variable = self.constant(0.0), self.constant(1.0), self.x
        for pair in pairs:
            if not isinstance(pair, ast.Tuple) or len(pair.elts) != 2:
                raise ExpressionError("UNPARSEABLE", "Piecewise takes pairs of a formula and a condition")
            holds = self.condition(pair.elts[1], depth)
            counts = self.choose("only", holds, rest)
            # Inside a piece, x takes only values for which the piece counts: log(x) for x > 0 is never undefined.
            self.x = self.choose("where", counts, variable)
            piece = self.read(pair.elts[0], depth)
            self.x = variable
            total = self.operate("+", total, self.choose("only", counts, piece))
            rest = self.choose("only", self.negation(holds), rest)
        # Where no condition holds, the value is total/0, which is undefined.
        return total if self.template[rest] == 0 else self.operate("/", total, self.negation(rest))

    def condition(self, node: ast.AST, depth: int) -> int:
        """Return the slot that is 1 where a condition holds, and 0 elsewhere."""
        if depth > MAX_DEPTH:
            raise ExpressionError("TOO_LARGE", f"nested deeper than {MAX_DEPTH}")
        name, parts = "", list[ast.expr]()
        match node:
            case ast.Constant(value=bool(value)):
                return self.constant(float(value))
            case ast.Compare(left, [_, _, *_] as signs, sides):  # 0 < x < 1 is (0 < x) and (x < 1)
                pairs = zip(signs, pairwise([left, *sides]), strict=True)
                conditions = [self.condition(ast.Compare(u, [sign], [v]), depth + 1) for sign, (u, v) in pairs]
                return self.every(conditions)
            case ast.Compare(left, [sign], [right]):
                name, parts = _COMPARISONS.get(type(sign), ""), [left, right]
            case ast.BoolOp(connective, values):
                name, parts = _CONNECTIVES[type(connective)], values
            case ast.BinOp(left, operator, right):
                name, parts = _CONNECTIVES.get(type(operator), ""), [left, right]
            case ast.UnaryOp(operator, operand):
                name, parts = _CONNECTIVES.get(type(operator), ""), [operand]
            case ast.Call(ast.Name(called), arguments):
                name, parts = called, arguments
        if name in _COMPARISONS.values() and len(parts) == 2:
            return self.compare(name, *(self.read(part, depth + 1) for part in parts))
        if name not in _CONNECTIVES.values() or not parts:
            raise ExpressionError("FORBIDDEN", "a condition of a Piecewise that is not a comparison")
        conditions = [self.condition(part, depth + 1) for part in parts]
        if name == "And":
            return self.every(conditions)
        # A or B is not (not A and not B); "Not" has a single part.
        return self.negation(self.every([self.negation(c) for c in conditions] if name == "Or" else conditions))

    def every(self, conditions: list[int]) -> int:
        """Return the slot that is 1 where all conditions hold."""
        return reduce(partial(self.choose, "only"), conditions)


# --- The constant of integration --------------------------------------------------------------------------------------

# A quick test for names such as C, c_1, K2 or const. The lookbehind rules out the end of a longer name.
_HAS_CONSTANT: Final = re.compile(r"[CcKkD](?<!\w.)(?:_?\d{1,2}|onst(?:ant)?)?\b", re.ASCII | re.DOTALL)
# Flags for what a subtree contains: the variable, a constant of integration, or anything else that is not a number.
_VARIABLE, _FREE, _OTHER = 1, 2, 4
_KNOWN_NODES: Final = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Constant, ast.operator, ast.unaryop, ast.expr_context)
# By neutral element: a constant that is added is replaced by 0, one that is a factor (inside a logarithm) by 1.
_ZERO_AND_ONE: Final = ((ast.Add, ast.Sub, 0), (ast.Mult, ast.Div, 1))


def without_constant(tree: ast.expr, variable: str) -> ast.expr:
    """Return `tree` without its constant of integration; changes the tree.

    Dropped are terms that are functions of the constant only (2*C, log(C)), also in a sum that is multiplied or divided
    by numbers, and factors in the argument of a logarithm (log(C*x)). All other constants stay, and are refused later.
    """
    # What each subtree contains, as flags. ast.walk goes from the root down, so reversed it visits children first.
    contains: dict[ast.AST, int] = {}
    for node in reversed(list(ast.walk(tree))):
        if isinstance(node, ast.Name):
            is_free = CONSTANT.fullmatch(node.id)
            known = _FREE if is_free else 0 if node.id in SYMBOLS or node.id in NAMES else _OTHER
            contains[node] = _VARIABLE if node.id == variable else known
        else:
            contains[node] = 0 if isinstance(node, _KNOWN_NODES) else _OTHER
            for child in ast.iter_child_nodes(node):
                contains[node] |= contains[child]
    # `work` contains the places to search: place[key] is a node, and `neutral` is 0 within sums, 1 within factors.
    root = ast.Expression(tree)
    work: list[tuple[Any, Any, int]] = [(vars(root), "body", 0)]
    while work:
        place, key, neutral = work.pop()
        node = place[key]
        if contains[node] == _FREE:
            place[key] = ast.Constant(neutral)
        elif not contains[node] & _FREE:
            continue  # no constant in this subtree
        elif isinstance(node, ast.UnaryOp):
            work.append((vars(node), "operand", neutral))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, _ZERO_AND_ONE[neutral][:2]):
            # A term, or a factor, that is the constant is dropped with its operator; else both sides are searched.
            if contains[node.right] == _FREE:
                place[key] = node.left
                work.append((place, key, neutral))
            elif contains[node.left] == _FREE and isinstance(node.op, ast.Add | ast.Mult):
                place[key] = node.right
                work.append((place, key, neutral))
            else:
                work += [(vars(node), "left", neutral), (vars(node), "right", neutral)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
            # A sum that is scaled by a number: (x**2 + C)/2.
            if contains[node.right] == 0:
                work.append((vars(node), "left", 0))
            elif contains[node.left] == 0 and isinstance(node.op, ast.Mult):
                work.append((vars(node), "right", 0))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1:
            # A sum may contain a logarithm, whose argument is searched for factors; so is that of Abs within it.
            work += [(node.args, 0, 1)] * (node.func.id in (("log", "ln"), ("Abs", "abs"))[neutral])
    return root.body
