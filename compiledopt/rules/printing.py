"""Formulas as papers write them, as text and as LaTeX: what is subtracted comes last, numbers before tensors in a product."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import sympy
from sympy.core.alphabets import greeks
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.pretty.pretty_symbology import pretty_symbol
from sympy.printing.str import StrPrinter

# From here on a power of two is written as one.
_LONG = 1024
_BRACKETED = (sympy.Add, sympy.Piecewise)
# Questions that there is no sign for.
_ASKED = {"isfinite": "finite", "isinf": "infinite", "isnan": "NaN", "signbit": "negative"}


def _question(relation: Any) -> tuple[Any, str] | None:
    """What is asked, and how one says that, of a function of yes and no compared with zero."""
    asked, word = relation.lhs, _ASKED.get(getattr(relation.lhs.func, "__name__", ""))
    if word is None or relation.rhs != 0 or not isinstance(relation, sympy.Eq | sympy.Ne):
        return None
    return asked.args[0], word if isinstance(relation, sympy.Ne) else f"not {word}"


class _Conventional:
    """sympy sorts by name, which gives −γ·h + θ and −β + 1. Here θ − γ·h, 1 − β, and β·v + (1 − β)·g².

    numbers: the symbols that are 0-dim. own: the old value of what the line computes, whose term leads its sum.
    """

    between = ""
    numbers: Set[sympy.Symbol]
    own: sympy.Symbol | None
    whole: Any

    def line(self, expression: Any, numbers: Set[sympy.Symbol], own: sympy.Symbol | None) -> str:
        self.numbers, self.own, self.whole = numbers, own, expression
        return str(self.doprint(expression))  # type: ignore[attr-defined]

    def _print_Add(self, expression: Any, order: Any = None) -> str:
        terms = sorted(expression.args, key=lambda term: self._place_of_term(term, expression == self.whole))
        text = ""
        for term in terms:
            if negative := term.as_coeff_Mul()[0].is_negative:
                term = -term
            sign = (" - " if negative else " + ") if text else ("-" if negative else "")
            text += sign + self._inside(term, PRECEDENCE["Add"])
        return text

    def _place_of_term(self, term: Any, outermost: bool) -> tuple[Any, ...]:
        """Positive ones first; among them the old value, then short ones, then numbers, then ε. A number is taken off first."""
        negative = bool(term.as_coeff_Mul()[0].is_negative)
        leads = outermost and self.own in sympy.Mul.make_args(term)
        last = 2 * (term.is_Symbol and term.name.startswith("epsilon")) + term.is_Number * (-1 if negative else 1)
        return negative, not leads, last, term.count_ops(), str(term)

    def _print_Mul(self, expression: Any) -> str:
        coefficient, rest = expression.as_coeff_Mul()
        above: list[Any] = []
        below: list[Any] = []
        if _decimal(abs(coefficient)) is not None:
            above.append(abs(coefficient))
        elif coefficient.is_Rational:
            above += [sympy.Integer(abs(coefficient.p))] * (abs(coefficient.p) != 1)
            below += [sympy.Integer(coefficient.q)] * (coefficient.q != 1)
        else:
            above.append(abs(coefficient))
        for factor in sympy.Mul.make_args(rest):
            base, exponent = factor.as_base_exp()
            under = factor.is_Pow and exponent.as_coeff_Mul()[0].is_negative
            below += [sympy.Pow(base, -exponent)] if under else []
            above += [factor] if not under and factor is not sympy.S.One else []
        sign = "-" if coefficient.is_negative else ""
        if not below:
            return sign + self._product(above)
        return sign + self._fraction(above or [sympy.S.One], below)

    def _print_Pow(self, expression: Any, **_: Any) -> str:
        if expression.exp.as_coeff_Mul()[0].is_negative:
            return self._fraction([sympy.S.One], [sympy.Pow(expression.base, -expression.exp)])
        return self._power(expression.base, expression.exp)

    def _print_Rational(self, value: Any) -> str:
        written = _decimal(value)
        return written if written is not None else self._fraction([sympy.Integer(value.p)], [sympy.Integer(value.q)])

    def _print_Integer(self, value: Any) -> str:
        exponent = int(abs(value)).bit_length() - 1
        if abs(value) < _LONG or 2**exponent != abs(value):
            return str(int(value))
        return ("-" if value < 0 else "") + self._power(sympy.Integer(2), sympy.Integer(exponent))

    def _place_of_factor(self, factor: Any) -> tuple[Any, ...]:
        """Numbers, 0-dim values, tensors; a letter before a power, and that before functions and what stands in brackets."""
        if factor.is_Number:
            return 0, 0, ""
        base = factor.as_base_exp()[0]
        kind = 0 if factor.is_Symbol else 1 if base.is_Symbol or base.is_Number else 2 + isinstance(factor, _BRACKETED)
        return (1 if factor.free_symbols <= self.numbers else 2), kind, str(factor)

    def _product(self, factors: Sequence[Any]) -> str:
        if len(factors) == 1:
            return self._inside(factors[0], 0)
        ordered = sorted(factors, key=self._place_of_factor)
        return self.between.join(self._inside(factor, PRECEDENCE["Mul"]) for factor in ordered)

    def _inside(self, expression: Any, level: int) -> str:
        written = _decimal(expression) if expression.is_Number and not expression.is_negative else None
        return written if written and "e" not in written else str(self.parenthesize(expression, level))  # type: ignore[attr-defined]

    def _fraction(self, above: Sequence[Any], below: Sequence[Any]) -> str:
        raise NotImplementedError

    def _power(self, base: Any, exponent: Any) -> str:
        raise NotImplementedError


class Text(_Conventional, StrPrinter):  # type: ignore[misc]
    """One line of plain text, with Greek letters."""

    between = "·"

    def _print_Symbol(self, symbol: sympy.Symbol) -> str:
        name: str = symbol.name
        return str(pretty_symbol(name.rstrip("'"))) + "'" * name.count("'")

    def _fraction(self, above: Sequence[Any], below: Sequence[Any]) -> str:
        over = self._product(above) if len(above) > 1 else self._inside(above[0], PRECEDENCE["Add"])
        under = self._product(below)
        return f"{over}/({under})" if len(below) > 1 else f"{over}/{self._inside(below[0], PRECEDENCE['Mul'])}"

    def _power(self, base: Any, exponent: Any) -> str:
        if exponent == sympy.S.Half:
            return f"√{self._print(base)}" if base.is_Symbol else f"√({self._print(base)})"
        inside = self._inside(base, PRECEDENCE["Pow"])
        if exponent in (2, 3):
            return inside + "²³"[int(exponent) - 2]
        return f"{inside}^{self._inside(exponent, PRECEDENCE['Pow'])}"

    def _print_Piecewise(self, expression: Any) -> str:
        *cases, (last, _) = expression.args
        text = "".join(f"{self._print(value)} if {self._print(when)} else " for value, when in cases)
        return f"({text}{self._print(last)})"

    def _print_Relational(self, expression: Any) -> str:
        if question := _question(expression):
            return f"{self._print(question[0])} {question[1]}"
        sign = {"==": "=", "!=": "≠", "<=": "≤", ">=": "≥"}.get(expression.rel_op, expression.rel_op)
        return f"{self._print(expression.lhs)} {sign} {self._print(expression.rhs)}"

    def _print_Abs(self, expression: Any) -> str:
        return f"|{self._print(expression.args[0])}|"

    def _print_Max(self, expression: Any) -> str:
        return f"max({', '.join(sorted(map(self._print, expression.args)))})"

    def _print_Min(self, expression: Any) -> str:
        return f"min({', '.join(sorted(map(self._print, expression.args)))})"


class Latex(_Conventional, LatexPrinter):  # type: ignore[misc]
    between = " "

    def _print_Symbol(self, symbol: sympy.Symbol, style: str = "plain") -> str:
        """New values are primed; a word is not a product of letters."""
        name: str = symbol.name
        plain = name.rstrip("'")
        first = plain.split("_")[0]
        word = len(first) > 1 and first.lower() not in greeks
        written = rf"\mathrm{{{plain}}}".replace("_", r"\_") if word else super()._print_Symbol(sympy.Symbol(plain), style)
        return str(written) + r"^{\prime}" * name.count("'")

    def _print_Relational(self, expression: Any) -> str:
        if question := _question(expression):
            return rf"{self._print(question[0])} \text{{ {question[1]}}}"
        return str(super()._print_Relational(expression))

    def _print_Rational(self, value: Any) -> str:
        mantissa, _, exponent = super()._print_Rational(value).partition("e")
        if not exponent:
            return str(mantissa)
        return (mantissa + r" \cdot ") * (mantissa != "1") + f"10^{{{exponent}}}"

    def _fraction(self, above: Sequence[Any], below: Sequence[Any]) -> str:
        return rf"\frac{{{self._product(above)}}}{{{self._product(below)}}}"

    def _power(self, base: Any, exponent: Any) -> str:
        if exponent == sympy.S.Half:
            return rf"\sqrt{{{self._print(base)}}}"
        inside = self._inside(base, PRECEDENCE["Pow"])
        if base.is_Symbol and "^" in inside:
            inside = rf"\left({inside}\right)"
        return f"{inside}^{{{self._print(exponent)}}}"

    def _inside(self, expression: Any, level: int) -> str:
        written = super()._inside(expression, level)
        return rf"\left({written}\right)" if isinstance(expression, sympy.Piecewise) and level >= PRECEDENCE["Mul"] else written


def _decimal(value: Any) -> str | None:
    """A fraction that ends is written with a point, but for halves and powers of two: 0.96, x/2, 1/2^23. Of a number that came
    about by arithmetic (π/1000) there are too many digits to read; six are shown."""
    if not value.is_Rational or value.q <= 2 or (value.q >= _LONG and value.q & (value.q - 1) == 0):
        return None
    if not set(sympy.factorint(value.q)) <= {2, 5}:
        return None
    written = repr(float(value))
    return (written if len(written) <= 10 else f"{float(value):.6g}").replace("e-0", "e-")
