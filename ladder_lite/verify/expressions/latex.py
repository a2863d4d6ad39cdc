r"""Print a parsed formula as LaTeX: `typeset(parse("exp(3*x)/3*5"))` is `\frac{5 e^{3 x}}{3}`.

SymPy is only the printer. Its parser would run foreign text as Python, and a formula that it simplifies is no longer
the one that was verified. So the SymPy expression is built node by node, unevaluated, from the syntax tree that `parse`
has admitted. Only products of whole numbers are evaluated, and factors may change places.
"""

import ast
from math import prod
from typing import Any, Final

from ladder_lite.verify.expressions.functions import NUMBERS, SPELLINGS
from ladder_lite.verify.expressions.parse import Expression, without_constant

_CONSTANTS: Final = {"Pi": "pi", "e": "E", "i": "I"}  # spellings of constants -> SymPy's names


def bare(expression: Expression) -> str:
    """Return the text that was parsed, without its constant of integration, which verification ignores too."""
    try:
        text = ast.unparse(_tree(expression))
    except RecursionError:  # a sum of hundreds of terms
        return expression.source
    # Unparsing removes parentheses and changes spaces, so it is used only if there was a constant.
    if text == expression.text:
        return expression.source
    for operator in ("**", "*", "/"):
        text = text.replace(f" {operator} ", operator)
    return text


def typeset(expression: Expression) -> str:
    """Return LaTeX of the expression, without its constant of integration."""
    builder = _Builder(expression.variable)
    return builder.latex(builder.build(_tree(expression)))


def typeset_integral(integrand: Expression, *limits: str) -> str:
    r"""Return LaTeX of an integral: `\int_{0}^{1} x^{2}\, dx`. The limits are LaTeX."""
    builder = _Builder(integrand.variable)
    indefinite = builder.latex(builder.integral(integrand))
    return indefinite.replace(r"\int", rf"\int_{{{limits[0]}}}^{{{limits[1]}}}", 1) if limits else indefinite


def _tree(expression: Expression) -> ast.expr:
    return without_constant(ast.parse(expression.source, mode="eval").body, expression.variable)


class _Builder:
    """Builds an unevaluated SymPy expression from a syntax tree; handles every node that `parse` admits."""

    # SymPy's printer asks for the signs of constants. For an unevaluated one such as (-1)**(-8) it recurses until
    # Python raises RecursionError. So a constant that is a call, a base or an exponent, and not a plain number, is
    # printed by itself. A symbol whose name is that LaTeX then stands for it.

    def __init__(self, variable: str) -> None:
        import sympy

        self._sympy: Any = sympy
        self._variable = sympy.Symbol(variable)
        self._names: dict[Any, str] = {}  # symbol -> LaTeX that the printer writes for it

    def latex(self, formula: Any) -> str:
        """Print a SymPy expression."""
        # order="none" keeps the order of terms.
        return str(self._sympy.latex(formula, order="none", symbol_names=self._names))

    def build(self, node: ast.expr) -> Any:
        """Return the SymPy expression of a node."""
        if isinstance(node, ast.Name):
            is_variable = node.id == self._variable.name
            return self._variable if is_variable else getattr(self._sympy, _CONSTANTS.get(node.id, node.id))
        if isinstance(node, ast.Constant):
            # From its text, a Float keeps all digits of the verified number; from a float, SymPy would print fifteen.
            is_whole = isinstance(node.value, int)
            return self._sympy.Integer(node.value) if is_whole else self._sympy.Float(repr(node.value))
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            return self._power(self.build(node.left), self.build(node.right))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
            return self._sum(node)
        return self._product(node)

    def integral(self, integrand: Expression) -> Any:
        """Return the indefinite integral of an expression."""
        return self._sympy.Integral(self.build(ast.parse(integrand.source, mode="eval").body), self._variable)

    def _sum(self, node: ast.expr) -> Any:
        """Return a sum as one flat Add: nested, a long sum would be deeper than SymPy's printer can recurse."""
        first, parts = _spine(node, ast.Add, ast.Sub)
        terms = [self._product(part.right, negative=isinstance(part.op, ast.Sub)) for part in parts]
        return self._sympy.Add(self.build(first), *terms, evaluate=False)

    def _product(self, node: ast.expr, negative: bool = False) -> Any:
        """Return a chain of products and quotients as one fraction: a/b*c -> a*c/b."""
        numerator: list[Any] = []
        denominator: list[Any] = []
        first, parts = _spine(node, ast.Mult, ast.Div)
        for factor, divides in ((first, False), *((part.right, isinstance(part.op, ast.Div)) for part in parts)):
            while isinstance(factor, ast.UnaryOp):  # collect signs: x*(-3)/(-4) is positive
                negative ^= isinstance(factor.op, ast.USub)
                factor = factor.operand
            (denominator if divides else numerator).append(self.build(factor))
        return self._quotient(numerator, denominator, negative)

    def _quotient(self, numerator: list[Any], denominator: list[Any], negative: bool = False) -> Any:
        """Return a fraction with signs and numbers in front, where SymPy's printer expects them."""
        number, others = self._split(numerator)
        if denominator:
            divisor, divisors = self._split(denominator)
            bottom = self._times(divisor, divisors)
            bottom = bottom if bottom.is_Integer else self._named(bottom)
            others.append(self._sympy.Pow(bottom, self._sympy.Integer(-1), evaluate=False))
        return self._times(-number if negative else number, others)

    def _split(self, factors: list[Any]) -> tuple[Any, list[Any]]:
        """Return the product of the whole numbers among the factors, and the other factors: 7*x*2 -> 14, [x]."""
        numbers = (factor for factor in factors if factor.is_Integer)
        others = [factor for factor in factors if not factor.is_Integer]
        return prod(numbers, start=self._sympy.Integer(1)), others

    def _times(self, number: Any, factors: list[Any]) -> Any:
        if number == 1 and len(factors) == 1:
            return factors[0]
        return self._sympy.Mul(*([number] if number != 1 or not factors else []), *factors, evaluate=False)

    def _power(self, base: Any, exponent: Any) -> Any:
        # A constant base gets parentheses, except if it is a symbol, a decimal, a positive whole number, or e.
        if not base.is_Symbol and not base.is_Float and not (base.is_Integer and base > 0) and base != self._sympy.E:
            base = self._named(base, r"\left(%s\right)")
        return self._sympy.Pow(base, exponent if exponent.is_Rational else self._named(exponent), evaluate=False)

    def _named(self, formula: Any, form: str = "%s") -> Any:
        """Return a symbol that is printed like a constant formula; return other formulas unchanged."""
        if formula.is_Symbol or self._variable in formula.free_symbols:
            return formula
        symbol = self._sympy.Dummy()
        self._names[symbol] = form % self.latex(formula)
        return symbol

    def _call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)  # no other function is admitted
        name = SPELLINGS.get(node.func.id, node.func.id)
        if name == "Piecewise":
            return self._piecewise(node.args)
        arguments = [self.build(argument) for argument in node.args]
        if name in NUMBERS and len(arguments) == 1:
            return arguments[0]
        number = self._sympy.Integer
        match name:
            case "log" if len(arguments) == 2:
                return self._logarithm(*(arguments[::-1] if node.func.id == "Log" else arguments))
            case "log2" | "log10":
                return self._logarithm(arguments[0], number(name.removeprefix("log")))
            case "sqrt" | "cbrt":
                return self._power(arguments[0], self._sympy.Rational(1, 2 if name == "sqrt" else 3))
            case "root":
                return self._power(arguments[0], self._power(arguments[1], number(-1)))
            case "Pow":
                return self._power(*arguments)
            case "Rational":
                return self._quotient([arguments[0]], [arguments[1]])
            case "E1" | "Ei" if name == "E1" or len(arguments) == 2:  # Ei(1, x) is Maple's
                return self._named(self._sympy.expint(number(1), arguments[-1], evaluate=False))
            case "dilog":  # Li2; SymPy has no function of this name
                return self._named(self._sympy.polylog(number(2), arguments[0], evaluate=False))
        return self._named(getattr(self._sympy, name)(*arguments, evaluate=False))

    def _piecewise(self, pairs: list[ast.expr]) -> Any:
        # SymPy would evaluate the conditions, so the cases are written here, with the conditions as text.
        rows = [pair.elts for pair in pairs if isinstance(pair, ast.Tuple)]
        symbol = self._sympy.Dummy()
        cases = (rf"{self.latex(self.build(piece))} & \text{{{ast.unparse(condition)}}}" for piece, condition in rows)
        self._names[symbol] = r"\begin{cases} " + r" \\ ".join(cases) + r" \end{cases}"
        return symbol

    def _logarithm(self, argument: Any, base: Any) -> Any:
        numerator, denominator = (self._named(self._sympy.log(u, evaluate=False)) for u in (argument, base))
        return self._quotient([numerator], [denominator])


def _spine(node: ast.expr, *operators: type[ast.operator]) -> tuple[ast.expr, list[ast.BinOp]]:
    """Return the first operand of a chain of such operations and the operations in order: 1-x+y -> 1, [-x, +y]."""
    # Such a chain nests to the left: 1-x+y is (1-x)+y.
    spine: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, operators):
        spine.append(node)
        node = node.left
    return node, spine[::-1]
